"""What a run still has to compute: its micro-batches, counted and shown before the first runs."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import datasets
import torch

from utils import distributed
from utils.data.batch import Batch, Collate
from utils.data.row_selection import TrainingData
from utils.data.sampling import (
    Grouping,
    MicroBatch,
    TrainingPlan,
    evaluation_plan,
    padded_tokens,
)
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.scoring import Sources
from utils.training.checkpoint import Progress
from utils.training.resume import RunIdentity
from utils.training.settings import TrainingSettings


class RunPlan(NamedTuple):
    """The rest of a run on this rank.

    Attributes:
        batches: micro-batches, `gradient_accumulation_steps` of them a step.
        total_steps: steps of the whole run, with those that are done.
        epoch_size: comparisons of an epoch.
        batch_size: comparisons of a step over all ranks; their mean where they differ.
        identity: what a training state must share with the run.
        tokens: of an epoch, packed and padded.
    """

    batches: Iterable[Batch]
    total_steps: int
    epoch_size: int
    batch_size: float
    identity: RunIdentity
    tokens: dict[str, int]


class PlannedBatches(torch.utils.data.Dataset):
    """A map-style data set whose i-th item is the batch of the i-th micro-batch of a plan.

    Args:
        rows: data set of tokenised comparisons.
        plan: micro-batches (sampling.py).
        collate: makes a batch of the rows and weights of one.
    """

    def __init__(self, rows: datasets.Dataset, plan: Sequence[MicroBatch], collate: Collate):
        self.rows, self.plan, self.collate = rows, plan, collate

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        micro_batch = self.plan[number]
        return self.collate(self.rows.__getitems__(micro_batch.rows), micro_batch.weights)


def load_batches(
    rows: datasets.Dataset, plan: Sequence[MicroBatch], collate: Collate
) -> torch.utils.data.DataLoader:
    """Batches in the order of a plan; the arguments are those of PlannedBatches."""
    return torch.utils.data.DataLoader(PlannedBatches(rows, plan, collate), batch_size=None)


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
    identity = RunIdentity.of(
        args,
        {
            "training comparisons": len(data.train),
            "tokens in an epoch": tokens["packed"],
            "weights": list(data.mixture.weights) if data.mixture else None,
        },
    )

    if args.num_warmup_steps >= total_steps:
        distributed.log(
            f"!! --num_warmup_steps is {args.num_warmup_steps}, but the run has {total_steps} "
            "steps: the learning rate never comes to --learning_rate"
        )

    by_tokens = args.max_tokens_per_micro_batch
    return RunPlan(
        batches=load_batches(data.train, left, collate),
        total_steps=total_steps,
        epoch_size=epoch.epoch_size,
        batch_size=round(epoch.epoch_size / epoch.steps, 1) if by_tokens else identity.batch,
        identity=identity,
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
    data: TrainingData,
    plan: RunPlan,
    encoder: ComparisonTokenizer,
    *,
    ds_config: dict,
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
