"""Why the hub did not give something, said for people."""

from collections.abc import Iterator

from huggingface_hub import constants, errors


def explain(error: BaseException) -> str:
    """What is wrong, in a line: the hub's own reason where there is one behind the error."""
    for cause in _chain(error):
        match cause:
            case errors.GatedRepoError():
                return "access is restricted: ask for it on its page, and give HF_TOKEN"
            case errors.RepositoryNotFoundError():
                return "there is none of this name, or it is private and needs HF_TOKEN"
            case errors.RevisionNotFoundError():
                return "it has no such revision"
            case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() if (
                constants.is_offline_mode()
            ):
                return "HF_HUB_OFFLINE is set, and HF_HOME does not hold all of it"
            case errors.HTTPError():
                return _first_line(cause)
    return _first_line(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
