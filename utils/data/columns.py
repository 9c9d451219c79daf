"""Answers of many comparisons as NumPy columns: one array a quantity, no loop over rows."""

from collections.abc import Iterator

import numpy as np

# Ordered pairs of answers that are looked at together: it bounds the memory.
MOST_PAIRS = 2**20


def ranked_pairs(
    counts: np.ndarray, key: np.ndarray, rank: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of different answers and ranks: comparison, better and worse answer, int64 [P] each.

    All pairs of a comparison come together; comparisons are numbers into [C], answers into [A].
    """
    for numbers, own in matrices(counts):
        first, second = np.triu_indices(own.shape[1], 1)
        first, second = own[:, first], own[:, second]
        gap = rank[first] - rank[second]
        pair = (gap != 0) & (key[first] != key[second])
        better, worse = np.where(gap < 0, first, second), np.where(gap < 0, second, first)
        comparison = np.broadcast_to(numbers[:, None], pair.shape)
        yield comparison[pair], better[pair], worse[pair]


def matrices(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Comparisons of one size at a time, int64 [n], and their answers, int64 [n, K]."""
    starts = np.cumsum(counts) - counts
    for count in np.flatnonzero(np.bincount(counts)).tolist():
        numbers = np.flatnonzero(counts == count)
        step = MOST_PAIRS // max(count**2, 1) + 1
        for begin in range(0, len(numbers), step):
            some = numbers[begin : begin + step]
            yield some, starts[some, None] + np.arange(count)


def places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """All of start, start + 1, ..., start + count - 1, one after the other: int64."""
    begins = np.cumsum(counts) - counts
    return (starts - begins).repeat(counts) + np.arange(counts.sum())


def mix(keys: np.ndarray) -> np.ndarray:
    """Spread keys evenly over 64 bits: the output function of SplitMix64 (Steele et al. 2014,
    doi 10.1145/2660193.2660195).

    Args:
        keys: uint64 [N].
    """
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys
