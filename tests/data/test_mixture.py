"""Sources that are mixed by weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import chisquare, hypergeom

from tests.data.test_sampling import EACH_LAYOUT, all_ranks, group, rows_of_steps
from utils.data.sampling import Mixture


def make_mixture(*weights, sizes=(300, 1000, 90), shuffled=True):
    """Rows of the sources are strewn among each other."""
    rows = np.random.default_rng(0).permutation(sum(sizes)) if shuffled else np.arange(sum(sizes))
    return Mixture(np.split(rows, np.cumsum(sizes)[:-1]), weights)


def source_of(mixture):
    """The number of the source of each row."""
    owner = np.empty(sum(map(len, mixture.parts)), dtype=int)
    for number, rows in enumerate(mixture.parts):
        owner[rows] = number
    return owner


MIXTURES = pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((0.3, 0.6, 0.1), [270, 540, 90]),
        ((3, 6, 1), [270, 540, 90]),
        ((1, 1, 1), [90, 90, 90]),
        ((0.5, 0.4, 0.1), [300, 240, 60]),
        ((1, 98, 1), [10, 1000, 10]),
        ((1, 1, 1e-9), [300, 300, 0]),
        ((0.7, 0.2, 0.1), [300, 85, 43]),  # of 299.6, 85.6, 42.8
    ],
)


@MIXTURES
def test_an_epoch_has_each_source_as_often_as_its_weight_says(weights, counts):
    mixture = make_mixture(*weights)
    owner = source_of(mixture)
    assert mixture.counts == counts and mixture.epoch_size == sum(counts)
    for seed, epoch in [(0, 0), (1, 0), (1, 5)]:
        order = mixture.order(seed, epoch)
        assert order.dtype == np.int64
        assert len(set(order.tolist())) == len(order) == mixture.epoch_size
        assert np.bincount(owner[order], minlength=3).tolist() == counts


positive = some.floats(1e-3, 1e3)


@given(some.lists(some.tuples(some.integers(1, 200), positive), min_size=1, max_size=5))
def test_an_epoch_is_as_long_as_no_row_comes_twice(sources):
    sizes, weights = zip(*sources, strict=True)
    mixture = make_mixture(*weights, sizes=sizes)
    shares = np.asarray(weights) / sum(weights)
    number = mixture.epoch_size
    assert 0 < number == pytest.approx(np.floor(np.min(sizes / shares)), abs=1)
    assert (number * shares <= np.add(sizes, 1e-6)).all()
    assert ((number + 1) * shares > np.subtract(sizes, 1e-6)).any()
    counts = np.asarray(mixture.counts)
    assert counts.sum() == number and (counts <= sizes).all()
    assert (abs(counts - number * shares) < 1 + 1e-6).all()
    order = mixture.order(1, 2)
    drawn = np.bincount(source_of(mixture)[order], minlength=len(sizes))
    assert drawn.tolist() == counts.tolist()
    assert len(set(order.tolist())) == number


def test_decimal_weights_lose_no_row():
    """In floating point 0.3 and 0.6 of all are not 3 and 6 times 0.1 of all."""
    for number in range(1, 200):
        mixture = make_mixture(0.1, 0.3, 0.6, sizes=(number, 3 * number, 6 * number))
        assert mixture.counts == [number, 3 * number, 6 * number]


@MIXTURES
def test_every_stretch_of_an_epoch_has_the_shares_within_sampling_error(weights, counts):
    mixture = make_mixture(*weights, shuffled=False)
    owner = source_of(mixture)
    total = mixture.epoch_size
    for epoch in range(3):
        order = owner[mixture.order(11, epoch)]
        for length in (total // 10, total // 3, total // 2):
            for first in (0, total // 4, total - length):
                for source, count in enumerate(counts):
                    drawn = np.count_nonzero(order[first : first + length] == source)
                    low, high = hypergeom(total, count, length).interval(1 - 1e-6)
                    assert low <= drawn <= high


def test_epochs_go_through_a_larger_source_before_they_draw_a_row_again():
    mixture = make_mixture(0.5, 0.5, sizes=(30, 100))
    large = set(mixture.parts[1].tolist())
    for seed in (1, 2):
        orders = [mixture.order(seed, epoch).tolist() for epoch in range(8)]
        drawn = [[row for row in order if row in large] for order in orders]
        for first in (0, 4):  # 30, 30, 30, and the last 10 with 20 others
            assert len(set(sum(drawn[first : first + 3], []))) == 90
            assert set(sum(drawn[first : first + 4], [])) == large
        assert set(drawn[0]) != set(drawn[4])  # another permutation
        small = [[row for row in order if row not in large] for order in orders]
        assert all(sorted(rows) == sorted(mixture.parts[0]) for rows in small)
        assert all(a != b for i, a in enumerate(small) for b in small[:i])


def test_every_row_of_a_larger_source_is_drawn_equally_often():
    mixture = make_mixture(1, 1, sizes=(30, 100), shuffled=False)
    draws = [np.bincount(mixture.order(seed, 2), minlength=130)[30:] for seed in range(400)]
    # Draws without replacement vary less than the test expects, so it is on the safe side.
    assert chisquare(sum(draws)).pvalue > 1e-4
    # Nor do rows come in the order of the source.
    assert mixture.order(0, 0).tolist() != sorted(mixture.order(0, 0))


def test_sources_of_a_mixture_have_different_orders():
    mixture = make_mixture(1, 1, 1, sizes=(50, 50, 20), shuffled=False)
    order = mixture.order(1, 0)
    assert {r for r in order if r < 50} != {r - 50 for r in order if 50 <= r < 100}
    assert order.tolist() == mixture.order(1, 0).tolist()
    others = [mixture.order(*key).tolist() for key in [(1, 1), (2, 0), (0, 1)]]
    assert order.tolist() not in others


@EACH_LAYOUT
def test_a_mixture_has_the_same_global_batches_on_any_number_of_ranks(layout):
    mixture = make_mixture(0.2, 0.7, 0.1, sizes=(40, 60, 30))
    assert mixture.counts == [17, 60, 8]
    one, two, three, six = (
        rows_of_steps(all_ranks(group(layout, 130, 2, 6 // ranks, ranks), 4, 1, mixture=mixture))
        for ranks in (1, 2, 3, 6)
    )
    assert one == two == three == six
    assert sorted(sum(one, [])) == sorted(mixture.order(4, 1))
    for done in range(len(one) + 1):
        start = sum(map(len, one[:done]))
        for ranks in (1, 3):
            grouping = group(layout, 130, 2, 6 // ranks, ranks)
            assert rows_of_steps(all_ranks(grouping, 4, 1, start, mixture)) == one[done:]


@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        ([[0, 1], [2]], [1.0]),
        ([[0, 1], []], [0.5, 0.5]),
        ([[0, 1], [2]], [0.0, 1.0]),
        ([[0, 1], [2]], [-1.0, 2.0]),
        ([[0, 1], [2]], [float("nan"), 1.0]),
        ([[0, 1], [2]], [float("inf"), 1.0]),
    ],
)
def test_a_mixture_needs_rows_and_positive_weights(parts, weights):
    with pytest.raises(ValueError, match="weights"):
        Mixture([np.asarray(rows, dtype=np.int64) for rows in parts], weights)
