"""Estimates over any number of rows in a fixed amount of memory."""

import numpy as np
import scipy  # loads its parts when they are first used: training needs few of them

from utils.data.columns import mix

# Rows of a sample, and prompts that are told apart.
SIZE = 2**16
LEVEL = 0.95


class Sample:
    """A uniform sample of rows, all of them up to SIZE.

    Kept are the rows with the smallest keys. As keys are mixed numbers of the rows, this is a
    random choice, but the same in every run and for every order of the rows.

    Attributes:
        whole: whether no row was left out.
    """

    def __init__(self) -> None:
        self.whole = True
        self.largest = np.uint64(2**64 - 1)
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Draw from more rows.

        Args:
            keys: uint64 [N], mixed, different ones for different rows.
            rows: float64 [N, ...].
        """
        small = keys <= self.largest
        self.kept.append((keys[small], rows[small]))
        if sum(len(keys) for keys, _ in self.kept) > 1.25 * SIZE:
            self._compact()

    def _compact(self) -> None:
        keys, rows = (np.concatenate(parts) for parts in zip(*self.kept, strict=True))
        if len(keys) > SIZE:
            chosen = np.argpartition(keys, SIZE - 1)[:SIZE]
            keys, rows = keys[chosen], rows[chosen]
            self.largest = keys.max()
            self.whole = False
        self.kept = [(keys, rows)]

    def rows(self) -> np.ndarray:
        """The sample: float64 [at most SIZE, ...]."""
        self._compact()
        return self.kept[0][1]


class Clusters:
    """Right pairs by prompt, for an interval of accuracy that knows of repeated prompts.

    Beyond SIZE prompts, prompts are thrown together at random into SIZE clusters. As prompts are
    independent of each other, the variance over such clusters has the same expectation.

    Attributes:
        whole: whether each prompt is a cluster of its own.
    """

    def __init__(self) -> None:
        self.whole = True
        self.keys = np.empty(0, dtype=np.uint64)
        self.totals = np.empty((0, 2))
        self.smallest = np.empty(0, dtype=np.uint64)  # of all keys
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, prompts: np.ndarray, correct: np.ndarray, pairs: np.ndarray) -> None:
        """Count more comparisons.

        Args:
            prompts: uint64 [C], a key that equal prompts share.
            correct: float64 [C], right pairs of each.
            pairs: int64 [C], all pairs of each.
        """
        self.waiting.append((mix(prompts), np.stack([correct, pairs], axis=1)))
        if sum(len(keys) for keys, _ in self.waiting) > SIZE / 4:
            self._compact()

    def _compact(self) -> None:
        if not self.waiting:
            return
        keys, totals = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        self.smallest = np.unique(np.concatenate([self.smallest, keys]))[:SIZE]
        self.totals = np.concatenate([self.totals, totals])
        self._merge(np.concatenate([self.keys, keys if self.whole else _cell(keys)]))
        if self.whole and len(self.keys) > SIZE:
            self.whole = False
            self._merge(_cell(self.keys))

    def _merge(self, keys: np.ndarray) -> None:
        """Add up the totals that share a key."""
        self.keys, cluster = np.unique(keys, return_inverse=True)
        self.totals = np.stack([np.bincount(cluster, column) for column in self.totals.T], axis=1)

    def prompts(self) -> int:
        """How many different ones there are; beyond SIZE an estimate, 0.4 % off (one sigma).

        It comes from the smallest of the evenly spread keys: (k - 1) / (the k-th smallest one, as a
        share of all numbers) (Beyer et al. 2007, doi 10.1145/1247480.1247504).
        """
        self._compact()
        if self.whole:
            return len(self.keys)
        return round((SIZE - 1) * 2.0**64 / float(self.smallest[-1]))

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """A 95 % interval of accuracy, right pairs / pairs; None for fewer than two prompts.

        That of `clustered_interval`. Where all prompts have the same share of right pairs, it would
        have no width. There it is the Clopper-Pearson interval of a binomial share, with one trial
        a prompt.
        """
        self._compact()
        count = len(self.keys)
        if count < 2:
            return None, None
        correct, pairs = self.totals.T
        if np.ptp(correct / pairs) == 0:
            return _clopper_pearson(correct.sum() / pairs.sum() * count, count)
        low, high = clustered_interval(correct, pairs)
        return max(low, 0.0), min(high, 1.0)


class Moments:
    """Means, standard deviations and correlation of two columns.

    Sums are of differences from the first row: constant columns have a variance of exactly 0, and
    large means cost no precision.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin = np.zeros(2)
        self.sums = np.zeros(2)
        self.products = np.zeros((2, 2))

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Count more rows: two columns, float64 [N] each."""
        rows = np.stack([first, second], axis=1)
        if not self.count and len(rows):
            self.origin = rows[0].copy()
        rows = rows - self.origin
        self.count += len(rows)
        self.sums += rows.sum(axis=0)
        self.products += rows.T @ rows

    def mean(self) -> float | None:
        """Of the first column; None without rows."""
        return float(self.origin[0] + self.sums[0] / self.count) if self.count else None

    def std(self) -> float | None:
        """Of the first column, with N in the denominator; None without rows."""
        return float(np.sqrt(self._covariance()[0, 0])) if self.count else None

    def correlation(self) -> float | None:
        """Pearson's; None where a column is constant."""
        if not self.count:
            return None
        (first, both), (_, second) = self._covariance()
        if first == 0 or second == 0:
            return None
        return float(np.clip(both / np.sqrt(first) / np.sqrt(second), -1, 1))

    def _covariance(self) -> np.ndarray:
        means = self.sums / self.count
        covariance = self.products / self.count - np.outer(means, means)
        np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), 0))  # rounding
        return covariance


def clustered_interval(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean over all members of clusters.

    It comes from the variance of a ratio over clusters, as of cluster-robust standard errors, with
    the factor G / (G - 1) and Student's t with G - 1 degrees of freedom for G clusters.

    Args:
        sums: float64 [G], of each cluster, at least two.
        sizes: float64 [G], members of each.
    """
    count, members = len(sums), sizes.sum()
    mean = sums.sum() / members
    errors = sums - mean * sizes
    deviation = np.sqrt(count / (count - 1) * (errors @ errors)) / members
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) * deviation
    return float(mean - reach), float(mean + reach)


def best_temperature(margins: np.ndarray) -> float | None:
    """The temperature T that minimises the log-loss of sigmoid(margin / T).

    Scores divided by it say best how sure they may be (Guo et al. 2017, arXiv 1706.04599).

    Args:
        margins: float64 [P], score of the better minus score of the worse answer.

    Returns:
        T, above 0. None where there is no minimum: no margin is below 0, and a smaller T is always
        better; or their mean is not above 0, and a larger one is.
    """
    if not (margins < 0).any():
        return None
    scale = np.abs(margins).mean()
    margins = margins / scale

    def slope(inverse: float) -> float:  # of the loss, convex in 1 / T
        return -float(np.mean(margins * scipy.special.expit(-inverse * margins)))

    if slope(0.0) > -1e-12:  # 0 up to rounding
        return None
    high = 1.0
    while slope(high) < 0:
        high *= 2
    return float(scale / scipy.optimize.brentq(slope, 0.0, high, xtol=1e-15))


def _cell(keys: np.ndarray) -> np.ndarray:
    """The cluster of each key where there are SIZE clusters."""
    return keys >> np.uint64(64 - (SIZE.bit_length() - 1))


def _clopper_pearson(successes: float, trials: int) -> tuple[float, float]:
    """Of a binomial share (Clopper and Pearson 1934); successes need not be whole."""
    tail = (1 - LEVEL) / 2
    failures = trials - successes
    low = scipy.stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = scipy.stats.beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return float(low), float(high)
