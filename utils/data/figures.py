"""Figures of comparisons: sums that can be added up, over any number of rows and of sources."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import scipy  # loads its parts when they are first used

# Edges of the bins of the difference of two lengths, in tokens.
GAPS = np.array([5, 10, 20, 50, 100, 200])
LENGTHS = ("prompt", "better", "worse", "sequence")


class Histogram:
    """How often each whole number from 0 occurs: exact percentiles of any number of values."""

    def __init__(self):
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count more values: whole numbers [N], none below 0."""
        self.merge(np.bincount(values))

    def merge(self, counts: np.ndarray) -> None:
        """Add the counts of another histogram, int64 [largest value + 1]."""
        longer, shorter = sorted((self.counts, counts), key=len, reverse=True)
        self.counts = longer.copy()
        self.counts[: len(shorter)] += shorter

    def percentile(self, percent: float) -> int:
        """The smallest value that at least so many percent of the values do not exceed."""
        reached = np.cumsum(self.counts)
        return int(np.searchsorted(reached, max(percent / 100 * reached[-1], 1)))

    def results(self) -> dict | None:
        """Mean, median, 95th percentile and largest value; None if there is no value."""
        number = int(self.counts.sum())
        if not number:
            return None
        return {
            "mean": float(self.counts @ np.arange(len(self.counts)) / number),
            "median": self.percentile(50),
            "p95": self.percentile(95),
            "max": int(np.flatnonzero(self.counts)[-1]),
        }


@dataclass
class Figures:
    """Sums over the rows of one source, or of several ones.

    Attributes:
        rows: that were read.
        dropped: rows that cannot train, by reason.
        sources: rows by the column `source`.
        lengths: tokens before any cutting, of comparisons that can train: of the prompt; of the
            better and of the worse answer of each ranked pair; of the sequence of each answer.
        cut: tokens that truncation removed from the longest sequence of each row that it cut.
        packed, separate: tokens to train, what answers share computed once, and as if every answer
            were a row of its own.
        unequal: comparisons with a pair whose answers have different lengths.
        gap_pairs, gap_longer: int64 [bins], pairs by the difference of their lengths, and those
            whose better answer is the longer one; equal lengths first, then by GAPS.
    """

    rows: int = 0
    dropped: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    lengths: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in LENGTHS}
    )
    cut: Histogram = field(default_factory=Histogram)
    packed: int = 0
    separate: int = 0
    unequal: int = 0
    gap_pairs: np.ndarray = field(default_factory=lambda: np.zeros(len(GAPS) + 2, dtype=np.int64))
    gap_longer: np.ndarray = field(default_factory=lambda: np.zeros(len(GAPS) + 2, dtype=np.int64))

    @property
    def trained(self) -> int:
        """Comparisons that this side takes."""
        return int(self.lengths["prompt"].counts.sum())

    @property
    def pairs(self) -> int:
        """Ranked pairs of different answers."""
        return int(self.gap_pairs.sum())

    @property
    def mean_length(self) -> float:
        """Tokens of an average sequence; 0 if there is none."""
        found = self.lengths["sequence"].results()
        return found["mean"] if found else 0.0

    def merge(self, other: "Figures") -> None:
        """Add the sums of more rows."""
        sums = ("rows", "packed", "separate", "unequal", "gap_pairs", "gap_longer")
        for name in (*sums, "dropped", "sources"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.cut.merge(other.cut.counts)
        for name, histogram in self.lengths.items():
            histogram.merge(other.lengths[name].counts)

    def results(self) -> dict:
        """All figures, ready for JSON; a figure that does not exist is None."""
        cut = int(self.cut.counts.sum())
        return {
            "rows": self.rows,
            "comparisons": self.rows - self.dropped.total(),
            "dropped": dict(self.dropped.most_common()),
            "sources": dict(self.sources.most_common()),
            "cut": {"rows": cut, "tokens": self.cut.results()},
            "lengths": {name: one.results() for name, one in self.lengths.items()},
            "pairs": self.pairs,
            "longer_better": self._longer_better(),
            "tokens": {"packed": self.packed, "separate": self.separate},
        }

    def _longer_better(self) -> dict:
        """How often the longer answer is the better one, over pairs of different lengths.

        The 95 % interval is Wilson's, with one trial a comparison: its pairs share their answers.
        """
        pairs, longer = int(self.gap_pairs[1:].sum()), int(self.gap_longer.sum())
        result: dict = {"pairs": pairs, "share": None, "low": None, "high": None}
        if pairs:
            share = longer / pairs
            trials = scipy.stats.binomtest(round(share * self.unequal), self.unequal)
            low, high = trials.proportion_ci(method="wilson")
            result.update(share=share, low=min(float(low), share), high=max(float(high), share))
        edges = [0, *GAPS.tolist(), None]
        counts = zip(edges, edges[1:], self.gap_pairs[1:], self.gap_longer[1:], strict=False)
        result["gaps"] = [
            {"above": low, "up_to": high, "pairs": int(number), "share": float(wins / number)}
            for low, high, number, wins in counts
            if number
        ]
        return result

    def add_pairs(self, comparison: np.ndarray, better: np.ndarray, worse: np.ndarray) -> None:
        """Count pairs.

        Args:
            comparison: int64 [P], the comparison of each; all pairs of one stand together.
            better, worse: int32 [P], tokens of their answers.
        """
        self.lengths["better"].add(better)
        self.lengths["worse"].add(worse)
        gap = better - worse
        place = np.searchsorted(GAPS, np.abs(gap)) + (gap != 0)
        self.gap_pairs += np.bincount(place, minlength=len(GAPS) + 2)
        self.gap_longer += np.bincount(place[gap > 0], minlength=len(GAPS) + 2)
        self.unequal += len(np.unique(comparison[gap != 0]))
