"""Intervals, correlation and temperature, from arrays in memory."""

import numpy as np
import scipy  # loads its parts when they are first used: training needs few of them

LEVEL = 0.95


def accuracy_interval(
    prompts: np.ndarray, correct: np.ndarray, pairs: np.ndarray
) -> tuple[float, float] | tuple[None, None]:
    """A 95 % interval of right pairs / pairs that knows of repeated prompts.

    That of `clustered_interval`, within 0 and 1. Where all prompts have the same share of right
    pairs, it would have no width. There it is the Clopper-Pearson interval of a binomial share,
    with one trial a prompt.

    Args:
        prompts: [C], a key that equal prompts share.
        correct: float64 [C], right pairs of each comparison.
        pairs: int64 [C], all pairs of each.

    Returns:
        Its ends; None for fewer than two prompts.
    """
    keys, cluster = np.unique(prompts, return_inverse=True)
    if len(keys) < 2:
        return None, None
    sums, sizes = np.bincount(cluster, correct), np.bincount(cluster, pairs)
    if np.ptp(sums / sizes) == 0:
        return _clopper_pearson(sums.sum() / sizes.sum() * len(keys), len(keys))
    low, high = clustered_interval(sums, sizes)
    return max(low, 0.0), min(high, 1.0)


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


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's; None where a column is constant or empty."""
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


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


def _clopper_pearson(successes: float, trials: int) -> tuple[float, float]:
    """Of a binomial share (Clopper and Pearson 1934); successes need not be whole."""
    tail = (1 - LEVEL) / 2
    failures = trials - successes
    low = scipy.stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = scipy.stats.beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return float(low), float(high)
