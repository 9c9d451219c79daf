"""Look at tokenised comparisons before they train: figures of each source, and what repeats.

Texts are compared by hashes of 64 bits, in bounded memory: among five million comparisons, two
different ones look alike with a probability below one in a million.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.data.columns import (
    MOST_PAIRS,
    matrices,
    mix,
    places,
    ranked_pairs,
    run_starts,
)
from utils.data.figures import Figures
from utils.data.sides import Part
from utils.data.tokenization import MALFORMED, usable_reasons

COLUMN_TYPES = {
    "row": np.int64,
    "prompt": np.int64,
    "answers": np.int64,
    "key": np.uint64,
    "rank": np.int32,
    "used": bool,
}
NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Columns:
    """C comparisons that could be read, with A answers.

    Attributes:
        row: int64 [C], their rows in the source, counted from 1.
        prompt: int64 [C], a hash that equal prompts share.
        answers: int64 [C], the answers of each comparison, K.
        key: uint64 [A], a mixed hash of each answer; those of one comparison stand together.
        rank: int32 [A], lower is better.
        used: bool [C], whether they train or evaluate.
    """

    row: np.ndarray
    prompt: np.ndarray
    answers: np.ndarray
    key: np.ndarray
    rank: np.ndarray
    used: np.ndarray

    def take(self, numbers: np.ndarray) -> "Columns":
        """Some of the comparisons: int64 [n], counted from 0, in this order."""
        counts, starts = self.answers[numbers], np.cumsum(self.answers) - self.answers
        place = places(starts[numbers], counts)
        row, prompt, used = (column[numbers] for column in (self.row, self.prompt, self.used))
        return Columns(row, prompt, counts, self.key[place], self.rank[place], used)


class Matches(NamedTuple):
    """M rows, each with another row that it repeats, contradicts or shares its prompt with.

    Attributes:
        paths, other_paths: names of sources.
        path, other_path: int64 [M], which of them the rows are in.
        row, other_row: int64 [M], rows of these sources, counted from 1.
    """

    paths: list[str]
    path: np.ndarray
    row: np.ndarray
    other_paths: list[str]
    other_path: np.ndarray
    other_row: np.ndarray


@dataclass(frozen=True)
class Repeats:
    """What only shows when all sources are looked at together.

    Attributes:
        duplicates: "training" and "evaluation" -> comparisons with the prompt, the answers and the
            ranking of an earlier one, with the first one; also those that are dropped.
        contradictions: likewise, comparisons with two answers that a comparison of the same prompt
            ranks the other way round, with the first such one.
        leaks: comparisons to evaluate whose prompt is trained, with the first one that trains it.
        leaked_prompts: int64, different prompts of these.
    """

    duplicates: dict[str, Matches]
    contradictions: dict[str, Matches]
    leaks: Matches
    leaked_prompts: np.ndarray


@dataclass(frozen=True)
class SourceAudit:
    """What is in one source.

    Attributes:
        path: of the source, and which part.
        figures: of its rows.
        dropped_rows: reason -> int64, the rows that cannot train for it, counted from 1.
        problems: of the malformed rows, in their order.
        cut_rows: int64, the rows that were cut, counted from 1.
    """

    path: str
    figures: Figures
    dropped_rows: dict[str, np.ndarray]
    problems: list[str]
    cut_rows: np.ndarray


@dataclass(frozen=True)
class Audit:
    """What is in the data of a run.

    Attributes:
        sources: "training" and "evaluation" -> what is in each source.
        repeats: of all sources together.
    """

    sources: dict[str, list[SourceAudit]]
    repeats: Repeats

    def total(self, side: str) -> Figures:
        """The figures of all sources of a side."""
        figures = Figures()
        for source in self.sources[side]:
            figures.merge(source.figures)
        return figures


def audit_sides(train: Sequence[Part], evaluation: Sequence[Part], ties: bool = False) -> Audit:
    """Look at all that trains and all that evaluates.

    Args:
        train, evaluation: parts of each side. What a part that was held out drops is counted
            where it trains. Evaluated is what has no prompt that trains.
        ties: whether comparisons whose answers are all tied train.
    """
    repeats = _find_repeats(train, evaluation)
    trained = [_audit_source(part, part.taken, ties) for part in train]
    evaluated = []
    for part in evaluation:
        stays = part.taken & ~np.isin(part.keys(), repeats.leaked_prompts)
        evaluated.append(_audit_source(part, stays))
    return Audit({"training": trained, "evaluation": evaluated}, repeats)


def count_values(column: pa.ChunkedArray) -> Counter:
    """How often each value occurs."""
    return Counter({one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()})


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """Which entries are the first of those that are equal to them.

    Args:
        keys: int64 or uint64 [n].

    Returns:
        bool [n].
    """
    return _first_equal(keys) == np.arange(len(keys))


def comparison_keys(table: pa.Table) -> np.ndarray:
    """Hashes that are equal where prompt, answers and their ranking are; the order is free.

    Malformed rows have keys, too: leave them out before looking for the first of each.

    Args:
        table: tokenised rows.

    Returns:
        uint64 [n].
    """
    return _comparison_keys(*_read_answers(table, np.arange(table.num_rows)))


def _audit_source(part: Part, used: np.ndarray, ties: bool = False) -> SourceAudit:
    """The figures of a part; lengths, pairs and tokens: of the rows that are `used`, bool [n]."""
    table, numbers = part.table.data, np.flatnonzero(used)
    seen = part.taken if part.held_out else np.ones_like(used)
    reasons = count_values(table["dropped"].filter(pa.array(seen)))
    for reason in usable_reasons(ties):
        del reasons[reason]
    sources = count_values(table["source"].filter(pa.array(seen)))
    figures = Figures(rows=int(np.count_nonzero(seen)), dropped=reasons, sources=sources)
    cut = table["cut"].to_numpy()
    is_cut = seen & (cut > 0)
    figures.cut.add(cut[is_cut])
    _add_tokens(figures, table, numbers)
    masks = {reason: pc.equal(table["dropped"], reason).to_numpy() & seen for reason in reasons}
    index = table["index"].to_numpy() + 1
    rows = {reason: index[mask] for reason, mask in masks.items()}
    malformed = pa.array(masks.get(MALFORMED, np.zeros_like(seen)))
    problems = table["problem"].filter(malformed).to_pylist()
    return SourceAudit(part.label, figures, rows, problems, index[is_cut])


def _add_tokens(figures: Figures, table: pa.Table, numbers: np.ndarray) -> None:
    """Count the answers that are kept of some rows, int64 [C] counted from 0, and their tokens."""
    counts, key, rank, tokens = _read_kept_answers(table, numbers)
    shared = table["shared"].to_numpy()[numbers].astype(np.int64)
    figures.packed = int(table["tokens"].to_numpy()[numbers].sum(dtype=np.int64))
    figures.separate = figures.packed + int(shared @ (counts - 1))
    prompts = table["prompt_tokens"].to_numpy()[numbers]
    figures.lengths["prompt"].add(prompts)
    figures.lengths["sequence"].add(prompts.repeat(counts) + tokens)
    for comparison, better, worse in ranked_pairs(counts, key, rank):
        figures.add_pairs(comparison, tokens[better], tokens[worse])


def _find_repeats(train: Sequence[Part], evaluation: Sequence[Part]) -> Repeats:
    sides = {"training": _Side(train), "evaluation": _Side(evaluation)}
    learnt, judged = (
        (np.flatnonzero(side.columns.used), side.columns.prompt) for side in sides.values()
    )
    trained = learnt[0][np.isin(learnt[1][learnt[0]], judged[1][judged[0]])]
    prompts, first = np.unique(learnt[1][trained], return_index=True)
    leaks = judged[0][np.isin(judged[1][judged[0]], prompts)]
    first_trained = trained[first[np.searchsorted(prompts, judged[1][leaks])]]
    return Repeats(
        {name: _find_duplicates(side) for name, side in sides.items()},
        {name: _find_contradictions(side) for name, side in sides.items()},
        _match(sides["evaluation"], leaks, sides["training"], first_trained),
        prompts,
    )


class _Side:
    """All comparisons of one side, one source after the other."""

    def __init__(self, parts: Sequence[Part]):
        columns = list(map(_read_columns, parts))
        self.paths = [part.label for part in parts]
        self.ends = np.cumsum([len(one.row) for one in columns])
        self.columns = columns[0] if len(columns) == 1 else _join(columns)


def _join(parts: Sequence[Columns]) -> Columns:
    columns = (
        np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])
        for name, dtype in COLUMN_TYPES.items()
    )
    return Columns(*columns)


def _match(side: _Side, place: np.ndarray, other_side: _Side, other: np.ndarray) -> Matches:
    """Name comparisons, int64 [M], and those that they match, by source and row."""
    return Matches(
        side.paths,
        np.searchsorted(side.ends, place, side="right"),
        side.columns.row[place],
        other_side.paths,
        np.searchsorted(other_side.ends, other, side="right"),
        other_side.columns.row[other],
    )


def _find_duplicates(side: _Side) -> Matches:
    columns = side.columns
    keys = _comparison_keys(columns.prompt, columns.answers, columns.key, columns.rank)
    first = _first_equal(keys)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    return _match(side, repeats, side, first[repeats])


def _find_contradictions(side: _Side) -> Matches:
    """Prompts that occur once are passed over, unless a comparison may contradict itself."""
    columns = side.columns
    order = np.argsort(columns.prompt)
    starts = run_starts(columns.prompt[order])
    sizes = np.diff(starts, append=len(order))
    order = order[(sizes > 1).repeat(sizes) | (columns.answers[order] > 2)]
    # All comparisons of a prompt stand together, and stay so in one portion.
    starts = run_starts(columns.prompt[order])
    work = np.cumsum(columns.answers[order] ** 2)[starts] // MOST_PAIRS
    found = [np.empty((2, 0), dtype=np.int64)]
    for portion in np.split(order, starts[1:][np.diff(work) > 0]):
        portion = np.sort(portion)
        found.append(portion[_find_opposites(columns.take(portion))])
    place, other = np.concatenate(found, axis=1)
    by_place = np.argsort(place)
    return _match(side, place[by_place], side, other[by_place])


def _find_opposites(columns: Columns) -> np.ndarray:
    """Comparisons that rank two answers otherwise than the first that does so: int64 [2, M]."""
    pairs = map(np.stack, ranked_pairs(columns.answers, columns.key, columns.rank))
    comparison, better, worse = np.concatenate([np.empty((3, 0), np.int64), *pairs], axis=1)
    better, worse = columns.key[better], columns.key[worse]
    key = mix(mix(np.minimum(better, worse)) + np.maximum(better, worse))
    key = mix(key + columns.prompt.view(np.uint64)[comparison])
    order = np.argsort(key)
    starts = run_starts(key[order])
    group = np.arange(len(starts)).repeat(np.diff(starts, append=len(order)))
    comparison, up = comparison[order], (better < worse)[order]
    first_up = np.minimum.reduceat(np.where(up, comparison, NOWHERE), starts)[group]
    first_down = np.minimum.reduceat(np.where(up, NOWHERE, comparison), starts)[group]
    other = np.where(up, first_down, first_up)
    comparison, other = comparison[other < NOWHERE], other[other < NOWHERE]
    by_other = np.lexsort((other, comparison))
    return np.stack([comparison, other])[:, by_other[run_starts(comparison[by_other])]]


def _first_equal(keys: np.ndarray) -> np.ndarray:
    """For each entry, the first that is equal to it: int64 [n]."""
    order = np.argsort(keys, kind="stable")
    starts = run_starts(keys[order])
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[starts].repeat(np.diff(starts, append=len(keys)))
    return first


def _comparison_keys(prompt, counts, key, rank) -> np.ndarray:
    """uint64 [C], as `comparison_keys`: a sum does not depend on the order of the answers."""
    keys = mix(prompt.view(np.uint64))
    for numbers, own in matrices(counts):
        ranks = rank[own]
        better = np.count_nonzero(ranks[:, None, :] < ranks[:, :, None], axis=2)
        answers = mix(key[own] + better.astype(np.uint64))
        keys[numbers] = mix(keys[numbers] + answers.sum(axis=1, dtype=np.uint64))
    return keys


def _read_columns(part: Part) -> Columns:
    """What a side takes, and, once, what could be read but is dropped."""
    table, readable = part.table.data, part.taken
    if not part.held_out:
        other = pc.is_in(table["dropped"], pa.array(["", MALFORMED])).to_numpy()
        readable = part.taken | ~other
    numbers = np.flatnonzero(readable)
    row = table["index"].to_numpy()[numbers] + 1
    return Columns(row, *_read_answers(table, numbers), part.taken[numbers])


def _read_answers(table: pa.Table, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Prompts and answers of some rows: prompt, answers, key and rank of Columns."""
    counts = pc.list_value_length(table["answer_keys"]).to_numpy().astype(np.int64)
    place = places((np.cumsum(counts) - counts)[numbers], counts[numbers])
    keys = pc.list_flatten(table["answer_keys"]).to_numpy()[place]
    ranks = pc.list_flatten(table["ranks"]).to_numpy()[place]
    prompts = table["prompt_key"].to_numpy()[numbers]
    return prompts, counts[numbers], mix(keys.view(np.uint64)), ranks


def _read_kept_answers(table: pa.Table, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
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
