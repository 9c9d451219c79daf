"""The folders that a run writes to, tried before anything is read."""

from collections.abc import Iterator
from pathlib import Path

from utils import distributed
from utils.output.files import check_folder
from utils.settings import InputError
from utils.training.checkpoint import is_inside, saved_steps, states_folder, writes_output
from utils.training.settings import TrainingSettings


def check_folders(args: TrainingSettings) -> None:
    """Make sure that each rank can and may write where it will; every rank calls it.

    The cache of tokenised rows is tried where there is something to write to it (cache.py).

    Raises:
        InputError: on every rank, if one of them cannot, or may not (`refuse_used_folder`).
    """
    fault = None
    try:
        refuse_used_folder(args)
        for folder, flag in _folders(args):
            check_folder(folder, flag)
    except InputError as error:
        fault = str(error)
    if fault := distributed.first_of_all(fault):
        raise InputError(fault)


def refuse_used_folder(args: TrainingSettings) -> None:
    """Refuse to write over a model, or to mix the training states of two runs.

    Raises:
        InputError: --output_dir holds what this run does not go on from.
    """
    folder, wanted = Path(args.output_dir), args.resume_from_checkpoint
    if folder.is_file():
        raise InputError(f"--output_dir {folder} is a file; expected a folder")
    if args.audit_data or args.estimate_memory or args.dry_run:
        return  # none touches what is there

    root = states_folder(args)
    steps = saved_steps(root)
    if wanted is not None and wanted != "latest" and is_inside(Path(wanted), root):
        names, name = [f"step_{step}" for step in steps], Path(wanted).resolve().name
        later = names[names.index(name) + 1 :] if name in names else []
        if later:
            raise InputError(
                f"--resume_from_checkpoint {wanted}, but {root} holds {', '.join(later)} too: "
                "remove them, or give another --output_dir"
            )
        return

    if (wanted == "latest" and steps) or args.overwrite_output_dir:
        return
    if any(folder.glob("*.safetensors")) or (folder / "config.json").exists():
        raise InputError(
            f"--output_dir {folder} already holds a model: give another folder, "
            "--overwrite_output_dir, or --resume_from_checkpoint latest where it has states"
        )
    if steps:
        raise InputError(
            f"--output_dir {folder} already holds training states: give "
            "--resume_from_checkpoint latest, another folder, or --overwrite_output_dir"
        )


def _folders(args: TrainingSettings) -> Iterator[tuple[str, str]]:
    """What this rank writes to, and the flags that name it."""
    if args.dry_run or args.estimate_memory:
        return
    if writes_output(args):
        yield args.output_dir, "--output_dir"
    if args.tensorboard_path and "tensorboard" in args.monitor and distributed.is_main():
        yield args.tensorboard_path, "--tensorboard_path"
