import numpy as np
import pytest
import scipy

from tests.evaluation.test_tally import flat_approx, make_record, make_records, tally
from utils.evaluation.metrics import Tallies
from utils.evaluation.statistics import accuracy_interval, best_temperature, correlation


def test_the_interval_covers_the_truth():
    """Ten pairs a prompt that mostly share their fate: 95 % of the intervals hold the truth."""
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        correct = draw.binomial(10, draw.beta(0.7, 0.3, 60)).astype(float)
        low, high = accuracy_interval(np.arange(60), correct, np.full(60, 10))
        inside += low < 0.7 < high
    assert inside / 600 == pytest.approx(0.95, abs=0.03)


def test_prompts_that_agree_have_a_clopper_pearson_interval():
    for right, prompts in ((0, 5), (5, 5), (1, 2), (1, 400)):
        pairs = np.full(prompts, 3 * prompts)
        found = accuracy_interval(np.arange(prompts), np.full(prompts, 3.0 * right), pairs)
        expected = scipy.stats.binomtest(right, prompts).proportion_ci(0.95, "exact")
        assert found == pytest.approx(tuple(expected), abs=1e-12)


def test_an_interval_stays_between_0_and_1():
    found = accuracy_interval(np.arange(2), np.array([1.0, 2.0]), np.array([2, 2]))
    assert found == (0, 1)


def test_one_prompt_has_no_interval():
    same, none = np.zeros(7, dtype=np.uint64), np.empty(0)
    assert accuracy_interval(same, np.arange(7.0), np.full(7, 6)) == (None, None)
    assert accuracy_interval(none, none, none) == (None, None)


@pytest.mark.parametrize("mean", [0, -1e6])
def test_deviations_and_correlations_lose_nothing_to_large_means(mean):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(500, 2)) @ [[0.01, 30], [0, 40]]
    expected = scipy.stats.pearsonr(*rows.T)[0]
    assert correlation(*(rows + (mean, 300)).T) == pytest.approx(expected, rel=1e-6)
    result = tally([make_record((row + mean).tolist(), index=i) for i, row in enumerate(rows)])
    assert result["score_mean"] == pytest.approx(rows.mean() + mean, abs=1e-9)
    assert result["score_std"] == pytest.approx(rows.std(), rel=1e-6)


def test_a_constant_correlates_with_nothing():
    assert correlation(np.full(1000, 0.1), np.arange(1000.0)) is None
    assert correlation(np.arange(1000.0), np.full(1000, 0.1)) is None
    assert correlation(np.empty(0), np.empty(0)) is None


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
@pytest.mark.parametrize("centre", [0.02, 1, 3])
def test_temperature_is_the_minimum_of_the_loss(scale, centre):
    margins = np.random.default_rng(1).normal(centre, 1, 4000) * scale
    found = best_temperature(margins)

    def loss(temperature):
        return np.logaddexp(0, -margins / temperature).mean()

    slope = scipy.optimize.check_grad(
        lambda x: loss(np.exp(x[0])), lambda x: np.zeros(1), [np.log(found)]
    )
    assert slope < 1e-6
    assert all(loss(found) < loss(found * factor) for factor in (0.5, 0.9, 1.1, 2))


@pytest.mark.parametrize(
    "margins",
    [[], [0.0], [0.0, 0.0], [1.0], [1.0, 0.0], [-1.0], [-2.0, 1.0], [-1.0, 1.0], [0.1, 0.2, -0.3]],
)
def test_temperature_without_a_minimum_is_none(margins):
    assert best_temperature(np.array(margins)) is None


def test_windows_change_nothing():
    records = make_records(3, 240)
    once = tally(records)
    parts = Tallies()
    for window in (records[200:], records[:1], [], records[1:120], records[120:200]):
        parts.add(window)
    assert parts.results()["a"] == flat_approx(once)
