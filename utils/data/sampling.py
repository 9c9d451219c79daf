"""Which comparisons each rank runs in each micro-batch: deterministic from seed and epoch."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from utils.settings import InputError


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
        max_tokens: the rows of a step run in as few micro-batches as have at most this many tokens
            each, instead of `accumulation` of `batch_size` rows; 0: they do not.

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
    def of(cls, rows: Mapping, layout: str, batch_size: int, **others: int) -> "Grouping":
        """For columns of tokenised comparisons (ComparisonTokenizer.rows), packed or padded."""
        packed = layout == "packed"
        sizes = np.asarray(rows["tokens" if packed else "length"][:])  # [:]: not row by row
        return cls(sizes, batch_size, packed=packed, **others)

    @property
    def step_size(self) -> int:
        """Rows of a step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    def __post_init__(self) -> None:
        if self.max_tokens and not self.packed:
            raise InputError(
                "--max_tokens_per_micro_batch goes with --batch_layout packed, but batches are "
                "padded: give --max_tokens_per_micro_batch 0"
            )
        if self.max_tokens and self.sizes.max() > self.max_tokens:
            raise InputError(
                f"--max_tokens_per_micro_batch is {self.max_tokens}, but a comparison has "
                f"{self.sizes.max()} tokens: give at least that, or a lower --max_seq_len"
            )


@dataclass(frozen=True)
class Mixture:
    """Sources of which an epoch draws shares instead of every row.

    An epoch is as long as it can be without drawing a row twice. Of a source that is too large for
    that, the epochs go through a permutation, one stretch after the other, until every row was
    drawn; then through another one.

    Attributes:
        parts: int64 arrays, the row numbers of each source.
        weights: the share of each source in an epoch; their sum does not matter.

    Raises:
        ValueError: a weight is not a positive number, or a source has no rows.
    """

    parts: Sequence[np.ndarray]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.weights) or not all(map(len, self.parts)):
            raise ValueError(f"{len(self.weights)} weights, rows: {[*map(len, self.parts)]}")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, not {self.weights}")

    @property
    def shares(self) -> list[Fraction]:
        """The weights, of sum 1; exact in decimals, so that 0.7 of 10 rows are 7."""
        weights = [Fraction(str(float(weight))) for weight in self.weights]
        return [weight / sum(weights) for weight in weights]

    @property
    def epoch_size(self) -> int:
        """Rows of an epoch."""
        sources = zip(self.parts, self.shares, strict=True)
        return min(int(len(rows) / share) for rows, share in sources)

    @property
    def counts(self) -> list[int]:
        """Rows of each source in an epoch: rounded so that they add up (largest remainders)."""
        quotas = [self.epoch_size * share for share in self.shares]
        counts = [int(quota) for quota in quotas]
        by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
        for source in by_remainder[: self.epoch_size - sum(counts)]:
            counts[source] += 1
        return counts

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch in a random order, as int64 [epoch_size]."""
        drawn = [
            _stretch(rows, count, epoch, seed, source)
            for source, (rows, count) in enumerate(zip(self.parts, self.counts, strict=True))
        ]
        return np.random.default_rng([seed, epoch]).permutation(np.concatenate(drawn))


class TrainingPlan(Sequence[list[MicroBatch]]):
    """The steps of a rank, from where a run stands to its end, each made when asked for.

    A step is a list of micro-batches, on every rank equally many. An epoch is every row once, or
    what a mixture draws, in global batches that a shuffle fixes: one a step. The rows of a step are
    dealt to its micro-batches, and these to the ranks in turn:

        epoch, shuffled     [ step 1       | step 2       | ...  | rest ]
                              |
        dealt by tokens,    longest row first, each to the micro-batch with the fewest tokens
                              |
        micro-batches         0: 900+130  1: 700+310  2: 600+420  3: 550+480    tokens of the rows
                              |           |           |           |
        2 ranks               rank 0      rank 1      rank 0      rank 1
        2 accumulation      [ first pass of both ]  [ second pass of both ]     then the optimiser

    The padded layout deals rows of similar length to a micro-batch instead.

    The weights make the sum of weighted losses of a rank, averaged over ranks (as DeepSpeed
    averages gradients), the mean over the rows of the global batch, also in the last, smaller one.
    Which rows form a global batch depends on their number alone, not on the number of ranks or of
    micro-batches.

    Attributes:
        epoch_size: rows of an epoch.

    Args:
        grouping: how rows are put together.
        rank: the rank that the plan is for.
        seed: of the shuffle.
        epochs: numbers of the epochs, counted from 0; each has its own order.
        start: rows of the first one's order that have trained already. After whole global
            batches, the rest does not depend on how often a run was cut.
        mixture: what an epoch draws; None: every row.
    """

    def __init__(
        self,
        grouping: Grouping,
        rank: int,
        seed: int,
        epochs: range,
        start: int = 0,
        *,
        mixture: Mixture | None = None,
    ):
        self.grouping, self.rank, self.seed = grouping, rank, seed
        self.epochs, self.start, self.mixture = epochs, start, mixture
        self.epoch_size = mixture.epoch_size if mixture else len(grouping.sizes)
        self._latest_rows = lru_cache(maxsize=1)(self._rows)
        # After how many steps each epoch ends.
        steps = [-(-(self.epoch_size - self._first(e)) // grouping.step_size) for e in epochs]
        self._ends = np.cumsum([0, *steps])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, step: int) -> list[MicroBatch]:  # type: ignore[override]  # no slices
        if not 0 <= step < len(self):
            raise IndexError(step)
        place = int(np.searchsorted(self._ends, step, side="right")) - 1
        start = (step - int(self._ends[place])) * self.grouping.step_size
        rows = self._latest_rows(self.epochs[place])[start : start + self.grouping.step_size]
        number = self.grouping.accumulation * self.grouping.world_size
        weight = self.grouping.world_size / len(rows)
        return _deal(rows, number, weight, self.grouping, self.rank)

    def within(self, max_tokens: int) -> "TrainingPlan":
        """The same steps with another limit in tokens."""
        grouping = replace(self.grouping, max_tokens=max_tokens)
        return TrainingPlan(
            grouping, self.rank, self.seed, self.epochs, self.start, mixture=self.mixture
        )

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order of the shuffle, as int64 [epoch_size]."""
        if self.mixture:
            return self.mixture.order(self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(self.epoch_size)

    def _first(self, epoch: int) -> int:
        return self.start if epoch == self.epochs[0] else 0

    def _rows(self, epoch: int) -> np.ndarray:
        return self.order(epoch)[self._first(epoch) :]


def evaluation_plan(grouping: Grouping, rank: int = 0, max_batches: int = 0) -> list[MicroBatch]:
    """One pass for evaluation: every row once, with weight 1.

    Args:
        grouping, rank: as of TrainingPlan.
        max_batches: on each rank as many rows as this many batches of `batch_size` have, of a fixed
            random sample; 0: all rows.
    """
    rows = np.arange(len(grouping.sizes))
    if max_batches:
        sample = max_batches * grouping.world_size * grouping.batch_size
        rows = np.random.default_rng(0).permutation(rows)[:sample]
    return _deal(rows, -(-len(rows) // grouping.batch_size), 1.0, grouping, rank)


def padded_tokens(plan: Iterable[MicroBatch], answers: np.ndarray, lengths: np.ndarray) -> int:
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


def _stretch(rows: np.ndarray, count: int, epoch: int, seed: int, source: int) -> np.ndarray:
    """`count` of the rows: the next ones of a permutation that several epochs go through."""
    if not count:
        return rows[:0]
    turn, place = divmod(epoch, -(-len(rows) // count))
    # NumPy takes [a, b] and [a, b, 0] for the same seed, and [seed, epoch] has its use.
    permuted = np.random.default_rng([seed, turn, source + 1]).permutation(rows)
    start = min(place * count, len(rows) - count)  # the last stretch is as long as the others
    return permuted[start : start + count]


def _deal(
    rows: np.ndarray, number: int, weight: float, grouping: Grouping, rank: int
) -> list[MicroBatch]:
    """A rank's part of the micro-batches that rows are dealt to.

    Args:
        rows: row numbers.
        number: of micro-batches over all ranks, where no limit in tokens decides.
        weight: of each row.
        grouping, rank: as of TrainingPlan.
    """
    rows = rows[np.argsort(grouping.sizes[rows], kind="stable")]
    if not grouping.packed:
        batches = np.array_split(rows, number)
    elif grouping.max_tokens:
        batches = _deal_within(rows, grouping)
    else:
        batches = _deal_evenly(rows, number, grouping.sizes, grouping.batch_size)

    # The same number on each rank; where rows ran out, the shortest one stands in.
    world_size = grouping.world_size
    filled = [batch for batch in batches if len(batch)]
    own = filled[rank::world_size]
    plan = [MicroBatch(batch.tolist(), [weight] * len(batch)) for batch in own]
    while len(plan) < -(-len(batches) // world_size):
        plan.append(MicroBatch([int(grouping.sizes.argmin())], [0.0]))
    return plan


def _deal_within(rows: np.ndarray, grouping: Grouping) -> list[np.ndarray]:
    """As few micro-batches as keep to the limit in tokens, on each rank equally many."""
    world_size, limit = grouping.world_size, grouping.max_tokens
    number = -(-int(grouping.sizes[rows].sum()) // limit)
    while True:
        number = world_size * -(-number // world_size)
        batches = _deal_evenly(rows, number, grouping.sizes, len(rows))
        if max(int(grouping.sizes[batch].sum()) for batch in batches) <= limit:
            return batches
        number += 1 + number // 100  # of many, a hundredth more


def _deal_evenly(rows: np.ndarray, number: int, sizes: np.ndarray, most: int) -> list[np.ndarray]:
    """Share rows out by tokens to `number` micro-batches of at most so many rows."""
    # The longest row that is left goes to the micro-batch with the fewest tokens.
    batches: list[list[int]] = [[] for _ in range(number)]
    loads = [(0, place) for place in range(number)]  # a heap
    rows = rows[::-1]
    for row, size in zip(rows.tolist(), sizes[rows].tolist(), strict=True):
        load, place = loads[0]
        batches[place].append(row)
        if len(batches[place]) < most:
            heapq.heapreplace(loads, (load + size, place))
        else:
            heapq.heappop(loads)
    return [np.asarray(batch, dtype=np.int64) for batch in batches]
