"""What scores are worth: sums over batches for training, and all metrics of an evaluation."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import scipy
import torch
from torch.nn.functional import logsigmoid

from utils.data.batching import Batch
from utils.evaluation.columns import Columns, portions, read_columns
from utils.evaluation.estimates import Clusters, Moments, Sample, best_temperature

# What tables of an evaluation show of each source.
SOURCE_METRICS = ("comparisons", "pairs", "accuracy", "loss", "margin")
PAIR_SUMS = ("comparisons", "loss", "pairs", "correct", "ties", "margin", "better", "worse")
ANSWER_SUMS = ("answers", "score", "score_squared")
SUMS = PAIR_SUMS + ANSWER_SUMS

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
    owner = torch.arange(len(batch.pair_counts), device=scores.device)
    owner = owner.repeat_interleave(batch.pair_counts)
    share = 1 / batch.pair_counts[owner].double()
    better, worse = scores.double()[batch.pairs].unbind(dim=1)
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
    shape = len(batch.pair_counts), len(PAIR_SUMS)
    pair_sums = torch.zeros(shape, dtype=torch.float64, device=scores.device)
    pair_sums = pair_sums.index_add(0, owner, torch.stack(columns, dim=1) * counted)
    return torch.cat(
        [pair_sums, _answer_sums(scores, batch, pair_sums[:, SUMS.index("pairs")] > 0)], dim=1
    )


def _answer_sums(scores: torch.Tensor, batch: Batch, counted: torch.Tensor) -> torch.Tensor:
    """The columns of ANSWER_SUMS, over the answers of the comparisons that count (bool [C])."""
    owner = torch.arange(len(counted), device=scores.device)
    owner = owner.repeat_interleave(batch.answer_counts, output_size=len(scores))
    scores = scores.double()
    columns = torch.stack([torch.ones_like(scores), scores, scores**2], dim=1)
    sums = columns.new_zeros(len(counted), len(ANSWER_SUMS))
    return sums.index_add(0, owner, columns * counted[owner, None])


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
        """Metrics (Tally.results) of each source, sorted, and of "all" if there are several."""
        results = {source: self.by_source[source].results() for source in sorted(self.by_source)}
        return {**results, "all": self.total.results()} if len(results) > 1 else results


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
        self.sums: Counter[str] = Counter()
        self.largest_count = 0
        self.clusters = Clusters()
        self.answers, self.pairs = Sample(), Sample()
        self.answer_moments, self.pair_moments = Moments(), Moments()
        self.add(read_columns([]))  # every sum begins at 0

    def add(self, columns: Columns) -> None:
        """Count more comparisons; one without pairs adds only its scores."""
        self.largest_count = max(self.largest_count, columns.answers.max(initial=0))
        self.answers.add(columns.answer_key, columns.score)
        self.answer_moments.add(columns.score, columns.length)
        self.pairs.add(columns.pair_key, np.stack([columns.better, columns.worse], axis=1))
        self.pair_moments.add(columns.margin, columns.length_gap)
        correct = (columns.margin > 0) + 0.5 * (columns.margin == 0)
        self._add_comparisons(columns, correct)
        self._add_pairs(columns, correct)
        self._add_probabilities(columns, correct)

    def _add_comparisons(self, columns: Columns, correct: np.ndarray) -> None:
        counted = columns.pairs > 0
        correct = np.bincount(columns.comparison, correct, minlength=len(counted))
        self.clusters.add(columns.prompt[counted], correct[counted], columns.pairs[counted])
        ordered = ~np.isnan(columns.kendall_tau)
        self.sums.update(
            comparisons=np.count_nonzero(counted),
            kendall_tau=columns.kendall_tau[ordered].sum(),
            ordered=np.count_nonzero(ordered),
            best_of_k=columns.best_of_k[counted].sum(),
            best_of_k_chance=columns.best_of_k_chance[counted].sum(),
            mrr=columns.mrr[counted].sum(),
        )

    def _add_pairs(self, columns: Columns, correct: np.ndarray) -> None:
        step = 1 + np.searchsorted(GAPS, np.abs(columns.length_gap))
        gap_bin = len(GAPS) + 1 + np.sign(columns.length_gap).astype(np.int64) * step
        bins = 2 * len(GAPS) + 3
        share = 1 / columns.pairs[columns.comparison]
        self.sums.update(
            pairs=len(correct),
            ties=np.count_nonzero(columns.margin == 0),
            correct=correct.sum(),
            loss=(share * _log_loss(columns.margin)).sum(),
            better=columns.better.sum(),
            worse=columns.worse.sum(),
            gap_pairs=np.bincount(gap_bin, minlength=bins),
            gap_correct=np.bincount(gap_bin, correct, minlength=bins),
        )

    def _add_probabilities(self, columns: Columns, correct: np.ndarray) -> None:
        """Sums for Brier score, calibration and the loss against votes."""
        margin = columns.margin
        voted = ~np.isnan(columns.votes) & (self.label == "soft")
        target = np.where(voted, columns.votes, 1.0)
        soft_loss = target * _log_loss(margin) + (1 - target) * _log_loss(-margin)
        confidence = scipy.special.expit(np.abs(margin))
        place = (2 * CONFIDENCE_BINS * (confidence - 0.5)).astype(np.int64)
        place = np.minimum(place, CONFIDENCE_BINS - 1)
        self.sums.update(
            brier=((scipy.special.expit(margin) - target) ** 2).sum(),
            soft_loss=soft_loss[voted].sum(),
            voted=np.count_nonzero(voted),
            confidence_pairs=np.bincount(place, minlength=CONFIDENCE_BINS),
            confidence=np.bincount(place, confidence, minlength=CONFIDENCE_BINS),
            confidence_correct=np.bincount(place, correct, minlength=CONFIDENCE_BINS),
        )

    def results(self) -> dict:
        """All metrics of the list above, ready for JSON; a figure that does not exist is None."""
        sums = self.sums
        comparisons, pairs = int(sums["comparisons"]), int(sums["pairs"])
        low, high = self.clusters.interval()
        better, worse = self.pairs.rows().T
        bins = self._calibration_bins()
        off = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
        return {
            "comparisons": comparisons,
            "prompts": self.clusters.prompts(),
            "pairs": pairs,
            "answers": int(self.largest_count),
            "accuracy": _ratio(sums["correct"], pairs),
            "accuracy_low": low,
            "accuracy_high": high,
            "ties": int(sums["ties"]),
            "loss": _ratio(sums["loss"], comparisons),
            "margin": self.pair_moments.mean(),
            "better_score": _ratio(sums["better"], pairs),
            "worse_score": _ratio(sums["worse"], pairs),
            "kendall_tau": _ratio(sums["kendall_tau"], sums["ordered"]),
            "best_of_k": _ratio(sums["best_of_k"], comparisons),
            "best_of_k_chance": _ratio(sums["best_of_k_chance"], comparisons),
            "mrr": _ratio(sums["mrr"], comparisons),
            "brier": _ratio(sums["brier"], pairs),
            "ece": _ratio(off, pairs),
            "temperature": best_temperature(better - worse),
            "soft_loss": _ratio(sums["soft_loss"], sums["voted"]),
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
        names = ("confidence", "confidence_correct", "confidence_pairs")
        rows = zip(*(self.sums[name].tolist() for name in names), strict=True)
        return [
            {"confidence": confidence / pairs, "accuracy": correct / pairs, "pairs": pairs}
            for confidence, correct, pairs in rows
            if pairs
        ]

    def _length_gap_bins(self) -> list[dict]:
        edges = [None, *(-GAPS[::-1]).tolist(), 0, 0, *GAPS.tolist(), None]
        names = ("gap_correct", "gap_pairs")
        correct, pairs = (self.sums[name].tolist() for name in names)
        return [
            {"low": low, "high": high, "accuracy": right / number, "pairs": number}
            for low, high, right, number in zip(edges, edges[1:], correct, pairs, strict=False)
            if number
        ]

    def _length(self) -> dict:
        middle = len(GAPS) + 1
        pairs, correct = self.sums["gap_pairs"], self.sums["gap_correct"]
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
        if not self.answer_moments.count:
            return dict.fromkeys(map(str, PERCENTILES))
        values = np.percentile(self.answers.rows(), PERCENTILES).tolist()
        return dict(zip(map(str, PERCENTILES), values, strict=True))


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
