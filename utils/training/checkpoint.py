"""Training state on disk: saved whole or not at all, found again, checked, loaded.

OUTPUT_DIR/checkpoints/step_N holds what DeepSpeed's save_checkpoint writes, and state.json: how far
the run was, its metrics, and the size of every other file. `latest` beside it is for DeepSpeed's
own tools.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils import distributed
from utils.output.files import write_whole
from utils.settings import InputError
from utils.training.settings import StateSettings, TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from utils.training.plan import RunPlan

STATE = "state.json"
PARTIAL = ".partial"  # ends the name of a folder that is being written
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
        run: what the run that goes on must have in common with it, by the names users know.
        world_size: number of ranks that wrote it.
        batch: comparisons (or, with a limit in tokens, tokens) of a step.
        flags: values of the flags that may change, each of which is said (plan.said_of).
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

    def best(self, output_dir: str) -> tuple[float, int]:
        """Accuracy and step of the model that --save_best has put there, NO_MODEL if none."""
        folder = Path(output_dir)
        has_model = distributed.from_main((folder / "config.json").exists())
        if not (has_model and _is_inside(self.folder, folder / "checkpoints")):
            return NO_MODEL
        accuracy, step = self.saved_model or NO_MODEL
        if accuracy < 0:
            distributed.log(
                f"{self.folder} does not say that --save_best chose the model in {folder}, so it "
                "counts as none: the first evaluation from here on replaces it"
            )
            return NO_MODEL
        return accuracy, int(step)

    def check_run(self, run: dict, batch: int, said: dict[str, tuple] | None = None) -> None:
        """Refuse a run that cannot go on from here; say so if it trains otherwise from here on.

        Args:
            run: what must be equal, by the names users know.
            batch: as the attribute.
            said: flags with their values and what another value means (plan.said_of).

        Raises:
            InputError: something in `run` differs.
        """
        said = said or {}
        for name in run:
            if name in self.run and run[name] != self.run[name]:
                raise InputError(
                    f"{self.folder} was written with {name} {self.run[name]}, but this run has "
                    f"{run[name]}: give the same data and flags, or begin anew in another "
                    "--output_dir without --resume_from_checkpoint"
                )
        unknown = [name for name in run if name not in self.run]
        unknown += [name for name in said if name not in self.flags]
        if unknown:
            distributed.log(
                f"{self.folder} is older than this version and does not say {', '.join(unknown)}: "
                "make sure that nothing of it has changed"
            )
        for name, (value, meaning) in said.items():
            if name in self.flags and value != self.flags[name]:
                distributed.log(f"{name} was {self.flags[name]} and is {value}: {meaning}")
        if batch != self.batch:
            distributed.log(
                f"a step had {self.batch} comparisons and has {batch} now (both in tokens with "
                "--max_tokens_per_micro_batch); the learning rate follows the schedule of the new "
                "number of steps. --gradient_accumulation_steps or the batch size can keep both"
            )


class Resume:
    """Where a run begins: where a training state was saved or, without one, at step 0.

    Attributes:
        state: what --resume_from_checkpoint means; None: the run begins at step 0.
        progress: how far the run is; the loop keeps it up to date.

    Raises:
        InputError: as find_checkpoint.
    """

    def __init__(self, args: TrainingSettings, device: torch.device):
        self.state = find_checkpoint(args, device)
        self.progress = self.state.progress if self.state else Progress()

    @property
    def log(self) -> dict | None:
        """What RunLog.state gave there."""
        return self.state.log if self.state else None

    @property
    def template_date(self) -> str | None:
        """The date that the chat template writes in the rows that have trained."""
        return self.state.run.get("--chat_template_date") if self.state else None

    def best(self, args: TrainingSettings) -> tuple[float, int]:
        """Accuracy and step of the model that --save_best has put there, NO_MODEL if none."""
        return self.state.best(args.output_dir) if self.state and args.save_best else NO_MODEL

    def check(self, plan: "RunPlan") -> None:
        """Refuse a plan that cannot go on from here (Checkpoint.check_run)."""
        if self.state:
            self.state.check_run(plan.run, plan.step_size, plan.said)

    def prepare(self, ds_config: dict, args: TrainingSettings) -> None:
        """Make the state fit the number of ranks, before there is an engine (reshard)."""
        if self.state:
            self.folder = reshard(self.state, ds_config, args)

    def load(self, engine: "DeepSpeedEngine") -> None:
        """Load weights, optimiser, schedule and loss scale from what `prepare` made."""
        if self.state:
            load_checkpoint(engine, self.state, self.folder)


def check_output_dir(args: TrainingSettings) -> None:
    """Refuse to write over a model, or to mix the training states of two runs.

    Raises:
        InputError: --output_dir holds what this run does not go on from.
    """
    folder, root, wanted = Path(args.output_dir), _root(args), args.resume_from_checkpoint
    if folder.is_file():
        raise InputError(f"--output_dir {folder} is a file; expected a folder")
    if args.audit_data or args.estimate_memory or args.dry_run:
        return  # none touches what is there
    steps = _steps(root)
    if wanted is not None and wanted != "latest" and _is_inside(Path(wanted), root):
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


def remove_foreign_states(args: TrainingSettings, checkpoint: Checkpoint | None) -> None:
    """Empty the folder of training states, unless the run goes on from one in it."""
    root = _root(args)
    if writes_output(args) and not (checkpoint and _is_inside(checkpoint.folder, root)):
        shutil.rmtree(root, ignore_errors=True)
    distributed.barrier()


def find_checkpoint(args: TrainingSettings, device: torch.device) -> Checkpoint | None:
    """The training state that --resume_from_checkpoint means; every rank gets the same.

    None without the flag, and for `latest` where nothing was saved yet.

    Raises:
        InputError: PATH is not a whole training state, or none is whole.
    """
    root, wanted = _root(args), args.resume_from_checkpoint
    if wanted is None:
        return None
    folders = [Path(wanted)]
    if wanted == "latest":
        steps = distributed.from_main(_steps(root))
        folders = [root / f"step_{step}" for step in reversed(steps)]
    for folder in folders:
        fault = _find_fault(folder, args, device)
        if fault is None:
            distributed.log(f"going on from {folder}")
            return _read(folder)[0]
        if wanted != "latest":
            raise InputError(
                f"--resume_from_checkpoint {folder}: not a whole training state: {fault}. Give the "
                "folder of another step, or latest"
            )
        distributed.log(f"{folder} is not whole and is passed over: {fault}")
    if folders:
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
    root = _root(args)
    folder = root / f"step_{progress.step}"
    if _find_fault(folder, args, engine.device) is None:
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
        saved = [step for step in _steps(root) if step <= progress.step]
        for old in saved[: -args.save_total_limit] if args.save_total_limit else ():
            # Under another name first, so that a state is never half there under its own.
            removed = root / f"step_{old}{PARTIAL}"
            (root / f"step_{old}").rename(removed)
            shutil.rmtree(removed)
    distributed.barrier()
    return folder


def forget_saved_model(args: TrainingSettings) -> None:
    """Let no state of the folder say that a model of --save_best is there: another replaces it."""
    root = _root(args)
    for step in _steps(root) if writes_output(args) else ():
        path = root / f"step_{step}" / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a broken state, from which no run goes on
        if "saved_model" in state:
            write_whole(path, json.dumps({**state, "saved_model": NO_MODEL}))
    distributed.barrier()


def load_checkpoint(engine: "DeepSpeedEngine", checkpoint: Checkpoint, folder: Path) -> None:
    """Load weights, optimiser, schedule and loss scale from what `reshard` gave; on every rank."""
    groups = [dict(group) for group in engine.optimizer.param_groups]
    with chdir(folder.parent):  # DeepSpeed takes the names of folders above for patterns
        path, _ = engine.load_checkpoint(".", tag=folder.name)
    if path is None:
        raise RuntimeError(f"DeepSpeed found no training state in {folder}")
    distributed.barrier()
    if folder != checkpoint.folder:
        _repair_optimizer(engine, groups)
        if distributed.is_main():
            shutil.rmtree(folder.parent)
    distributed.log("weights (the head's too), optimiser and schedule are those of the state")


def _repair_optimizer(engine: "DeepSpeedEngine", groups: list[dict]) -> None:
    """Undo what loading a universal checkpoint does to the optimiser in ZeRO-3.

    DeepSpeed 0.19 gives all groups the first one's settings (also its weight decay), and all states
    one and the same tensor as their step, which then counts several times.
    """
    optimizer = engine.optimizer.optimizer
    rates = engine.lr_scheduler.get_last_lr()
    for group, before, rate in zip(optimizer.param_groups, groups, rates, strict=True):
        group.update({name: value for name, value in before.items() if name != "params"}, lr=rate)
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def reshard(checkpoint: Checkpoint, ds_config: dict, args: TrainingSettings) -> Path:
    """Where the engine loads a training state from; every rank calls it.

    States of ZeRO are in pieces, one a rank. For another number of ranks DeepSpeed's universal
    checkpoint (arXiv 2406.18820) is made out of them, and `ds_config` is told so, in place.

    Raises:
        InputError: the pieces are on several disks, or DeepSpeed cannot load what is in files.
    """
    zero = ds_config["zero_optimization"]
    stage = zero["stage"]
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        # DeepSpeed 0.19 copies the files back, but does not tell the optimiser of them.
        raise InputError(
            f"{checkpoint.folder}: DeepSpeed cannot go on with optimiser states in files (device "
            "nvme in --deepspeed_config): begin anew in another --output_dir, or give --offload cpu"
        )
    if checkpoint.world_size == distributed.world_size() or stage == 0:
        return checkpoint.folder
    if args.use_node_local_storage:
        raise InputError(
            f"{checkpoint.folder} was written by {checkpoint.world_size} processes and this run "
            f"has {distributed.world_size()}: the number must stay with --use_node_local_storage"
        )
    ds_config.setdefault("checkpoint", {})["load_universal"] = True
    universal = checkpoint.folder.parent / f"universal{PARTIAL}" / checkpoint.folder.name
    if distributed.is_main():
        distributed.log(
            f"the state of {checkpoint.world_size} processes is made ready for "
            f"{distributed.world_size()}"
        )
        shutil.rmtree(universal.parent, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        root = checkpoint.folder.parent  # as in load_checkpoint
        command += ["--input_folder", checkpoint.folder.name]
        command += ["--output_folder", str(universal.relative_to(root))]
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        command += ["--inject_missing_state"] if stage < 3 else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)
    distributed.barrier()
    return universal


def _root(args) -> Path:
    return Path(args.output_dir) / "checkpoints"


def _is_inside(folder: Path, root: Path) -> bool:
    return folder.resolve().parent == root.resolve()


def writes_output(args: StateSettings) -> bool:
    """Whether this rank does what is done once for each disk that --output_dir is on."""
    return distributed.is_first_on_node() if args.use_node_local_storage else distributed.is_main()


def _steps(root: Path) -> list[int]:
    """Steps of which there is a folder, ascending."""
    names = [path.name.removeprefix("step_") for path in root.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def _find_fault(folder: Path, args: TrainingSettings, device: torch.device) -> str | None:
    """What is wrong with a training state; None, on every rank, if no rank finds a fault."""
    fault = _find_own_fault(folder)
    if distributed.max_over_ranks(int(fault is not None), device):
        return fault or "another process finds a fault in its part"
    return None


def _find_own_fault(folder: Path) -> str | None:
    """What is wrong with a training state, as far as this rank looks; None if nothing."""
    try:
        _, files = _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE}: {error}"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
            return f"{name}: found {found}, expected {size} bytes"
    return None


def _read(folder: Path) -> tuple[Checkpoint, dict[str, int]]:
    """A training state, and the sizes of its files."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    files, progress = state.pop("files"), Progress(**state.pop("progress"))
    return Checkpoint(folder, progress, **state), files
