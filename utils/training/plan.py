"""What a run still has to compute: its micro-batches, counted and shown before the first runs."""

import json
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from utils import distributed
from utils.data.batching import Batch, Collate, load_batches
from utils.data.sampling import Grouping, TrainingPlan, evaluation_plan, padded_tokens
from utils.data.tokenization import ComparisonTokenizer
from utils.data.training_data import TrainingData
from utils.evaluation.scoring import Sources
from utils.settings import FREE, REFUSED, SIZE, Settings
from utils.training.checkpoint import Progress
from utils.training.settings import TrainingSettings


class RunPlan(NamedTuple):
    """The rest of a run on this rank.

    Attributes:
        batches: micro-batches, `gradient_accumulation_steps` of them a step.
        total_steps: steps of the whole run, with those that are done.
        epoch_size: comparisons of an epoch.
        batch_size: comparisons of a step over all ranks; their mean where they differ.
        run: what a training state must share with the run, by the names users know.
        step_size: comparisons of a step, or with a limit in tokens those.
        said: flags that may change, each with its value and what another one means.
        tokens: of an epoch, packed and padded.
    """

    batches: Iterable[Batch]
    total_steps: int
    epoch_size: int
    batch_size: float
    run: dict
    step_size: int
    said: dict[str, tuple]
    tokens: dict[str, int]

    def state(self) -> dict:
        """What training states are saved with of it: run, batch and flags of a Checkpoint."""
        flags = {name: value for name, (value, _) in self.said.items()}
        return {"run": self.run, "batch": self.step_size, "flags": flags}


def plan_run(
    args: TrainingSettings,
    data: TrainingData,
    collate: Collate,
    progress: Progress,
    device: torch.device,
) -> RunPlan:
    """Plan what is left of the epochs."""
    grouping = _grouping(args, data.train_sizes, args.per_device_train_batch_size)
    plan = partial(TrainingPlan, grouping, distributed.rank(), args.seed, mixture=data.mixture)
    left = plan(range(progress.epoch, args.num_train_epochs), progress.seen)
    total_steps = progress.step + left.steps
    if args.max_steps:
        total_steps = min(total_steps, max(args.max_steps, progress.step))
    epoch = plan(range(1))
    tokens = _count_tokens(data.train_sizes, epoch, device)
    size = step_size(args)
    batch_size: float = size
    if args.max_tokens_per_micro_batch:
        batch_size = round(epoch.epoch_size / epoch.steps, 1)
    run = identity_of(args) | {"training comparisons": len(data.train)}
    run["tokens in an epoch"] = tokens["packed"]
    run["weights"] = list(data.mixture.weights) if data.mixture else None

    _check_warmup(args, total_steps)
    return RunPlan(
        batches=load_batches(data.train, left, collate),
        total_steps=total_steps,
        epoch_size=epoch.epoch_size,
        batch_size=batch_size,
        run=run,
        step_size=size,
        said=said_of(args),
        tokens=tokens,
    )


def plan_evaluation(
    args: TrainingSettings, data: TrainingData, collate: Collate
) -> tuple[Iterable[Batch], Sources]:
    """This rank's batches of an evaluation, and where their comparisons come from."""
    size = args.per_device_eval_batch_size
    grouping = _grouping(args, data.evaluation_sizes, size, accumulation=1)
    plan = evaluation_plan(grouping, distributed.rank(), args.eval_iters)
    sources = Sources.of(plan, data.evaluation["source"][:])
    return load_batches(data.evaluation, plan, collate), sources


def show_plan(
    args: TrainingSettings,
    ds_config: dict,
    encoder: ComparisonTokenizer,
    data: TrainingData,
    plan: RunPlan,
    collate: Collate,
) -> None:
    """Print what a run would do, for --dry_run."""
    distributed.log(f"global batch: {plan.batch_size:g} comparisons, {plan.total_steps} steps")
    parts = {"arguments": args.flags(), "DeepSpeed": ds_config, "data": data.counts}
    for title, part in parts.items():
        distributed.log(f"{title}: {json.dumps(part, indent=2)}")
    rows = data.train.select(range(min(2, len(data.train)))).to_list()
    batch = collate(rows, [1.0] * len(rows))
    distributed.log(
        f"one batch, {args.batch_layout}, {batch.attention_mask.sum()} tokens, pairs (better, "
        f"worse) {batch.pairs.tolist()}:"
    )
    ends = encoder.tokenizer.batch_decode(batch.input_ids.flatten()[batch.end_index][:, None])
    sequences = [ids for row in rows for ids in row["input_ids"]]
    for number, (ids, end) in enumerate(zip(sequences, ends, strict=True)):
        text = encoder.tokenizer.decode(ids)
        distributed.log(f"[{number}] {len(ids)} tokens, scored at {end}: {text!r}")


def _grouping(args, sizes, batch_size: int, accumulation: int | None = None) -> Grouping:
    return Grouping.of(
        sizes,
        layout=args.batch_layout,
        batch_size=batch_size,
        accumulation=accumulation or args.gradient_accumulation_steps,
        world_size=distributed.world_size(),
        max_tokens=args.max_tokens_per_micro_batch,
    )


def step_size(args) -> int:
    """Comparisons of a step over all ranks, or with a limit in tokens these."""
    size = args.max_tokens_per_micro_batch or args.per_device_train_batch_size
    return size * args.gradient_accumulation_steps * distributed.world_size()


def _check_warmup(args, total_steps: int) -> None:
    if args.num_warmup_steps >= total_steps:
        distributed.log(
            f"!! --num_warmup_steps is {args.num_warmup_steps}, but the run has {total_steps} "
            "steps: the learning rate never comes to --learning_rate"
        )


def identity_of(args: Settings) -> dict:
    """What a run that goes on from a training state must share with it, by flag."""
    return {f"--{name}": value for name, value in args.flags(REFUSED).items()}


def said_of(args: TrainingSettings) -> dict[str, tuple]:
    """Flags that may change, each with its value and what another one means."""
    said = {
        f"--{entry.name}": (getattr(args, entry.name), entry.metadata["resume"])
        for entry in fields(args)
        if entry.metadata["resume"] not in (REFUSED, SIZE, FREE)
    }
    if path := args.deepspeed_config:  # its entries count, not its name
        _, meaning = said["--deepspeed_config"]
        said["--deepspeed_config"] = json.loads(Path(path).read_text(encoding="utf-8")), meaning
    return said


def _count_tokens(sizes: dict, epoch: TrainingPlan, device) -> dict[str, int]:
    """Tokens of the first epoch over all ranks, packed and with the same micro-batches padded."""
    padded = padded_tokens(epoch, sizes["answers"], sizes["length"])
    padded = int(distributed.sum_over_ranks(torch.tensor([padded], device=device)))
    packed = int(sizes["tokens"][epoch.order(0)].sum())
    distributed.log(
        f"an epoch has {packed:,} tokens packed; padded to the longest answer of each micro-batch "
        f"{padded:,}, {padded / packed:.1f} times as many"
    )
    return {"packed": packed, "padded": padded}
