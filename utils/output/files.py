"""Files and folders that a program writes: whether it can, and whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.settings import InputError

PROBE = bytes(4096)  # a disk that is full may still take an empty file


def check_folder(folder: str | Path, flag: str) -> None:
    """Make sure that files can be written to a folder, which is made if need be, and removed again.

    Args:
        folder: that will be written to.
        flag: that names it, for the message.

    Raises:
        InputError: it cannot be made, or a file of a few KB cannot be written there.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(PROBE)
    except OSError as error:
        raise InputError(
            f"{flag} {folder}: {why_not_written(error, folder)}; give another folder"
        ) from error
    finally:
        for place in missing:
            with suppress(OSError):  # what another process has put there stays
                place.rmdir()


def why_not_written(error: OSError, folder: str | Path) -> str:
    """What an error says about writing to a folder, in words."""
    if isinstance(error, FileExistsError) or os.path.isfile(folder):
        return "is a file; expected a folder"
    if isinstance(error, NotADirectoryError):
        return "stands below a file; expected a folder"
    return f"cannot be written to ({error.strerror or error})"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file so that a kill leaves the old one or the new one, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write_whole(path: Path, text: str) -> Path:
    """Write a text as a file that is whole at any moment."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to write a new folder, which is there once all of it is; an empty one may stand there.

    Args:
        folder: absolute.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        partial = Path(scratch) / folder.name
        partial.mkdir()
        yield partial
        partial.rename(folder)
