"""What scores are worth: sums over batches for training, and all metrics of an evaluation."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import scipy
import torch
from torch.nn.functional import logsigmoid

from utils.data.batching import Batch
from utils.evaluation.columns import Columns, portions, read_columns
from utils.evaluation.statistics import Clusters, Moments, Sample, best_temperature
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
GAPS = np.array([20, 50, 100, 200])


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
    """Metrics by source and over all sources.

    Args:
        label: "hard": ranks say which answer is better; "soft": votes, where there are some, say
            how probable it is.
    """

    def __init__(self, label: str = "hard"):
        self.by_source: defaultdict[str, Tally] = defaultdict(lambda: Tally(label))
        self.total = Tally(label)

    def add(self, records: Sequence[dict]) -> None:
        """Count more lines of scores.jsonl (records.make_record); `dropped` ones are left out.

        Raises:
            InputError: a score is not finite.
        """
        of_source = defaultdict(list)
        for record in records:
            if "dropped" not in record:
                of_source[record["source"]].append(record)
        for source, own in of_source.items():
            for part in portions(own):
                columns = read_columns(part)
                self.by_source[source].add(columns)
                self.total.add(columns)

    def results(self) -> dict[str, dict]:
        """Metrics (Tally.results) of each source, sorted, and the total (tables.with_total)."""
        results = {source: self.by_source[source].results() for source in sorted(self.by_source)}
        return with_total(results, self.total.results)


class Tally:
    """The metrics of a group of comparisons, of any number of them, in a few MB.

    comparisons (with a pair), prompts, pairs, answers (most in a comparison), ties (pairs with
    equal scores): counts.
    accuracy: share of pairs whose better answer scores higher, ties half; with a 95 % interval
    (Clusters.interval). margin, better_score, worse_score: means over pairs.
    loss: Bradley-Terry (training.loss), mean over the pairs of a comparison, then comparisons.
    kendall_tau (comparisons with one score for all answers are left out), best_of_k,
    best_of_k_chance, mrr: means over comparisons (columns.Columns).
    brier: mean of (p - 1)^2 with p = sigmoid(margin), or of (p - P)^2 where votes say that the
    better answer is better with probability P. soft_loss: log-loss against P, over the pairs with
    votes.
    ece: |accuracy - confidence|, confidence being max(p, 1 - p), averaged over the pairs in 10
    equal bins from 0.5 to 1 (Guo et al. 2017, arXiv 1706.04599, eq. 3). calibration_bins.
    temperature: estimates.best_temperature.
    score_mean, score_std (N in the denominator), score_percentiles: over all scored answers.
    length: accuracy of the pairs whose better answer is longer or shorter, the share of both whose
    longer answer scores higher (ties half), and the correlations of score with length: over
    answers, and over pairs, of differences.
    length_gap_bins: by tokens of the better minus tokens of the worse answer. The one of `low` and
    `high` that is nearer to 0 is outside.
    histogram: pairs by the score of their better and of their worse answer.
    sampled: whether a limit was passed. Percentiles, histogram and temperature come from at most
    estimates.SIZE (65,536) answers or pairs, chosen uniformly and the same in every run. So many
    prompts are told apart; of more, the interval comes from random groups of prompts, and their
    number is an estimate.

    Args:
        label: as of Tallies.
    """

    def __init__(self, label: str = "hard"):
        self.label = label
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, int] = defaultdict(int)
        # Pairs and right ones by the gap in length; by confidence also the sum of that.
        self.gap_bins = np.zeros((2, 2 * len(GAPS) + 3))
        self.confidence_bins = np.zeros((3, CONFIDENCE_BINS))
        self.largest_count = 0
        self.clusters = Clusters()
        self.answers, self.pairs = Sample(), Sample()
        self.answer_moments, self.pair_moments = Moments(), Moments()
        self.add(read_columns([]))  # every sample and sum begins empty

    def add(self, columns: Columns) -> None:
        """Count more comparisons; one without pairs adds only its scores."""
        correct = (columns.margin > 0) + 0.5 * (columns.margin == 0)
        right = np.bincount(columns.comparison, correct, minlength=len(columns.pairs))
        counted = columns.pairs > 0
        self.largest_count = max(self.largest_count, columns.answers.max(initial=0))
        self.clusters.add(columns.prompt[counted], right[counted], columns.pairs[counted])
        self.answers.add(columns.answer_key, columns.score)
        self.answer_moments.add(columns.score, columns.length)
        self.pairs.add(columns.pair_key, np.stack([columns.better, columns.worse], axis=1))
        self.pair_moments.add(columns.margin, columns.length_gap)
        self._add_means(columns, correct)
        self._add_bins(columns, correct)

    def _add_means(self, columns: Columns, correct: np.ndarray) -> None:
        """Sums and counts of what has a mean over comparisons or pairs; NaN is left out."""
        margin, counted = columns.margin, columns.pairs > 0
        losses = np.bincount(columns.comparison, _log_loss(margin), len(counted))
        voted = ~np.isnan(columns.votes) & (self.label == "soft")
        target = np.where(voted, columns.votes, 1.0)
        soft_loss = target * _log_loss(margin) + (1 - target) * _log_loss(-margin)
        values = {
            "loss": losses[counted] / columns.pairs[counted],
            "accuracy": correct,
            "ties": margin == 0,
            "better_score": columns.better,
            "worse_score": columns.worse,
            "kendall_tau": columns.kendall_tau,
            "best_of_k": columns.best_of_k,
            "best_of_k_chance": columns.best_of_k_chance,
            "mrr": columns.mrr,
            "brier": (scipy.special.expit(margin) - target) ** 2,
            "soft_loss": soft_loss[voted],
        }
        for name, column in values.items():
            self.sums[name] += float(np.nansum(column))
            self.counts[name] += int(np.count_nonzero(~np.isnan(column)))

    def _add_bins(self, columns: Columns, correct: np.ndarray) -> None:
        step = 1 + np.searchsorted(GAPS, np.abs(columns.length_gap))
        place = len(GAPS) + 1 + np.sign(columns.length_gap).astype(np.int64) * step
        count = self.gap_bins.shape[1]
        self.gap_bins += [np.bincount(place, sums, count) for sums in (None, correct)]

        confidence = scipy.special.expit(np.abs(columns.margin))
        place = (2 * CONFIDENCE_BINS * (confidence - 0.5)).astype(np.int64)
        place = np.minimum(place, CONFIDENCE_BINS - 1)
        self.confidence_bins += [
            np.bincount(place, sums, CONFIDENCE_BINS) for sums in (None, correct, confidence)
        ]

    def results(self) -> dict:
        """All metrics of the list above, ready for JSON; a figure that does not exist is None."""
        mean = {name: _ratio(self.sums[name], self.counts[name]) for name in self.sums}
        comparisons, pairs = self.counts["loss"], self.counts["accuracy"]
        low, high = self.clusters.interval()
        better, worse = self.pairs.rows().T
        bins = self._calibration_bins()
        off = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
        return {
            "comparisons": comparisons,
            "prompts": self.clusters.prompts(),
            "pairs": pairs,
            "answers": int(self.largest_count),
            "accuracy": mean["accuracy"],
            "accuracy_low": low,
            "accuracy_high": high,
            "ties": int(self.sums["ties"]),
            "loss": mean["loss"],
            "margin": self.pair_moments.mean(),
            "better_score": mean["better_score"],
            "worse_score": mean["worse_score"],
            "kendall_tau": mean["kendall_tau"],
            "best_of_k": mean["best_of_k"],
            "best_of_k_chance": mean["best_of_k_chance"],
            "mrr": mean["mrr"],
            "brier": mean["brier"],
            "ece": _ratio(off, pairs),
            "temperature": best_temperature(better - worse),
            "soft_loss": mean["soft_loss"],
            "score_mean": self.answer_moments.mean(),
            "score_std": self.answer_moments.std(),
            "score_percentiles": self._percentiles(),
            "length": self._length(),
            "calibration_bins": bins,
            "length_gap_bins": self._length_gap_bins(),
            "histogram": _histogram(better, worse),
            "sampled": not (self.answers.whole and self.pairs.whole),  # no more prompts than pairs
        }

    def _calibration_bins(self) -> list[dict]:
        return [
            {"confidence": confidence / pairs, "accuracy": correct / pairs, "pairs": int(pairs)}
            for pairs, correct, confidence in self.confidence_bins.T.tolist()
            if pairs
        ]

    def _length_gap_bins(self) -> list[dict]:
        edges = [None, *(-GAPS[::-1]).tolist(), 0, 0, *GAPS.tolist(), None]
        bins = zip(edges[:-1], edges[1:], *self.gap_bins.tolist(), strict=True)
        return [
            {"low": low, "high": high, "accuracy": correct / pairs, "pairs": int(pairs)}
            for low, high, pairs, correct in bins
            if pairs
        ]

    def _length(self) -> dict:
        middle = len(GAPS) + 1
        pairs, correct = self.gap_bins
        longer, shorter = int(pairs[middle + 1 :].sum()), int(pairs[:middle].sum())
        longer_correct, shorter_correct = correct[middle + 1 :].sum(), correct[:middle].sum()
        longer_scored_higher = longer_correct + shorter - shorter_correct
        return {
            "longer_pairs": longer,
            "longer_accuracy": _ratio(longer_correct, longer),
            "shorter_pairs": shorter,
            "shorter_accuracy": _ratio(shorter_correct, shorter),
            "equal_pairs": int(pairs[middle]),
            "prefers_longer": _ratio(longer_scored_higher, longer + shorter),
            "correlation": self.answer_moments.correlation(),
            "pair_correlation": self.pair_moments.correlation(),
        }

    def _percentiles(self) -> dict[str, float | None]:
        names, scores = map(str, PERCENTILES), self.answers.rows()
        if not len(scores):
            return dict.fromkeys(names)
        return dict(zip(names, np.percentile(scores, PERCENTILES).tolist(), strict=True))


def _log_loss(margin: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin)."""
    return np.logaddexp(0, -margin)


def _ratio(total: float, count: int) -> float | None:
    return float(total / count) if count else None


def _histogram(better: np.ndarray, worse: np.ndarray) -> dict | None:
    if not len(better):
        return None
    edges = np.histogram_bin_edges(np.concatenate([better, worse]), HISTOGRAM_BINS)
    counts = {"better": np.histogram(better, edges)[0], "worse": np.histogram(worse, edges)[0]}
    return {"edges": edges.tolist(), **{name: one.tolist() for name, one in counts.items()}}
