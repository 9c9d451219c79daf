"""The folders that a run writes to, tried before anything is read."""

from collections.abc import Iterator

from utils import distributed
from utils.output.files import check_folder
from utils.settings import InputError
from utils.training.checkpoint import check_output_dir, writes_output
from utils.training.settings import TrainingSettings


def check_folders(args: TrainingSettings) -> None:
    """Make sure that each rank can and may write where it will; every rank calls it.

    The cache of tokenised rows is tried where there is something to write to it (cache.py).

    Raises:
        InputError: on every rank, if one of them cannot or may not (checkpoint.py).
    """
    fault = None
    try:
        check_output_dir(args)
        for folder, flag in _folders(args):
            check_folder(folder, flag)
    except InputError as error:
        fault = str(error)
    if fault := distributed.first_of_all(fault):
        raise InputError(fault)


def _folders(args: TrainingSettings) -> Iterator[tuple[str, str]]:
    """What this rank writes to, and the flags that name it."""
    if args.dry_run or args.estimate_memory:
        return
    if writes_output(args):
        yield args.output_dir, "--output_dir"
    if args.tensorboard_path and "tensorboard" in args.monitor and distributed.is_main():
        yield args.tensorboard_path, "--tensorboard_path"
