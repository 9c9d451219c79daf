"""What a run still has to compute: its micro-batches, counted and shown before the first runs."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

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
        left: the steps that are left.
        total_steps: steps of the whole run, with those that are done.
        identity: what a training state must share with the run.
        tokens: of an epoch, packed and padded.
    """

    left: TrainingPlan
    total_steps: int
    identity: RunIdentity
    tokens: dict[str, int]


class PlannedBatches:
    """The batches of a plan, one after the other; beside a GPU, the next ones are made meanwhile.

    Attributes:
        ahead: items that a thread makes while the ones before are used.

    Args:
        rows: data set of tokenised comparisons.
        plan: of micro-batches (evaluation_plan), or of steps, which are lists of them.
        collate: makes a batch of the rows and weights of a micro-batch.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        plan: Sequence[MicroBatch] | Sequence[list[MicroBatch]],
        collate: Collate,
    ):
        self.rows, self.plan, self.collate = rows, plan, collate
        self.ahead = 2 if torch.cuda.is_available() else 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator:
        if not self.ahead:
            yield from map(self._make, range(len(self)))
            return

        # A thread pins memory for GPU 0 where it is not told otherwise.
        device: dict[str, Any] = {}
        if torch.cuda.is_available():
            number = torch.cuda.current_device()
            device = {"initializer": torch.cuda.set_device, "initargs": (number,)}

        with ThreadPoolExecutor(max_workers=1, **device) as thread:
            waiting: deque[Future] = deque()
            for number in range(len(self)):
                waiting.append(thread.submit(self._make, number))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _make(self, number: int) -> Batch | list[Batch]:
        item = self.plan[number]
        if isinstance(item, MicroBatch):
            return self._batch(item)
        return [self._batch(part) for part in item]

    def _batch(self, part: MicroBatch) -> Batch:
        batch = self.collate(self.rows.__getitems__(part.rows), part.weights)
        return batch.pin_memory() if torch.cuda.is_available() else batch


def plan_run(
    args: TrainingSettings, data: TrainingData, progress: Progress, device: torch.device
) -> RunPlan:
    """Plan what is left of the epochs."""
    grouping = _grouping(args, data.train_sizes, args.per_device_train_batch_size)
    plan = partial(TrainingPlan, grouping, distributed.rank(), args.seed, mixture=data.mixture)

    left = plan(range(progress.epoch, args.num_train_epochs), progress.seen)
    total_steps = progress.step + len(left)
    if args.max_steps:
        total_steps = min(total_steps, max(args.max_steps, progress.step))

    tokens = _count_tokens(data.train_sizes, plan(range(1)), device)
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

    return RunPlan(left, total_steps, identity, tokens)


def plan_evaluation(
    args: TrainingSettings, data: TrainingData, collate: Collate
) -> tuple[Iterable[Batch], Sources]:
    """This rank's batches of an evaluation, and where their comparisons come from."""
    size = args.per_device_eval_batch_size
    grouping = _grouping(args, data.evaluation_sizes, size, accumulation=1)
    plan = evaluation_plan(grouping, distributed.rank(), args.eval_iters)
    sources = Sources.of(plan, data.evaluation["source"][:])
    return PlannedBatches(data.evaluation, plan, collate), sources


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
    distributed.log(f"global batch: {plan.identity.batch} comparisons, {plan.total_steps} steps")
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
    micro_batches = (part for step in epoch for part in step)
    padded = padded_tokens(micro_batches, sizes["answers"], sizes["length"])
    padded = int(distributed.sum_over_ranks(torch.tensor([padded], device=device)))
    packed = int(sizes["tokens"][epoch.order(0)].sum())
    distributed.log(
        f"an epoch has {packed:,} tokens packed; padded to the longest answer of each micro-batch "
        f"{padded:,}, {padded / packed:.1f} times as many"
    )
    return {"packed": packed, "padded": padded}
