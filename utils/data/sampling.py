"""Which comparisons each rank runs in each micro-batch: deterministic from seed and epoch."""

from typing import NamedTuple

import numpy as np


class MicroBatch(NamedTuple):
    """The rows of one forward pass on one rank.

    Attributes:
        rows: row numbers.
        weights: the factor of each row in the loss; 0 for rows that only fill up a batch, so that
            all ranks run equally often and no comparison counts twice.
    """

    rows: list[int]
    weights: list[float]


def training_plan(
    lengths: np.ndarray,
    batch_size: int,
    accumulation: int,
    rank: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[list[MicroBatch]]:
    """One epoch: every row once, in global batches that a shuffle fixes.

    The weights make the sum of weighted losses, averaged over ranks and micro-batches (as
    DeepSpeed averages gradients), the mean over the rows of the global batch, also in the last,
    smaller one. Which rows form a global batch depends on its size alone, not on the number of
    ranks.

    Args:
        lengths: int [n], tokens of each row's longest sequence. Inside a global batch, rows of
            similar length run together, on all ranks at the same time.
        batch_size: rows in a micro-batch.
        accumulation: micro-batches in a step.
        rank: the rank that the plan is for.
        world_size: number of ranks.
        seed: of the shuffle.
        epoch: number of the epoch, counted from 0; each has its own order.

    Returns:
        For each step its `accumulation` micro-batches.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    size = batch_size * accumulation * world_size
    steps = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        weight = accumulation * world_size / len(rows)
        shares = _deal(rows, lengths, batch_size, accumulation * world_size, weight)
        steps.append(shares[rank::world_size])
    return steps


def evaluation_plan(
    lengths: np.ndarray, batch_size: int, rank: int, world_size: int, max_batches: int = 0
) -> list[MicroBatch]:
    """One pass for evaluation: every row once, with weight 1, sorted by length.

    Args:
        lengths, batch_size, rank, world_size: as in `training_plan`.
        max_batches: batches on each rank, of a fixed random sample of the rows; 0: all rows.
    """
    rows = np.arange(len(lengths))
    if max_batches:
        rows = np.random.default_rng(0).permutation(rows)[: max_batches * batch_size * world_size]
    batches = -(-len(rows) // (batch_size * world_size)) * world_size
    return _deal(rows, lengths, batch_size, batches, 1.0)[rank::world_size]


def _deal(rows, lengths, batch_size, batches, weight) -> list[MicroBatch]:
    """Sort rows by length into `batches` micro-batches, filled up with rows of weight 0."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    filler = np.repeat(rows[:1], batches * batch_size - len(rows))
    weights = np.concatenate([np.zeros(len(filler)), np.full(len(rows), weight)])
    rows = np.concatenate([filler, rows])
    return [
        MicroBatch(r.tolist(), w.tolist())
        for r, w in zip(np.split(rows, batches), np.split(weights, batches), strict=True)
    ]
