"""What scores are worth: sums over batches for training, and all metrics of an evaluation."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy
import torch
from torch.nn.functional import logsigmoid

from utils.data.batch import Batch
from utils.evaluation.score_tables import ScoreTables, portions, read_tables
from utils.evaluation.statistics import accuracy_interval, best_temperature, correlation
from utils.output.tables import with_total

# What tables of an evaluation show of each source.
SOURCE_METRICS = ("comparisons", "pairs", "accuracy", "loss", "margin")
SUMS = (
    *("comparisons", "loss", "pairs", "correct", "ties", "margin", "better", "worse"),
    *("answers", "score", "score_squared"),
)

CONFIDENCE_BINS = 10
PERCENTILES = (5, 25, 50, 75, 95)
HISTOGRAM_BINS = 40
# Of the tokens by which one answer is longer than the other; equal lengths stand apart.
LENGTH_GAPS = np.array([20, 50, 100, 200])


def comparison_sums(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What each comparison of a batch adds to the metrics; nothing if its weight is 0.

    Args:
        scores: float [N].
        batch: its pairs count; of its weights only whether they are 0.

    Returns:
        float64 [C, 11], the columns of SUMS. `loss` is the Bradley-Terry loss, its mean over the
        pairs; the others are sums over the pairs, the last three over the answers. Equal scores
        are half correct.
    """
    scores = scores.double()
    numbers = torch.arange(len(batch.pair_counts), device=scores.device)
    owner = numbers.repeat_interleave(batch.pair_counts, output_size=len(batch.pairs))
    share = 1 / batch.pair_counts[owner].double()

    better, worse = scores[batch.pairs].unbind(dim=1)
    ties = (better == worse).double()
    columns = [
        share,
        -share * logsigmoid(better - worse),
        torch.ones_like(share),
        (better > worse) + 0.5 * ties,
        ties,
        better - worse,
        better,
        worse,
    ]

    counted = (batch.weight > 0)[:, None]
    pair_sums = _sum_by(owner, torch.stack(columns, dim=1) * counted, len(numbers))
    has_pairs = pair_sums[:, SUMS.index("pairs"), None] > 0

    owner = numbers.repeat_interleave(batch.answer_counts, output_size=len(scores))
    answers = torch.stack([torch.ones_like(scores), scores, scores**2], dim=1)
    answer_sums = _sum_by(owner, answers * has_pairs[owner], len(numbers))
    return torch.cat([pair_sums, answer_sums], dim=1)


def _sum_by(owner: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Sums [count, M] of the rows [N, M] that each has; owner: int64 [N]."""
    return rows.new_zeros(count, rows.shape[1]).index_add(0, owner, rows)


def summarize(sums: torch.Tensor) -> dict[str, float]:
    """Means out of `comparison_sums` [11], added over comparisons, batches and ranks.

    Returns:
        comparisons, pairs and ties (pairs with equal scores) as counts; loss a comparison;
        accuracy, margin, better_score and worse_score a pair; mean and standard deviation of the
        scores of all answers, as score_mean and score_std. NaN where there is no pair.
    """
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    pairs = total["pairs"] or float("nan")
    answers = total["answers"] or float("nan")
    score_mean = total["score"] / answers
    variance = total["score_squared"] / answers - score_mean**2
    return {
        "loss": total["loss"] / (total["comparisons"] or float("nan")),
        "accuracy": total["correct"] / pairs,
        "margin": total["margin"] / pairs,
        "better_score": total["better"] / pairs,
        "worse_score": total["worse"] / pairs,
        "score_mean": score_mean,
        "score_std": math.sqrt(max(variance, 0.0)),  # rounding can take it below 0
        "comparisons": round(total["comparisons"]),
        "pairs": int(total["pairs"]),
        "ties": int(total["ties"]),
    }


def summarize_sources(sums: torch.Tensor, names: Sequence[str]) -> dict:
    """Means over all comparisons (`summarize`), and the main ones of each source.

    Args:
        sums: float64 [1 + S, 11], `comparison_sums` added over all comparisons, then over those of
            each source.
        names: of the S sources.

    Returns:
        The entries of `summarize`; if several sources have comparisons, also `sources`: for the
        name of each such source its SOURCE_METRICS.
    """
    total, *parts = map(summarize, sums)
    sources = {
        name: {metric: part[metric] for metric in SOURCE_METRICS}
        for name, part in zip(names, parts, strict=True)
        if part["comparisons"]
    }
    return {**total, "sources": sources} if len(sources) > 1 else total


class Tallies:
    """Metrics by source and over all sources, of records that are held in memory as tables.

    Args:
        label: "hard": ranks say which answer is better; "soft": votes, where there are some, say
            how probable it is.
    """

    def __init__(self, label: str = "hard"):
        self.label = label
        self.parts: list[ScoreTables] = []

    def add(self, records: Sequence[dict]) -> None:
        """Count more lines of scores.jsonl (records.make_record); `dropped` ones are left out."""
        if scored := [record for record in records if "dropped" not in record]:
            self.parts += map(read_tables, portions(scored))

    def results(self) -> dict[str, dict]:
        """`evaluation_metrics` of each source, sorted, and the total (tables.with_total)."""
        if not self.parts:
            return {}
        tables = ScoreTables.concatenate(self.parts)
        self.parts = [tables]

        results = {
            source: evaluation_metrics(own, self.label) for source, own in tables.by_source()
        }
        return with_total(results, lambda: evaluation_metrics(tables, self.label))


def evaluation_metrics(tables: ScoreTables, label: str) -> dict:
    """All metrics of some comparisons, ready for JSON; a number that does not exist is None.

    comparisons (with a pair), prompts, pairs, answers (most in a comparison), ties (pairs with
    equal scores): counts.
    accuracy: share of pairs whose better answer scores higher, ties half; with a 95 % interval
    (statistics.accuracy_interval). margin, better_score, worse_score: means over pairs.
    loss: Bradley-Terry (training.loss), mean over the pairs of a comparison, then comparisons.
    kendall_tau (comparisons with one score for all answers are left out), best_of_k,
    best_of_k_chance, mrr: means over comparisons (ScoreTables).
    brier: mean of (p - 1)^2 with p = sigmoid(margin), or of (p - P)^2 where votes say that the
    better answer is better with probability P. soft_loss: log-loss against P, over the pairs with
    votes.
    ece: |accuracy - confidence|, confidence being max(p, 1 - p), averaged over the pairs in 10
    equal bins from 0.5 to 1 (Guo et al. 2017, arXiv 1706.04599, eq. 3). calibration_bins.
    temperature: statistics.best_temperature.
    score_mean, score_std (N in the denominator), score_percentiles: over all scored answers.
    length: accuracy of the pairs whose better answer is longer or shorter, the share of both whose
    longer answer scores higher (ties half), and the correlations of score with length: over
    answers, and over pairs, of differences.
    length_gap_bins: by tokens of the better minus tokens of the worse answer. The one of `low` and
    `high` that is nearer to 0 is outside.
    histogram: pairs by the score of their better and of their worse answer.

    Args:
        label: as of Tallies.
    """
    comparisons = tables.comparisons[tables.comparisons.pairs > 0]
    better, worse, length_gap, votes = tables.pairs.to_numpy().T
    score, length = tables.answers.to_numpy().T
    margin = better - worse
    correct = (margin > 0) + 0.5 * (margin == 0)

    owner = np.arange(len(comparisons)).repeat(comparisons.pairs)
    right = np.bincount(owner, correct, len(comparisons))
    losses = np.bincount(owner, _log_loss(margin), len(comparisons)) / comparisons.pairs
    low, high = accuracy_interval(comparisons.prompt, right, comparisons.pairs)

    voted = ~np.isnan(votes) & (label == "soft")
    target = np.where(voted, votes, 1.0)
    soft_loss = target * _log_loss(margin) + (1 - target) * _log_loss(-margin)

    longer, shorter = length_gap > 0, length_gap < 0
    longer_wins = np.where(longer, correct, 1 - correct)[longer | shorter]
    bins = _calibration_bins(margin, correct)
    error = sum(one["pairs"] * abs(one["accuracy"] - one["confidence"]) for one in bins)

    return {
        "comparisons": len(comparisons),
        "prompts": comparisons.prompt.nunique(),
        "pairs": len(margin),
        "answers": int(tables.comparisons.answers.max()),
        "accuracy": _mean(correct),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": int((margin == 0).sum()),
        "loss": _mean(losses),
        "margin": _mean(margin),
        "better_score": _mean(better),
        "worse_score": _mean(worse),
        "kendall_tau": _mean(comparisons.kendall_tau),
        "best_of_k": _mean(comparisons.best_of_k),
        "best_of_k_chance": _mean(comparisons.best_of_k_chance),
        "mrr": _mean(comparisons.mrr),
        "brier": _mean((scipy.special.expit(margin) - target) ** 2),
        "ece": error / len(margin) if len(margin) else None,
        "temperature": best_temperature(margin),
        "soft_loss": _mean(soft_loss[voted]),
        "score_mean": _mean(score),
        # Less the first score: equal ones have a deviation of exactly 0.
        "score_std": float((score - score[0]).std()) if len(score) else None,
        "score_percentiles": {
            str(percent): float(np.percentile(score, percent)) if len(score) else None
            for percent in PERCENTILES
        },
        "length": {
            "longer_pairs": int(longer.sum()),
            "longer_accuracy": _mean(correct[longer]),
            "shorter_pairs": int(shorter.sum()),
            "shorter_accuracy": _mean(correct[shorter]),
            "equal_pairs": int((length_gap == 0).sum()),
            "prefers_longer": _mean(longer_wins),
            "correlation": correlation(score, length),
            "pair_correlation": correlation(margin, length_gap),
        },
        "calibration_bins": bins,
        "length_gap_bins": _length_gap_bins(length_gap, correct),
        "histogram": _histogram(better, worse),
    }


def _mean(values: np.ndarray | pd.Series) -> float | None:
    """Of the values that are numbers."""
    known = np.asarray(values)  # a data frame's own mean is slow, where there are many sources
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


def _log_loss(margin: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin)."""
    return np.logaddexp(0, -margin)


def _calibration_bins(margin: np.ndarray, correct: np.ndarray) -> list[dict]:
    confidence = scipy.special.expit(np.abs(margin))
    number = (2 * CONFIDENCE_BINS * (confidence - 0.5)).astype(np.int64)
    number = np.minimum(number, CONFIDENCE_BINS - 1)
    return list(_bins(number, confidence=confidence, accuracy=correct).values())


def _length_gap_bins(length_gap: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Bins ..., [-50, -20), [-20, 0), 0, (0, 20], (20, 50], ... as long as they have pairs."""
    edges = [None, *(-LENGTH_GAPS[::-1]).tolist(), 0, 0, *LENGTH_GAPS.tolist(), None]
    step = 1 + np.searchsorted(LENGTH_GAPS, np.abs(length_gap))
    number = len(LENGTH_GAPS) + 1 + np.sign(length_gap).astype(np.int64) * step
    bins = _bins(number, accuracy=correct)
    return [{"low": edges[bin], "high": edges[bin + 1], **own} for bin, own in bins.items()]


def _bins(number: np.ndarray, **values: np.ndarray) -> dict[int, dict]:
    """By the numbers that pairs have: the mean of each of their values, and how many they are."""
    bins = {}
    for bin in np.unique(number).tolist():
        own = number == bin
        means = {name: float(one[own].mean()) for name, one in values.items()}
        bins[bin] = {**means, "pairs": int(own.sum())}
    return bins


def _histogram(better: np.ndarray, worse: np.ndarray) -> dict | None:
    if not len(better):
        return None
    edges = np.histogram_bin_edges(np.concatenate([better, worse]), HISTOGRAM_BINS)
    counts = {"better": np.histogram(better, edges)[0], "worse": np.histogram(worse, edges)[0]}
    return {"edges": edges.tolist(), **{name: one.tolist() for name, one in counts.items()}}
