"""Records of scores.jsonl as tables: comparisons, their answers and their pairs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from sys import intern
from typing import NamedTuple

import numpy as np
import pandas as pd

# Ordered pairs of answers, K * K a comparison, that are looked at together: it bounds the memory.
PAIRS_AT_ONCE = 2**18


class ScoreTables(NamedTuple):
    """Comparisons, their scored answers and their pairs; all three in the same order.

    Attributes:
        comparisons: `source`; `prompt`, a key that equal prompts share; `answers`, `scored` and
            `pairs`, how many of each there are; how well scores order the answers, NaN where there
            is no pair: `kendall_tau`, tau-b of scores with ranks, NaN also where all scores are
            equal; `best_of_k` and `best_of_k_chance`, whether the highest score is on a best-ranked
            answer, and how probable that is for a random answer; `mrr`, the reciprocal of the
            place that the first best-ranked answer has in the order of the scores. Equal scores
            are as if chance ordered them: `best_of_k` and `mrr` are expectations.
        answers: `score`; `length` in tokens.
        pairs: scores of the `better` and the `worse` answer; `length_gap`, tokens of the better
            minus tokens of the worse one; `votes`, the share of the votes that the better one has,
            NaN without votes.
    """

    comparisons: pd.DataFrame
    answers: pd.DataFrame
    pairs: pd.DataFrame

    @classmethod
    def concatenate(cls, parts: Sequence["ScoreTables"]) -> "ScoreTables":
        """All parts, one after the other."""
        return cls(*(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)))

    def by_source(self) -> Iterator[tuple[str, "ScoreTables"]]:
        """Each source and the tables of it alone, sorted by name."""
        numbers, names = pd.factorize(self.comparisons.source, sort=True)
        counts = (1, self.comparisons.scored, self.comparisons.pairs)
        places = [
            table.groupby(numbers.repeat(count)).indices
            for table, count in zip(self, counts, strict=True)
        ]

        for number, name in enumerate(names):
            own = zip(self, places, strict=True)
            yield name, ScoreTables(*(table.iloc[place.get(number, [])] for table, place in own))


def portions(records: Sequence[dict]) -> Iterator[Sequence[dict]]:
    """Split records, so that the pairs of each part fit into memory."""
    work = np.cumsum([len(record["ranks"]) ** 2 for record in records]) // PAIRS_AT_ONCE
    ends = [*np.flatnonzero(np.diff(work)) + 1, len(records)]
    for start, end in zip([0, *ends], ends, strict=False):
        yield records[start:end]


def read_tables(records: Sequence[dict]) -> ScoreTables:
    """Tables of scored records; a pair needs two scored answers that differ in rank and tokens.

    Args:
        records: lines of scores.jsonl (records.make_record), none of them `dropped`.
    """
    answers = read_answers(records)
    comparison, score = answers.comparison.to_numpy(), answers.score.to_numpy()
    length = _flatten(record["lengths"] for record in records)
    votes = _flatten(record.get("votes", [None] * len(record["ranks"])) for record in records)

    first, second = answer_pairs(answers)
    scored = ~np.isnan(score)
    both = scored[first] & scored[second]
    first, second = first[both], second[both]
    ranked = is_pair(answers, first, second)
    better, worse = first[ranked], second[ranked]

    pairs = np.bincount(comparison[better], minlength=len(records))
    ranking = _ranking(answers, first, second)
    voted = votes[better] + votes[worse]
    return ScoreTables(
        comparisons=pd.DataFrame(
            {
                "source": np.array([intern(record["source"]) for record in records], dtype=object),
                # Whole numbers of 64 bits, signed or not.
                "prompt": np.array([r["prompt"] % 2**64 for r in records], dtype=np.uint64),
                "answers": np.bincount(comparison),
                "scored": np.bincount(comparison, scored).astype(np.int64),
                "pairs": pairs,
                **{name: np.where(pairs > 0, values, np.nan) for name, values in ranking.items()},
            }
        ),
        answers=pd.DataFrame({"score": score[scored], "length": length[scored]}),
        pairs=pd.DataFrame(
            {
                "better": score[better],
                "worse": score[worse],
                "length_gap": length[better] - length[worse],
                "votes": votes[better] / np.where(voted > 0, voted, np.nan),
            }
        ),
    )


def read_answers(records: Sequence[dict]) -> pd.DataFrame:
    """A row an answer: its `comparison` and its `place` there, counted from 0; `rank`; `score`, NaN
    where it could not be scored; `copy`, the place of the first answer with the same tokens.
    """
    counts = np.array([len(record["scores"]) for record in records], dtype=np.int64)
    places = [range(count) for count in counts]
    copies = (record.get("copies", own) for record, own in zip(records, places, strict=True))
    return pd.DataFrame(
        {
            "comparison": np.arange(len(records)).repeat(counts),
            "place": _flatten(places).astype(np.int64),
            "rank": _flatten(record["ranks"] for record in records),
            "score": _flatten(record["scores"] for record in records),
            "copy": _flatten(copies),
        }
    )


def answer_pairs(answers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Each answer beside each of its comparison, itself too: two rows of `read_answers`, int64.

    comparison  0 0 1 1 1        first   0 0 1 1  2 2 2 3 3 3 4 4 4
    row         0 1 2 3 4        second  0 1 0 1  2 3 4 2 3 4 2 3 4
    """
    comparison, place = answers.comparison.to_numpy(), answers.place.to_numpy()
    rows = np.arange(len(answers))
    partners = np.bincount(comparison)[comparison] if len(answers) else rows

    first = rows.repeat(partners)
    number = np.arange(len(first)) - (np.cumsum(partners) - partners)[first]
    return first, (rows - place)[first] + number


def is_pair(answers: pd.DataFrame, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Whether the answers in these rows are a pair: a lower and a higher rank, other tokens."""
    rank, copy = answers["rank"].to_numpy(), answers["copy"].to_numpy()
    return (rank[better] < rank[worse]) & (copy[better] != copy[worse])


def _flatten(lists: Iterable[Sequence]) -> np.ndarray:
    """float64: all values of lists, one after the other; NaN for None."""
    return np.array(list(chain.from_iterable(lists)), dtype=np.float64)


def _ranking(answers: pd.DataFrame, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """How well scores order the answers of comparisons, float64 [C]; anything without a pair.

    Args:
        answers: of `read_answers`.
        first, second: rows of all scored answers of each comparison beside each other.
    """
    comparison, score = answers.comparison.to_numpy(), answers.score.to_numpy()
    rank, owner = answers["rank"].to_numpy(), comparison[first]
    size = comparison[-1] + 1

    def count(chosen: np.ndarray, owner: np.ndarray = owner) -> np.ndarray:
        return np.bincount(owner[chosen], minlength=size)

    higher, lower_rank = score[first] > score[second], rank[first] < rank[second]
    agree, disagree = count(higher & lower_rank), count(higher & (rank[first] > rank[second]))
    untied = count(higher) * count(lower_rank)

    # `above` answers have a higher score than the best-ranked one that scores highest; `level` have
    # its score, `good` of which are best-ranked too.
    scored = ~np.isnan(score)
    beaten = np.bincount(second[lower_rank], minlength=len(score)) > 0
    best = scored & ~beaten
    top = np.full(size, -np.inf)
    np.maximum.at(top, comparison[best], score[best])
    is_level = score == top[comparison]
    above = count(score > top[comparison], comparison)
    level, good = count(is_level, comparison), count(is_level & best, comparison)

    # Of the answers at the level of the top one, the first good one is the first, second, ...
    reciprocal, waiting = np.zeros(size), np.ones(size)
    for place in range(level.max(initial=0)):
        now = waiting * np.clip(good / np.maximum(level - place, 1), 0, 1)
        reciprocal += now / (above + place + 1)
        waiting -= now

    with np.errstate(invalid="ignore"):  # 0 / 0, where nothing is scored or all scores are equal
        return {
            "kendall_tau": (agree - disagree) / np.sqrt(untied),
            "best_of_k": np.where(above == 0, good / level, 0.0),
            "best_of_k_chance": count(best, comparison) / count(scored, comparison),
            "mrr": reciprocal,
        }
