"""Training states on disk: saved whole or not at all, and found again.

OUTPUT_DIR/checkpoints/
    step_200/             a whole state: what DeepSpeed's save_checkpoint writes, and
        state.json        how far the run was, what resume.py needs, the size of each other file
    step_300.partial/     one that is being written or removed
    latest                the name of the newest, for DeepSpeed's own tools
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils import distributed
from utils.output.files import write_whole
from utils.settings import InputError
from utils.training.settings import OWN_DROPOUT, StateSettings, TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STATE = "state.json"
PARTIAL = ".partial"  # ends the name of a folder that is no whole state
NO_MODEL = (-1.0, 0)  # accuracy and step of a best model before there is one


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps.
        epoch: whole passes over the training data.
        seen: comparisons of the present pass that have trained.
    """

    step: int = 0
    epoch: int = 0
    seen: int = 0

    def advance(self, comparisons: int, total: int) -> None:
        """Count a step over so many comparisons; a pass has `total` of them."""
        self.step += 1
        self.seen += comparisons
        if self.seen == total:
            self.epoch, self.seen = self.epoch + 1, 0


@dataclass(frozen=True)
class Checkpoint:
    """A training state on disk.

    Attributes:
        folder: where it is.
        progress: how far the run was.
        log: what RunLog.state gave.
        run, batch, flags: what RunIdentity.as_dict gave (resume.py).
        world_size: number of ranks that wrote it.
        saved_model: accuracy and step of what --save_best had put into the output folder;
            NO_MODEL if there was none, or another one. None: the state is older than this entry.
    """

    folder: Path
    progress: Progress
    log: dict
    run: dict
    world_size: int
    batch: int
    flags: dict = field(default_factory=dict)
    saved_model: Sequence[float] | None = None


def states_folder(args: TrainingSettings) -> Path:
    """Where the training states of a run are."""
    return Path(args.output_dir) / "checkpoints"


def saved_steps(root: Path) -> list[int]:
    """Steps of which there is a folder in `root`, ascending."""
    names = [path.name.removeprefix("step_") for path in root.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def is_inside(folder: Path, root: Path) -> bool:
    """Whether the folder stands in `root` itself, by whatever names and links."""
    return folder.resolve().parent == root.resolve()


def writes_output(args: StateSettings) -> bool:
    """Whether this rank does what is done once for each disk that --output_dir is on."""
    return distributed.is_first_on_node() if args.use_node_local_storage else distributed.is_main()


def find_checkpoint(args: TrainingSettings, device: torch.device) -> Checkpoint | None:
    """The training state that --resume_from_checkpoint means; every rank gets the same.

    None without the flag, and for `latest` where nothing was saved yet.

    Raises:
        InputError: PATH is not a whole training state, or none is whole.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None

    if wanted != "latest":
        folder = Path(wanted)
        if fault := _find_fault(folder, device):
            raise InputError(
                f"--resume_from_checkpoint {folder}: not a whole training state: {fault}. Give the "
                "folder of another step, or latest"
            )
        return _read_state(folder)[0]

    root = states_folder(args)
    steps = distributed.from_main(saved_steps(root))
    for step in reversed(steps):
        folder = root / f"step_{step}"
        fault = _find_fault(folder, device)
        if fault is None:
            return _read_state(folder)[0]
        distributed.log(f"{folder} is not whole and is passed over: {fault}")

    if steps:
        raise InputError(
            f"no training state under {root} is whole: leave --resume_from_checkpoint out and give "
            "--overwrite_output_dir or another folder"
        )
    distributed.log(f"nothing was saved yet under {root}: the run begins at step 0")
    return None


def save_checkpoint(
    engine: "DeepSpeedEngine", args: TrainingSettings, progress: Progress, **others: object
) -> Path:
    """Save the training state, and return its folder; every rank calls it.

    Everything goes to a folder of another name first: under its own name a state is whole.

    Args:
        engine: holds the state.
        args: output_dir, save_total_limit and use_node_local_storage count.
        progress: how far the run is.
        others: log, run, batch, flags and saved_model of the Checkpoint.
    """
    root = states_folder(args)
    folder = root / f"step_{progress.step}"
    if _find_fault(folder, engine.device) is None:
        return folder  # the run came from here

    partial = folder.with_name(folder.name + PARTIAL)
    writes = writes_output(args)
    if writes:
        for left in root.glob(f"*{PARTIAL}/"):
            shutil.rmtree(left)
    distributed.barrier()
    engine.save_checkpoint(str(root), tag=partial.name, save_latest=False)

    if writes:
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        state = {
            "progress": asdict(progress),
            "world_size": distributed.world_size(),
            **others,
            "files": {str(path.relative_to(partial)): path.stat().st_size for path in files},
        }
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")

        if folder.exists():  # a broken one, which was passed over
            shutil.rmtree(folder)
        partial.rename(folder)
        write_whole(root / "latest", folder.name)

        saved = [step for step in saved_steps(root) if step <= progress.step]
        for old in saved[: -args.save_total_limit] if args.save_total_limit else ():
            # Under another name first, so that a state is never half there under its own.
            removed = root / f"step_{old}{PARTIAL}"
            (root / f"step_{old}").rename(removed)
            shutil.rmtree(removed)

    distributed.barrier()
    return folder


def remove_foreign_states(args: TrainingSettings, checkpoint: Checkpoint | None) -> None:
    """Empty the folder of training states, unless the run goes on from one in it."""
    root = states_folder(args)
    if writes_output(args) and not (checkpoint and is_inside(checkpoint.folder, root)):
        shutil.rmtree(root, ignore_errors=True)
    distributed.barrier()


def forget_saved_model(args: TrainingSettings) -> None:
    """Let no state of the folder say that a model of --save_best is there: another replaces it."""
    root = states_folder(args)
    for step in saved_steps(root) if writes_output(args) else ():
        path = root / f"step_{step}" / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a broken state, from which no run goes on
        if "saved_model" in state:
            write_whole(path, json.dumps({**state, "saved_model": NO_MODEL}))
    distributed.barrier()


def _find_fault(folder: Path, device: torch.device) -> str | None:
    """What is wrong with a training state; None, on every rank, if no rank finds a fault."""
    fault = _find_own_fault(folder)
    if distributed.max_over_ranks(int(fault is not None), device):
        return fault or "another process finds a fault in its part"
    return None


def _find_own_fault(folder: Path) -> str | None:
    """What is wrong with a training state, as far as this rank looks; None if nothing."""
    try:
        _, files = _read_state(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE}: {error}"

    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
            return f"{name}: found {found}, expected {size} bytes"
    return None


def _read_state(folder: Path) -> tuple[Checkpoint, dict[str, int]]:
    """A training state, and the sizes of its files."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    files, progress = state.pop("files"), Progress(**state.pop("progress"))
    if state["run"].get("--dropout", 0) is None:  # as earlier versions said it
        state["run"]["--dropout"] = OWN_DROPOUT
    return Checkpoint(folder, progress, **state), files
