"""Answers of many comparisons as NumPy columns: one array a quantity, no loop over rows."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.data.comparison import mix

# Ordered pairs of answers that are looked at together: it bounds the memory.
MOST_PAIRS = 2**20


def read_answers(table: pa.Table, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Prompts and answers of some rows: prompt, answers, key and rank of Columns."""
    counts = pc.list_value_length(table["answer_keys"]).to_numpy().astype(np.int64)
    place = places((np.cumsum(counts) - counts)[numbers], counts[numbers])
    keys = pc.list_flatten(table["answer_keys"]).to_numpy()[place]
    ranks = pc.list_flatten(table["ranks"]).to_numpy()[place]
    prompts = table["prompt_key"].to_numpy()[numbers]
    return prompts, counts[numbers], mix(keys.view(np.uint64)), ranks


def read_kept_answers(table: pa.Table, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Kept answers of some rows: their numbers [C], their keys, ranks and tokens [A]."""
    counts = pc.list_value_length(table["answer_keys"]).to_numpy().astype(np.int64)
    kept = pc.list_value_length(table["answers"]).to_numpy().astype(np.int64)
    of_kept = places((np.cumsum(kept) - kept)[numbers], kept[numbers])
    of_all = pc.list_flatten(table["answers"]).to_numpy()[of_kept]
    of_all = of_all + (np.cumsum(counts) - counts)[numbers].repeat(kept[numbers])
    keys = pc.list_flatten(table["answer_keys"]).to_numpy()[of_all]
    ranks = pc.list_flatten(table["ranks"]).to_numpy()[of_all]
    tokens = pc.list_flatten(table["answer_tokens"]).to_numpy()[of_kept]
    return kept[numbers], keys, ranks, tokens


def ranked_pairs(counts, key, rank) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
    for count in np.flatnonzero(np.bincount(counts)):
        numbers = np.flatnonzero(counts == count)
        step = MOST_PAIRS // max(count**2, 1) + 1
        for begin in range(0, len(numbers), step):
            some = numbers[begin : begin + step]
            yield some, starts[some, None] + np.arange(count)


def places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """All of start, start + 1, ..., start + count - 1, one after the other: int64."""
    begins = np.cumsum(counts) - counts
    return (starts - begins).repeat(counts) + np.arange(counts.sum())


def run_starts(ordered: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin: int64 [runs]."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
