"""Which comparisons each rank runs in each micro-batch: deterministic from seed and epoch."""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.arguments import InputError


class MicroBatch(NamedTuple):
    """The rows of one forward pass on one rank.

    Attributes:
        rows: row numbers.
        weights: the factor of each row in the loss; 0 for a row that only stands in for an empty
            micro-batch, so that all ranks run equally often and no comparison counts twice.
    """

    rows: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Grouping:
    """How rows are put together.

    Attributes:
        sizes: int [n], tokens of each row: in the packed layout all that are computed, in the
            padded one those of its longest sequence.
        batch_size: rows in a micro-batch.
        accumulation: micro-batches of a rank in a step.
        world_size: number of ranks.
        packed: whether micro-batches get equal sums of tokens; else rows of similar length run
            together, on all ranks at the same time, so that little is padded.
        max_tokens: fill micro-batches with as many rows as have this many tokens together,
            instead of `batch_size`; 0: do not.

    Raises:
        InputError: `max_tokens` with the padded layout, or lower than a row's size.
    """

    sizes: np.ndarray
    batch_size: int
    accumulation: int = 1
    world_size: int = 1
    packed: bool = False
    max_tokens: int = 0

    @classmethod
    def of(cls, rows, layout: str, batch_size: int, **others) -> "Grouping":
        """For tokenised comparisons (ComparisonTokenizer.rows) in a layout, packed or padded."""
        packed = layout == "packed"
        sizes = np.asarray(rows["tokens" if packed else "length"])
        return cls(sizes, batch_size, packed=packed, **others)

    def __post_init__(self):
        if self.max_tokens and not self.packed:
            raise InputError(
                "--max_tokens_per_micro_batch goes with --batch_layout packed, but batches are "
                "padded: give --per_device_train_batch_size instead"
            )
        if self.max_tokens and self.sizes.max() > self.max_tokens:
            raise InputError(
                f"--max_tokens_per_micro_batch is {self.max_tokens}, but a comparison has "
                f"{self.sizes.max()} tokens: give at least that, or a lower --max_seq_len"
            )


def training_plan(
    grouping: Grouping, rank: int, seed: int, epoch: int, start: int = 0
) -> list[list[MicroBatch]]:
    """One epoch, or its rest: every row once, in global batches that a shuffle fixes.

    The weights make the sum of weighted losses, averaged over ranks and micro-batches (as
    DeepSpeed averages gradients), the mean over the rows of the global batch, also in the last,
    smaller one. Which rows form a global batch depends on the number of its micro-batches alone,
    not on the number of ranks.

    Args:
        grouping: how rows are put together.
        rank: the rank that the plan is for.
        seed: of the shuffle.
        epoch: number of the epoch, counted from 0; each has its own order.
        start: rows of this order that have trained already. After whole global batches, the rest
            does not depend on how often a run was cut.

    Returns:
        For each step its `accumulation` micro-batches.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(grouping.sizes))[start:]
    number = grouping.accumulation * grouping.world_size  # of micro-batches in a step
    if grouping.max_tokens:
        filled = list(_fill(order, grouping))
        steps = [filled[start : start + number] for start in range(0, len(filled), number)]
    else:
        size = grouping.batch_size * number
        steps = [
            _deal(order[start : start + size], number, grouping)
            for start in range(0, len(order), size)
        ]
    return [
        _micro_batches(step, number, number / sum(map(len, step)), grouping)[
            rank :: grouping.world_size
        ]
        for step in steps
    ]


def evaluation_plan(grouping: Grouping, rank: int = 0, max_batches: int = 0) -> list[MicroBatch]:
    """One pass for evaluation: every row once, with weight 1.

    Args:
        grouping, rank: as in `training_plan`.
        max_batches: batches on each rank, of a fixed random sample of the rows; 0: all rows.
    """
    rows = np.argsort(grouping.sizes, kind="stable")
    limit = max_batches * grouping.world_size
    if max_batches:
        rows = np.random.default_rng(0).permutation(len(grouping.sizes))
    if grouping.max_tokens:
        batches = list(_fill(rows, grouping))[: limit or None]
    else:
        rows = rows[: limit * grouping.batch_size or None]
        batches = _deal(rows, -(-len(rows) // grouping.batch_size), grouping)
    number = -(-len(batches) // grouping.world_size) * grouping.world_size
    return _micro_batches(batches, number, 1.0, grouping)[rank :: grouping.world_size]


def padded_tokens(plan: list[MicroBatch], answers: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of a plan if each micro-batch were padded to its longest sequence.

    Args:
        plan: micro-batches.
        answers: int [n], answers of each row.
        lengths: int [n], tokens of the longest of them.
    """
    return sum(
        int(answers[rows].sum() * lengths[rows].max())
        for rows, weights in plan
        if weights[0]  # not what only stands in
    )


def _fill(rows: np.ndarray, grouping: Grouping):
    """Cut rows, in their order, into micro-batches of at most `max_tokens`."""
    ends = grouping.sizes[rows].cumsum()
    start = 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + grouping.max_tokens, side="right"))
        yield rows[start:stop]
        start = stop


def _deal(rows: np.ndarray, number: int, grouping: Grouping) -> list[np.ndarray]:
    """Share rows out to `number` micro-batches: evenly by tokens, or sorted by length."""
    rows = rows[np.argsort(grouping.sizes[rows], kind="stable")]
    if not grouping.packed:
        return np.array_split(rows, number)
    # The longest row that is left goes to the micro-batch with the fewest tokens.
    batches: list[list[int]] = [[] for _ in range(number)]
    loads = [(0, place) for place in range(number)]
    for row in rows[::-1]:
        load, place = heapq.heappop(loads)
        batches[place].append(row)
        if len(batches[place]) < grouping.batch_size:
            heapq.heappush(loads, (load + int(grouping.sizes[row]), place))
    return [np.asarray(batch, dtype=np.int64) for batch in batches]


def _micro_batches(batches, number: int, weight: float, grouping: Grouping) -> list[MicroBatch]:
    """`number` micro-batches; where there are no rows for one, the shortest row stands in."""
    filler = MicroBatch([int(grouping.sizes.argmin())], [0.0])
    filled = [MicroBatch(rows.tolist(), [weight] * len(rows)) for rows in batches if len(rows)]
    return filled + [filler] * (number - len(filled))
