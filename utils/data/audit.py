"""Look at tokenised comparisons before they train: figures of each source, and what repeats.

Texts are compared by hashes of 64 bits, in bounded memory: among five million comparisons, two
different ones look alike with a probability below one in a million.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.data.cache import SCHEMA
from utils.data.columns import MOST_PAIRS, matrices, mix, places, ranked_pairs
from utils.data.figures import Figures
from utils.data.sides import Part, is_dropped
from utils.data.tokenization import MALFORMED, NOT_RENDERED, usable_reasons

NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Columns:
    """C comparisons with A answers.

    Attributes:
        prompt: int64 [C], a hash that equal prompts share.
        answers: int64 [C], the answers of each comparison, K.
        key: uint64 [A], a mixed hash of each answer; those of one comparison stand together.
        rank: int32 [A], lower is better.
    """

    prompt: np.ndarray
    answers: np.ndarray
    key: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Columns":
        """Of tokenised rows (cache.py)."""
        counts = pc.list_value_length(table["answer_keys"]).to_numpy().astype(np.int64)
        keys = pc.list_flatten(table["answer_keys"]).to_numpy().view(np.uint64)
        ranks = pc.list_flatten(table["ranks"]).to_numpy()
        return cls(table["prompt_key"].to_numpy(), counts, mix(keys), ranks)

    def take(self, numbers: np.ndarray) -> "Columns":
        """Some of the comparisons: int64 [n], counted from 0, in this order."""
        counts, starts = self.answers[numbers], np.cumsum(self.answers) - self.answers
        place = places(starts[numbers], counts)
        return Columns(self.prompt[numbers], counts, self.key[place], self.rank[place])


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

    def without(self, others: "Matches") -> "Matches":
        """Those whose row is not among the rows of others, which name the same sources."""
        own, theirs = ((one.path.astype(np.int64) << 40) + one.row for one in (self, others))
        left = ~np.isin(own, theirs)
        columns = (self.path, self.row, self.other_path, self.other_row)
        path, row, other_path, other_row = (column[left] for column in columns)
        return Matches(self.paths, path, row, self.other_paths, other_path, other_row)


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
        problems: reason -> what is wrong with each of these rows, where more than the reason is
            known.
        cut_rows: int64, the rows that were cut, counted from 1.
        unrendered: a part of the prompt that the chat template does not write -> int64, the rows
            that train without it, counted from 1.
    """

    path: str
    figures: Figures
    dropped_rows: dict[str, np.ndarray]
    problems: dict[str, list[str]]
    cut_rows: np.ndarray
    unrendered: dict[str, np.ndarray]


@dataclass(frozen=True)
class Audit:
    """What is in the data of a run.

    Attributes:
        sources: "training" and "evaluation" -> what is in each source.
        repeats: of all sources together, also among what is removed or dropped.
        left: the same among what trains and evaluates alone.
    """

    sources: dict[str, list[SourceAudit]]
    repeats: Repeats
    left: Repeats

    def total(self, side: str) -> Figures:
        """The figures of all sources of a side."""
        figures = Figures()
        for source in self.sources[side]:
            figures.merge(source.figures)
        return figures


def audit_sides(train: Sequence[Part], evaluation: Sequence[Part], ties: bool = False) -> Audit:
    """Look at all that trains and all that evaluates.

    Args:
        train, evaluation: parts of each side, of which repeats may be removed already. What a
            part that was held out drops is counted where it trains. Evaluated is what has no
            prompt that trains.
        ties: whether comparisons whose answers are all tied train.
    """
    repeats = left = _find_repeats(train, evaluation, _readable)
    if not all(np.array_equal(_readable(part), part.taken) for part in (*train, *evaluation)):
        left = _find_repeats(train, evaluation, lambda part: part.taken)
    trained = [_audit_source(part, part.taken, ties) for part in train]
    evaluated = [
        _audit_source(part, part.taken & ~np.isin(part.keys(), repeats.leaked_prompts))
        for part in evaluation
    ]
    return Audit({"training": trained, "evaluation": evaluated}, repeats, left)


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
    return _comparison_keys(Columns.of(table))


def _audit_source(part: Part, used: np.ndarray, ties: bool = False) -> SourceAudit:
    """The figures of a part; lengths, pairs and tokens: of the rows that are `used`, bool [n]."""
    table, index = part.table.data, part.table.data["index"].to_numpy() + 1
    seen = part.taken | part.removed if part.held_out else np.ones_like(used)
    reasons, sources = (count_values(table[name].filter(seen)) for name in ("dropped", "source"))
    for reason in usable_reasons(ties):
        del reasons[reason]
    figures = Figures(rows=int(np.count_nonzero(seen)), dropped=reasons, sources=sources)
    cut = table["cut"].to_numpy()
    is_cut = seen & (cut > 0)
    figures.cut.add(cut[is_cut])
    _add_tokens(figures, table, used)
    rows = {reason: index[seen & is_dropped(part.table, reason)] for reason in reasons}
    problems = {
        reason: table["problem"].filter(seen & is_dropped(part.table, reason)).to_pylist()
        for reason in (MALFORMED, NOT_RENDERED)
    }
    kept = seen & is_dropped(part.table, *usable_reasons(ties))
    parts = count_values(table["unrendered"].filter(kept))
    unrendered = {
        name: index[kept & pc.equal(table["unrendered"], name).to_numpy()] for name in parts if name
    }
    return SourceAudit(part.label, figures, rows, problems, index[is_cut], unrendered)


def _add_tokens(figures: Figures, table: pa.Table, used: np.ndarray) -> None:
    """Count the answers that are kept of some rows, bool [n], and their tokens."""
    counts, all_counts = (
        pc.list_value_length(table[name]).to_numpy()[used].astype(np.int64)
        for name in ("answers", "answer_keys")
    )
    kept, tokens, keys, ranks = (
        pc.list_flatten(table[name].filter(used)).to_numpy()
        for name in ("answers", "answer_tokens", "answer_keys", "ranks")
    )
    kept = kept + (np.cumsum(all_counts) - all_counts).repeat(counts)
    prompts, shared, packed = (
        table[name].to_numpy()[used].astype(np.int64)
        for name in ("prompt_tokens", "shared", "tokens")
    )
    figures.packed = int(packed.sum())
    figures.separate = figures.packed + int(shared @ (counts - 1))
    figures.lengths["prompt"].add(prompts)
    figures.lengths["sequence"].add(prompts.repeat(counts) + tokens)
    for comparison, better, worse in ranked_pairs(counts, keys[kept], ranks[kept]):
        figures.add_pairs(comparison, tokens[better], tokens[worse])


class _Side:
    """Comparisons of one side, one source after the other.

    Args:
        parts: of the side.
        rows: which rows of a part count, bool [n].

    Attributes:
        paths: of the sources.
        ends: int64, how many comparisons there are up to the end of each source.
        row: int64 [C], their rows in the source, counted from 1.
        used: bool [C], whether they train or evaluate, or would if they were not removed.
        columns: what they are.
    """

    NAMES = ("index", "prompt_key", "answer_keys", "ranks")
    EMPTY = pa.schema([*map(SCHEMA.field, NAMES), ("used", pa.bool_())]).empty_table()

    def __init__(self, parts: Sequence[Part], rows: Callable[[Part], np.ndarray]):
        tables = [self._read(part, rows(part)) for part in parts]
        table = pa.concat_tables([self.EMPTY, *tables])
        self.paths = [part.label for part in parts]
        self.ends = np.cumsum(list(map(len, tables)))
        self.row = table["index"].to_numpy() + 1
        self.used = table["used"].to_numpy()
        self.columns = Columns.of(table)

    def _read(self, part: Part, rows: np.ndarray) -> pa.Table:
        columns = {name: part.table.data[name].filter(rows) for name in self.NAMES}
        return pa.table({**columns, "used": (part.taken | part.removed)[rows]})


def _readable(part: Part) -> np.ndarray:
    """What a side takes or removes, and, once, what could be read but is dropped: bool [n]."""
    rows = part.taken | part.removed
    return rows if part.held_out else rows | ~is_dropped(part.table, "", MALFORMED)


def _find_repeats(
    train: Sequence[Part], evaluation: Sequence[Part], rows: Callable[[Part], np.ndarray]
) -> Repeats:
    sides = {"training": _Side(train, rows), "evaluation": _Side(evaluation, rows)}
    return Repeats(
        {name: _find_duplicates(side) for name, side in sides.items()},
        {name: _find_contradictions(side) for name, side in sides.items()},
        *_find_leaks(*sides.values()),
    )


def _match(side: _Side, place: np.ndarray, other_side: _Side, other: np.ndarray) -> Matches:
    """Name comparisons, int64 [M], and those that they match, by source and row."""
    return Matches(
        side.paths,
        np.searchsorted(side.ends, place, side="right"),
        side.row[place],
        other_side.paths,
        np.searchsorted(other_side.ends, other, side="right"),
        other_side.row[other],
    )


def _find_leaks(train: _Side, evaluation: _Side) -> tuple[Matches, np.ndarray]:
    """Comparisons to evaluate whose prompt is trained, and these prompts."""
    trained, judged = np.flatnonzero(train.used), np.flatnonzero(evaluation.used)
    own = evaluation.columns.prompt[judged]
    prompts, first, _ = np.intersect1d(train.columns.prompt[trained], own, return_indices=True)
    leaks = np.isin(own, prompts)
    first_trained = trained[first[np.searchsorted(prompts, own[leaks])]]
    return _match(evaluation, judged[leaks], train, first_trained), prompts


def _find_duplicates(side: _Side) -> Matches:
    first = _first_equal(_comparison_keys(side.columns))
    repeats = np.flatnonzero(first != np.arange(len(first)))
    return _match(side, repeats, side, first[repeats])


def _find_contradictions(side: _Side) -> Matches:
    """Prompts that occur once are passed over, unless a comparison may contradict itself."""
    prompt, answers = side.columns.prompt, side.columns.answers
    _, group, sizes = np.unique(prompt, return_inverse=True, return_counts=True)
    numbers = np.flatnonzero((sizes[group] > 1) | (answers > 2))
    # All comparisons of a prompt are in one portion.
    work = np.bincount(group[numbers], answers[numbers] ** 2, minlength=len(sizes))
    portion = (np.cumsum(work) // MOST_PAIRS)[group[numbers]]
    order = np.argsort(portion, kind="stable")
    other = np.full(len(prompt), NOWHERE)
    for some in np.split(numbers[order], np.flatnonzero(np.diff(portion[order])) + 1):
        place, first = _find_opposites(side.columns.take(some))
        other[some[place]] = some[first]
    place = np.flatnonzero(other < NOWHERE)
    return _match(side, place, side, other[place])


def _find_opposites(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Comparisons that rank two answers otherwise than others do, and the first of these."""
    pairs = map(np.stack, ranked_pairs(columns.answers, columns.key, columns.rank))
    comparison, better, worse = np.concatenate([np.empty((3, 0), np.int64), *pairs], axis=1)
    better, worse = columns.key[better], columns.key[worse]
    key = mix(mix(np.minimum(better, worse)) + np.maximum(better, worse))
    key = mix(key + columns.prompt.view(np.uint64)[comparison])
    # Two answers of a prompt can be ranked in two ways: 2 n and 2 n + 1.
    ranking = 2 * np.unique(key, return_inverse=True)[1] + (better < worse)
    first = _least(ranking, comparison, 2 * len(key))
    other = _least(comparison, first[ranking ^ 1], len(columns.prompt))
    place = np.flatnonzero(other < NOWHERE)
    return place, other[place]


def _least(groups: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """The least value in each of a number of groups, NOWHERE in an empty one: int64 [number]."""
    least = np.full(number, NOWHERE)
    np.minimum.at(least, groups, values)
    return least


def _first_equal(keys: np.ndarray) -> np.ndarray:
    """For each entry, the first that is equal to it: int64 [n]."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first[group]


def _comparison_keys(columns: Columns) -> np.ndarray:
    """uint64 [C], as `comparison_keys`: a sum does not depend on the order of the answers."""
    keys = mix(columns.prompt.view(np.uint64))
    for numbers, own in matrices(columns.answers):
        ranks = columns.rank[own]
        better = np.count_nonzero(ranks[:, None, :] < ranks[:, :, None], axis=2)
        answers = mix(columns.key[own] + better.astype(np.uint64))
        keys[numbers] = mix(keys[numbers] + answers.sum(axis=1, dtype=np.uint64))
    return keys
