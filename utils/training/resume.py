"""Where a run begins: at step 0, or where a training state was saved.

The state must be one of the same run: RunIdentity says what that is, from the `resume` of each flag
(settings.py of training and of data) and from what plan.py counts of the data. It is loaded also on
another number of ranks than wrote it.
"""

import json
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils import distributed
from utils.settings import FREE, REFUSED, SIZE, InputError
from utils.training.checkpoint import (
    NO_MODEL,
    PARTIAL,
    Progress,
    find_checkpoint,
    is_inside,
    states_folder,
)
from utils.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class RunIdentity:
    """What makes a run the one that a training state is of.

    Attributes:
        run: what must be equal, by the names that users know.
        batch: comparisons of a step over all ranks.
        flags: those that may change, each with its value and what another one means.
    """

    run: dict
    batch: int
    flags: dict[str, tuple]

    @classmethod
    def of(cls, args: TrainingSettings, data: dict | None = None) -> "RunIdentity":
        """The identity of a command line and the data that were read for it.

        The `resume` of each flag in utils/training/settings.py and utils/data/settings.py says what
        another value of it means to a run that goes on.

        Args:
            args: the command line.
            data: what must be equal of the data, by the names that users know (plan.py fills it).
        """
        run = {f"--{name}": value for name, value in args.flags(REFUSED).items()}

        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        batch *= distributed.world_size()

        flags = {
            f"--{entry.name}": (getattr(args, entry.name), entry.metadata["resume"])
            for entry in fields(args)
            if entry.metadata["resume"] not in (REFUSED, SIZE, FREE)
        }
        if path := args.deepspeed_config:  # its entries count, not its name
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            flags["--deepspeed_config"] = entries, flags["--deepspeed_config"][1]

        return cls(run | (data or {}), batch, flags)

    def as_dict(self) -> dict:
        """What training states are saved with: run, batch and flags of a Checkpoint."""
        flags = {name: value for name, (value, _) in self.flags.items()}
        return {"run": self.run, "batch": self.batch, "flags": flags}


class Resume:
    """Where a run begins, and how it comes there. Without a state, its methods do nothing.

    Attributes:
        checkpoint: what --resume_from_checkpoint means; None: the run begins at step 0.
        progress: how far the run is; the loop keeps it up to date.
        load_folder: where the engine loads it from; None until `prepare` has made it fit.

    Args:
        args: the command line.
        device: of this rank.

    Raises:
        InputError: as find_checkpoint.
    """

    def __init__(self, args: TrainingSettings, device: torch.device):
        self.args = args
        self.checkpoint = find_checkpoint(args, device)
        self.progress = self.checkpoint.progress if self.checkpoint else Progress()
        self.load_folder: Path | None = None
        if self.checkpoint:
            distributed.log(f"going on from {self.checkpoint.folder}")

    @property
    def log(self) -> dict | None:
        """What RunLog.state gave there."""
        return self.checkpoint.log if self.checkpoint else None

    @property
    def template_date(self) -> str | None:
        """The date that the chat template writes in the rows that have trained."""
        return self.checkpoint.run.get("--chat_template_date") if self.checkpoint else None

    def best_model(self) -> tuple[float, int]:
        """Accuracy and step of the model that --save_best has put there, NO_MODEL if none."""
        if not (self.checkpoint and self.args.save_best):
            return NO_MODEL

        folder = Path(self.args.output_dir)
        has_model = distributed.from_main((folder / "config.json").exists())
        if not (has_model and is_inside(self.checkpoint.folder, states_folder(self.args))):
            return NO_MODEL

        accuracy, step = self.checkpoint.saved_model or NO_MODEL
        if accuracy < 0:
            distributed.log(
                f"{self.checkpoint.folder} does not say that --save_best chose the model in "
                f"{folder}, so it counts as none: the first evaluation from here on replaces it"
            )
            return NO_MODEL
        return accuracy, int(step)

    def check(self, identity: RunIdentity) -> None:
        """Refuse a run that cannot go on from here; say so if it trains otherwise from here on.

        Raises:
            InputError: something that must be equal differs.
        """
        if self.checkpoint is None:
            return

        state, folder = self.checkpoint, self.checkpoint.folder
        for name, value in identity.run.items():
            if name in state.run and value != state.run[name]:
                raise InputError(
                    f"{folder} was written with {name} {state.run[name]}, but this run has "
                    f"{value}: give the same data and flags, or begin anew in another "
                    "--output_dir without --resume_from_checkpoint"
                )

        unknown = [name for name in identity.run if name not in state.run]
        unknown += [name for name in identity.flags if name not in state.flags]
        if unknown:
            distributed.log(
                f"{folder} is older than this version and does not say {', '.join(unknown)}: "
                "make sure that nothing of it has changed"
            )

        for name, (value, meaning) in identity.flags.items():
            if name in state.flags and value != state.flags[name]:
                distributed.log(f"{name} was {state.flags[name]} and is {value}: {meaning}")

        if identity.batch != state.batch:
            distributed.log(
                f"a step had {state.batch} comparisons and has {identity.batch} now; the learning "
                "rate follows the schedule of the new number of steps. "
                "--gradient_accumulation_steps or the batch size can keep both"
            )

    def prepare(self, ds_config: dict) -> None:
        """Make the state fit the number of ranks, before there is an engine; every rank calls it.

        States of ZeRO are in pieces, one a rank. For another number of ranks DeepSpeed's universal
        checkpoint (arXiv 2406.18820) is made out of them, and `ds_config` is told so, in place.

        Raises:
            InputError: the pieces are on several disks, or DeepSpeed cannot load what is in files.
        """
        if self.checkpoint is None:
            return

        zero, state = ds_config["zero_optimization"], self.checkpoint
        if zero.get("offload_optimizer", {}).get("device") == "nvme":
            # DeepSpeed 0.19 copies the files back, but does not tell the optimiser of them.
            raise InputError(
                f"{state.folder}: DeepSpeed cannot go on with optimiser states in files (device "
                "nvme in --deepspeed_config): begin anew in another --output_dir, or give "
                "--offload cpu"
            )

        self.load_folder, ranks = state.folder, distributed.world_size()
        if state.world_size == ranks or zero["stage"] == 0:
            return
        if self.args.use_node_local_storage:
            raise InputError(
                f"{state.folder} was written by {state.world_size} processes and this run has "
                f"{ranks}: the number must stay with --use_node_local_storage"
            )

        ds_config.setdefault("checkpoint", {})["load_universal"] = True
        self.load_folder = state.folder.parent / f"universal{PARTIAL}" / state.folder.name
        if distributed.is_main():
            distributed.log(f"the state of {state.world_size} processes is made ready for {ranks}")
            _write_universal(state.folder, self.load_folder, zero["stage"])
        distributed.barrier()

    def load(self, engine: "DeepSpeedEngine") -> None:
        """Load weights, optimiser, schedule and loss scale from what `prepare` made."""
        if self.checkpoint is None:
            return
        folder = self.load_folder
        assert folder, "prepare comes first"

        groups = [dict(group) for group in engine.optimizer.param_groups]
        with chdir(folder.parent):  # DeepSpeed takes the names of folders above for patterns
            path, _ = engine.load_checkpoint(".", tag=folder.name)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no training state in {folder}")
        distributed.barrier()

        if folder != self.checkpoint.folder:
            _repair_optimizer(engine, groups)
            if distributed.is_main():
                shutil.rmtree(folder.parent)
        distributed.log("weights (the head's too), optimiser and schedule are those of the state")


def _write_universal(state: Path, universal: Path, stage: int) -> None:
    shutil.rmtree(universal.parent, ignore_errors=True)
    root = state.parent  # as in Resume.load

    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", state.name]
    command += ["--output_folder", str(universal.relative_to(root))]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--inject_missing_state"] if stage < 3 else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)


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
