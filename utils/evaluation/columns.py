"""Records of scores.jsonl become columns: comparisons, their answers and their pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.columns import matrices, mix
from utils.settings import InputError

# Ordered pairs of answers, K * K a comparison, that are looked at together: it bounds the memory.
MOST_PAIRS = 2**18


@dataclass
class Columns:
    """C comparisons with A scored answers and P pairs, one array a quantity.

    Attributes:
        prompt: uint64 [C], a key that equal prompts share.
        answers: int64 [C], the answers of each comparison, K.
        pairs: int64 [C], its pairs.
        kendall_tau: float64 [C], Kendall's tau-b of scores with ranks; NaN where all scores are
            equal or there is no pair.
        best_of_k, best_of_k_chance: float64 [C], whether the highest score is on a best-ranked
            answer, and how probable that is for a random answer; NaN where there is no pair.
        mrr: float64 [C], the reciprocal of the place that the first best-ranked answer has in the
            order of the scores, likewise. Equal scores are as if chance ordered them: these two
            are expectations.
        answer_key: uint64 [A], a mixed number of each answer, the same in every run.
        score, length: float64 [A].
        pair_key: uint64 [P], as `answer_key`.
        comparison: int64 [P], the comparison of each pair.
        better, worse: float64 [P], scores.
        margin: float64 [P], their difference.
        length_gap: float64 [P], tokens of the better answer minus tokens of the worse one.
        votes: float64 [P], the share of the votes that the better answer has; NaN without votes.
    """

    prompt: np.ndarray
    answers: np.ndarray
    pairs: np.ndarray
    kendall_tau: np.ndarray
    best_of_k: np.ndarray
    best_of_k_chance: np.ndarray
    mrr: np.ndarray
    answer_key: np.ndarray
    score: np.ndarray
    length: np.ndarray
    pair_key: np.ndarray
    comparison: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    margin: np.ndarray
    length_gap: np.ndarray
    votes: np.ndarray


def portions(records: Sequence[dict]) -> Iterator[Sequence[dict]]:
    """Split records, so that the pairs of each part fit into memory."""
    work = np.cumsum([len(record["ranks"]) ** 2 for record in records]) // MOST_PAIRS
    ends = [*np.flatnonzero(np.diff(work)) + 1, len(records)]
    for start, end in zip([0, *ends], ends, strict=False):
        yield records[start:end]


def read_columns(records: Sequence[dict]) -> Columns:
    """Columns of scored records; a pair needs two scored answers that differ in rank and tokens.

    Args:
        records: lines of scores.jsonl (records.make_record), none of them `dropped`.

    Raises:
        InputError: a score is not finite.
    """
    counts = np.array([len(record["ranks"]) for record in records], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    ranks = np.array([rank for record in records for rank in record["ranks"]])
    scores = _read_scores(records, counts)
    lengths = np.array([n for record in records for n in record["lengths"]], dtype=np.float64)
    number = np.arange(len(scores)) - starts.repeat(counts)
    copies, votes = number.copy(), np.full(len(scores), np.nan)
    for record, start, count in zip(records, starts, counts, strict=True):
        if "copies" in record:
            copies[start : start + count] = record["copies"]
        if "votes" in record:
            votes[start : start + count] = record["votes"]
    (comparison, better, worse), ranking = _find_pairs(counts, ranks, scores, copies)
    voted = votes[better] + votes[worse]
    share = np.full(len(better), np.nan)
    row_key = mix(_as_keys(records, "index")).repeat(counts)
    scored = np.flatnonzero(~np.isnan(scores))
    return Columns(
        prompt=_as_keys(records, "prompt"),
        answers=counts,
        pairs=np.bincount(comparison, minlength=len(records)),
        kendall_tau=ranking[0],
        best_of_k=ranking[1],
        best_of_k_chance=ranking[2],
        mrr=ranking[3],
        answer_key=mix(row_key[scored] + number[scored].astype(np.uint64)),
        score=scores[scored],
        length=lengths[scored],
        pair_key=mix(row_key[better] + (number[better] << 32 | number[worse]).astype(np.uint64)),
        comparison=comparison,
        better=scores[better],
        worse=scores[worse],
        margin=scores[better] - scores[worse],
        length_gap=lengths[better] - lengths[worse],
        votes=np.divide(votes[better], voted, out=share, where=voted > 0),
    )


def _read_scores(records: Sequence[dict], counts: np.ndarray) -> np.ndarray:
    """All scores, one after the other; NaN for an answer that could not be scored."""
    values = [score for record in records for score in record["scores"]]
    scores = np.array(values, dtype=np.float64)
    for place in np.flatnonzero(~np.isfinite(scores)):
        if values[place] is not None:
            row = int(np.searchsorted(np.cumsum(counts), place, side="right"))
            answer = place - counts[:row].sum() + 1
            raise InputError(
                f"row {records[row]['index']} of {records[row]['source']}: the score of answer "
                f"{answer} is {values[place]}; expected a finite number: give --dtype fp32, or "
                "check the weights in --model_name_or_path"
            )
    return scores


def _as_keys(records: Sequence[dict], name: str) -> np.ndarray:
    """Whole numbers of 64 bits, signed or not, as uint64 [C]."""
    return np.array([record[name] & 0xFFFFFFFFFFFFFFFF for record in records], dtype=np.uint64)


def _find_pairs(
    counts: np.ndarray, ranks: np.ndarray, scores: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs, int64 [3, P]: the comparison, the better answer, the worse one; and how well the
    scores order each comparison that has one, float64 [4, C]: `_ranking`, NaN without a pair.
    """
    pairs = [np.empty((3, 0), dtype=np.int64)]
    ranking = np.full((4, len(counts)), np.nan)
    for rows, places in matrices(counts):
        own_ranks, own_scores, own_copies = ranks[places], scores[places], copies[places]
        scored = ~np.isnan(own_scores)
        beats = own_ranks[:, :, None] < own_ranks[:, None, :]
        beats &= scored[:, :, None] & scored[:, None, :]
        differ = own_copies[:, :, None] != own_copies[:, None, :]
        row, better, worse = np.nonzero(beats & differ)
        pairs.append(np.stack([rows[row], places[row, better], places[row, worse]]))
        paired = np.unique(row)
        ranking[:, rows[paired]] = _ranking(own_scores[paired], beats[paired])
    return np.concatenate(pairs, axis=1), ranking


def _ranking(scores: np.ndarray, beats: np.ndarray) -> tuple[np.ndarray, ...]:
    """How well scores order the answers of comparisons that have a pair.

    Args:
        scores: float64 [C, K], NaN where there is none.
        beats: bool [C, K, K], whether the first answer has a better rank, both scored.

    Returns:
        float64 [C] each: kendall_tau, best_of_k, best_of_k_chance and mrr of Columns.
    """
    higher = scores[:, :, None] > scores[:, None, :]
    agree = np.count_nonzero(higher & beats, axis=(1, 2))
    disagree = np.count_nonzero(higher & beats.transpose(0, 2, 1), axis=(1, 2))
    untied = np.count_nonzero(higher, axis=(1, 2)) * np.count_nonzero(beats, axis=(1, 2))
    tau = np.full(len(scores), np.nan)
    np.divide(agree - disagree, np.sqrt(untied), out=tau, where=untied > 0)

    scored = ~np.isnan(scores)
    best = scored & ~beats.any(axis=1)
    top = np.max(scores, axis=1, keepdims=True, where=best, initial=-np.inf)
    above = np.count_nonzero(scores > top, axis=1)
    level = np.count_nonzero(scores == top, axis=1)
    good = np.count_nonzero(best & (scores == top), axis=1)
    hit = np.where(above == 0, good / level, 0.0)
    # Of the answers at the level of the top one, the first good one is the first, second, ...
    reciprocal, waiting = np.zeros(len(scores)), np.ones(len(scores))
    for place in range(level.max(initial=0)):
        now = waiting * np.clip(good / np.maximum(level - place, 1), 0, 1)
        reciprocal += now / (above + place + 1)
        waiting -= now
    return tau, hit, best.sum(axis=1) / scored.sum(axis=1), reciprocal
