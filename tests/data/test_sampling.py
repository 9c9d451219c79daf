from collections import Counter

import numpy as np
import pytest

from utils.data.sampling import evaluation_plan, training_plan

SHAPES = pytest.mark.parametrize(
    ("n", "batch_size", "accumulation", "world"),
    [(1, 4, 2, 2), (5, 2, 1, 4), (16, 2, 2, 2), (17, 4, 1, 1), (50, 3, 2, 2), (101, 1, 3, 4)],
)


def make_lengths(n):
    return np.random.default_rng(n).integers(5, 60, n)


def all_ranks(n, batch_size, accumulation, world, seed=1, epoch=0):
    return [
        training_plan(make_lengths(n), batch_size, accumulation, rank, world, seed, epoch)
        for rank in range(world)
    ]


def rows_of_steps(plans):
    """The rows with weight of each step, over all ranks and micro-batches."""
    steps = []
    for step in zip(*plans, strict=True):
        batches = [micro_batch for rank in step for micro_batch in rank]
        rows = [
            row for batch in batches for row, w in zip(batch.rows, batch.weights, strict=True) if w
        ]
        steps.append(sorted(rows))
    return steps


@SHAPES
def test_every_row_trains_once_an_epoch(n, batch_size, accumulation, world):
    plans = all_ranks(n, batch_size, accumulation, world)
    assert sorted(sum(rows_of_steps(plans), [])) == list(range(n))
    size = batch_size * accumulation * world
    assert [len(rows) for rows in rows_of_steps(plans)[:-1]] == [size] * ((n - 1) // size)
    for plan in plans:
        assert all(len(step) == accumulation for step in plan)
        assert all(len(batch.rows) == batch_size for step in plan for batch in step)


@SHAPES
def test_weights_make_the_mean_over_the_rows_of_the_step(n, batch_size, accumulation, world):
    plans = all_ranks(n, batch_size, accumulation, world)
    losses = np.random.default_rng(0).normal(size=n)
    for step, rows in zip(zip(*plans, strict=True), rows_of_steps(plans), strict=True):
        sums = [
            sum(w * losses[row] for row, w in zip(batch.rows, batch.weights, strict=True))
            for rank in step
            for batch in rank
        ]
        assert np.mean(sums) == pytest.approx(np.mean([losses[row] for row in rows]))


@SHAPES
def test_ranks_run_rows_of_similar_length_at_the_same_time(n, batch_size, accumulation, world):
    lengths = make_lengths(n)
    for step in zip(*all_ranks(n, batch_size, accumulation, world), strict=True):
        longest = 0
        for together in zip(*step, strict=True):
            now = [lengths[row] for batch in together for row in batch.rows]
            assert min(now) >= longest
            longest = max(now)


@pytest.mark.parametrize("n", [3, 64, 75])
def test_global_batches_do_not_depend_on_the_number_of_ranks(n):
    one, two, four = (
        rows_of_steps(all_ranks(n, 4, accumulation, world))
        for world, accumulation in ((1, 4), (2, 2), (4, 1))
    )
    assert one == two == four


def test_seed_and_epoch_fix_the_order():
    orders = [
        rows_of_steps(all_ranks(40, 2, 2, 2, seed, epoch)) for seed in (1, 2) for epoch in range(3)
    ]
    again = [
        rows_of_steps(all_ranks(40, 2, 2, 2, seed, epoch)) for seed in (1, 2) for epoch in range(3)
    ]
    assert orders == again
    assert all(first != second for i, first in enumerate(orders) for second in orders[:i])


@SHAPES
@pytest.mark.parametrize("max_batches", [0, 2, 1000])
def test_evaluation_sees_every_row_of_its_sample_once(
    n, batch_size, accumulation, world, max_batches
):
    plans = [
        evaluation_plan(make_lengths(n), batch_size, rank, world, max_batches)
        for rank in range(world)
    ]
    assert len({len(plan) for plan in plans}) == 1
    counted = Counter()
    for plan in plans:
        for batch in plan:
            assert len(batch.rows) == batch_size
            for row, weight in zip(batch.rows, batch.weights, strict=True):
                counted[row] += weight
    sample = min(n, max_batches * batch_size * world) if max_batches else n
    assert len(counted) == sum(counted.values()) == sample
    assert set(counted.values()) == {1} and set(counted) <= set(range(n))
    assert len(plans[0]) == -(-sample // (batch_size * world))


def test_evaluation_sample_is_fixed():
    def sample(world, max_batches):
        plans = [evaluation_plan(make_lengths(99), 4, r, world, max_batches) for r in range(world)]
        return sorted(row for plan in plans for batch in plan for row in batch.rows)

    assert sample(1, 4) == sample(1, 4) == sample(2, 2) == sample(4, 1)
    assert sample(1, 4) != list(range(16))
