import pickle

import numpy as np
import pytest
import scipy

from tests.evaluation.test_tally import flat_approx, make_record, make_records, tally
from utils.data.columns import mix
from utils.evaluation import statistics
from utils.evaluation.metrics import Tallies
from utils.evaluation.statistics import Clusters, Moments, Sample, best_temperature


def numbered(start, stop):
    return np.arange(start, stop, dtype=np.uint64)


def cluster(prompts, correct, pairs, window=100):
    clusters = Clusters()
    for start in range(0, len(prompts), window):
        part = slice(start, start + window)
        clusters.add(prompts[part], correct[part], pairs[part])
    return clusters


def test_a_sample_keeps_everything_while_it_can(monkeypatch):
    monkeypatch.setattr(statistics, "SIZE", 50)
    sample, rows = Sample(), np.arange(100.0).reshape(50, 2)
    for part in range(0, 50, 7):
        sample.add(mix(numbered(part, min(part + 7, 50))), rows[part : part + 7])
    assert sorted(map(tuple, sample.rows())) == list(map(tuple, rows))
    assert sample.whole
    sample.add(mix(numbered(50, 51)), np.zeros((1, 2)))
    assert len(sample.rows()) == 50
    assert not sample.whole


def test_a_sample_is_uniform_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(statistics, "SIZE", 64)
    total, runs = np.zeros(1000), 300
    for run in range(runs):
        keys = mix(mix(numbered(run, run + 1)) + numbered(0, 1000))
        forward, backward = Sample(), Sample()
        for part in range(0, 1000, 125):
            chosen = slice(part, part + 125)
            forward.add(keys[chosen], np.arange(1000.0)[chosen])
            backward.add(keys[::-1][chosen], np.arange(1000.0)[::-1][chosen])
        assert sorted(forward.rows()) == sorted(backward.rows())
        total[forward.rows().astype(int)] += 1
    # Each row is drawn with the probability 64 / 1000, early ones as often as late ones.
    expected = runs * 64 / 1000
    assert scipy.stats.chisquare(total, np.full(1000, expected)).pvalue > 1e-3
    assert total[:500].sum() == pytest.approx(500 * expected, rel=0.02)


def test_prompts_are_counted_exactly_then_estimated(monkeypatch):
    monkeypatch.setattr(statistics, "SIZE", 1024)
    ones = np.ones(3000)
    few = cluster(numbered(0, 3000) % 1024, ones, ones)
    assert (few.prompts(), few.whole) == (1024, True)
    many = cluster(numbered(0, 30000) // 2, np.ones(30000), np.ones(30000))
    assert not many.whole
    assert len(many.keys) <= 1024
    assert many.prompts() == pytest.approx(15000, rel=4 / 32)  # four sigma


@pytest.mark.parametrize("prompts", [2, 30, 900])
def test_merged_prompts_keep_the_totals_and_nearly_the_interval(monkeypatch, prompts):
    """Prompts of very different sizes; the exact interval is of single prompts."""
    draw = np.random.default_rng(prompts)
    pairs = draw.integers(1, 20, prompts)
    correct = draw.binomial(pairs, draw.beta(3, 1, prompts)).astype(float)
    exact = cluster(numbered(0, prompts), correct, pairs)
    low, high = exact.interval()
    ratios = []
    monkeypatch.setattr(statistics, "SIZE", 128)
    for run in range(100):
        keys = mix(mix(numbered(run, run + 1)) + numbered(0, prompts))
        merged = cluster(keys, correct, pairs)
        less, more = merged.interval()
        np.testing.assert_allclose(merged.totals.sum(axis=0), [correct.sum(), pairs.sum()])
        ratios.append(((more - less) / (high - low)) ** 2)
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert (np.std(ratios) > 0.01) == (prompts > 128)


def test_the_interval_covers_the_truth():
    """Ten pairs a prompt that mostly share their fate: 95 % of the intervals hold the truth."""
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        correct = draw.binomial(10, draw.beta(0.7, 0.3, 60)).astype(float)
        clusters = cluster(numbered(0, 60), correct, np.full(60, 10))
        low, high = clusters.interval()
        inside += low < 0.7 < high
    assert inside / 600 == pytest.approx(0.95, abs=0.03)


def test_prompts_that_agree_have_a_clopper_pearson_interval():
    for right, prompts in ((0, 5), (5, 5), (1, 2), (1, 400)):
        pairs = np.full(prompts, 3 * prompts)
        one = cluster(numbered(0, prompts), np.full(prompts, 3.0 * right), pairs)
        expected = scipy.stats.binomtest(right, prompts).proportion_ci(0.95, "exact")
        assert one.interval() == pytest.approx(tuple(expected), abs=1e-12)


def test_an_interval_stays_between_0_and_1():
    two = cluster(numbered(0, 2), np.array([1.0, 2.0]), np.array([2, 2]))
    assert two.interval() == (0, 1)


def test_one_prompt_has_no_interval():
    same = np.zeros(7, dtype=np.uint64)
    assert cluster(same, np.arange(7.0), np.full(7, 6)).interval() == (None, None)
    assert Clusters().interval() == (None, None)
    assert Clusters().prompts() == 0


@pytest.mark.parametrize("mean", [0, -1e6])
def test_moments_lose_nothing_to_large_means(mean):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(500, 2)) @ [[0.01, 30], [0, 40]] + (mean, 300)
    moments = Moments()
    for part in np.split(rows, [1, 1, 70]):
        moments.add(*part.T)
    assert moments.mean() == pytest.approx(rows[:, 0].mean(), abs=1e-9)
    assert moments.std() == pytest.approx(rows[:, 0].std(), rel=1e-6)
    assert moments.correlation() == pytest.approx(scipy.stats.pearsonr(*rows.T)[0], rel=1e-6)


def test_a_constant_correlates_with_nothing():
    moments = Moments()
    assert moments.mean() is moments.std() is moments.correlation() is None
    for part in np.split(np.arange(1000.0), 9 * [100]):
        moments.add(np.full(len(part), 0.1), part)
    assert (moments.std(), moments.correlation()) == (0, None)
    assert moments.mean() == 0.1


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


# A whole evaluation within these limits


@pytest.mark.parametrize("size", [None, 64])
def test_windows_and_their_order_change_nothing(monkeypatch, size):
    if size:  # most rows do not fit
        monkeypatch.setattr(statistics, "SIZE", size)
    records = make_records(3, 240)
    once = tally(records)
    assert once["sampled"] == bool(size)
    parts = Tallies()
    for window in (records[200:], records[:1], [], records[1:120], records[120:200]):
        parts.add(window)
    assert parts.results()["a"] == flat_approx(once)


def test_a_sample_is_near_the_whole(monkeypatch):
    records = make_records(5, 2000)
    whole = tally(records)
    monkeypatch.setattr(statistics, "SIZE", 1024)
    part = tally(records)
    assert whole["pairs"] > 8 * 1024
    assert (whole["sampled"], part["sampled"]) == (False, True)
    assert sum(part["histogram"]["better"]) == 1024
    assert part["temperature"] != whole["temperature"]
    estimated = ("temperature", "score_percentiles", "histogram", "sampled")
    for name in set(whole) - set(estimated):
        assert part[name] == flat_approx(whole[name]), name
    for name, value in whole["score_percentiles"].items():
        assert part["score_percentiles"][name] == pytest.approx(value, abs=0.3)


def test_a_sample_of_pairs_or_of_answers_is_told(monkeypatch):
    monkeypatch.setattr(statistics, "SIZE", 8)
    six = [float(i) for i in range(6)]
    assert tally([make_record(six)])["sampled"]  # 15 pairs
    assert tally([make_record(six + six, ranks=[0] * 12)])["sampled"]
    assert not tally([make_record(six, ranks=[0] * 5 + [1])])["sampled"]


def test_memory_does_not_grow_with_rows(monkeypatch):
    monkeypatch.setattr(statistics, "SIZE", 256)
    one, sizes = Tallies(), []
    for part in range(20):
        records = make_records(part, 200)
        for record in records:
            record["index"] += 200 * part
            record["prompt"] = record["index"]
        one.add(records)
        sizes.append(len(pickle.dumps(one.total)))
    assert max(sizes[5:]) < 1.5 * sizes[4]
    assert max(sizes) < 256 * 200
