from itertools import combinations

import numpy as np
import pytest

from utils.data.packing import PaddedCollator
from utils.data.sampling import Grouping, Mixture, TrainingPlan, evaluation_plan, padded_tokens

SHAPES = pytest.mark.parametrize(
    ("n", "batch_size", "accumulation", "world"),
    [(1, 4, 2, 2), (5, 2, 1, 4), (16, 2, 2, 2), (17, 4, 1, 1), (50, 3, 2, 2), (101, 1, 3, 4)],
)
LAYOUTS = {
    "padded": {},
    "packed": {"packed": True},
    "packed with max_tokens": {"packed": True, "max_tokens": 120},
}
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def make_sizes(n):
    return np.random.default_rng(n).integers(5, 60, n)


def group(layout, n, batch_size, accumulation, world):
    return Grouping(make_sizes(n), batch_size, accumulation, world, **LAYOUTS[layout])


def all_ranks(grouping, seed=1, epoch=0, start=0, mixture=None):
    ranks = range(grouping.world_size)
    epochs = range(epoch, epoch + 1)
    return [
        list(TrainingPlan(grouping, rank, seed, epochs, start, mixture=mixture)) for rank in ranks
    ]


def in_order(plans):
    """The micro-batches of each step, over all ranks: those that run at the same time together."""
    return [
        [batch for together in zip(*step, strict=True) for batch in together]
        for step in zip(*plans, strict=True)
    ]


def evaluation_in_order(grouping, max_batches=0):
    plans = [evaluation_plan(grouping, rank, max_batches) for rank in range(grouping.world_size)]
    return [batch for together in zip(*plans, strict=True) for batch in together]


def counted_rows(batches):
    """The rows that count, those with weight, in their order."""
    return [row for batch in batches for row, w in zip(batch.rows, batch.weights, strict=True) if w]


def rows_of_steps(plans):
    return [sorted(counted_rows(batches)) for batches in in_order(plans)]


def stand_ins(batches):
    return [batch for batch in batches if 0 in batch.weights]


def tokens(batch, sizes):
    total = 0
    for row in batch.rows:
        total += int(sizes[row])
    return total


@SHAPES
@EACH_LAYOUT
def test_every_row_trains_once_an_epoch(layout, n, batch_size, accumulation, world):
    grouping = group(layout, n, batch_size, accumulation, world)
    plans = all_ranks(grouping)
    steps = rows_of_steps(plans)
    assert sorted(sum(steps, [])) == list(range(n))
    for ranks in zip(*plans, strict=True):
        lengths = {len(step) for step in ranks}
        assert len(lengths) == 1 and (grouping.max_tokens or lengths == {accumulation})
    size = batch_size * accumulation * world
    assert [len(rows) for rows in steps] == [size] * (n // size) + [n % size] * (n % size > 0)


@SHAPES
@EACH_LAYOUT
def test_micro_batches_are_neither_empty_nor_too_large(layout, n, batch_size, accumulation, world):
    grouping = group(layout, n, batch_size, accumulation, world)
    for batch in sum(in_order(all_ranks(grouping)), []) + evaluation_in_order(grouping):
        assert len(batch.rows) == len(batch.weights) > 0
        if grouping.max_tokens:
            assert tokens(batch, grouping.sizes) <= grouping.max_tokens
        else:
            assert len(batch.rows) <= batch_size


@SHAPES
@EACH_LAYOUT
def test_weight_zero_only_stands_in_where_no_rows_are_left(
    layout, n, batch_size, accumulation, world
):
    grouping = group(layout, n, batch_size, accumulation, world)
    steps = in_order(all_ranks(grouping))
    evaluated = evaluation_in_order(grouping)
    for batch in stand_ins(sum(steps, []) + evaluated):
        # The shortest row costs least.
        assert batch.weights == [0] and grouping.sizes[batch.rows] == [min(grouping.sizes)]
    assert not stand_ins(sum(steps[:-1], []))
    assert not stand_ins(evaluated[: 1 - world or None])
    if not grouping.max_tokens:
        in_last = len(counted_rows(steps[-1]))
        assert len(stand_ins(steps[-1])) == max(accumulation * world - in_last, 0)


@SHAPES
@EACH_LAYOUT
def test_weights_make_the_mean_over_the_rows_of_the_step(
    layout, n, batch_size, accumulation, world
):
    losses = np.random.default_rng(0).normal(size=n)
    for batches in in_order(all_ranks(group(layout, n, batch_size, accumulation, world))):
        sums = [
            sum(w * losses[row] for row, w in zip(batch.rows, batch.weights, strict=True))
            for batch in batches
        ]
        rows = counted_rows(batches)
        assert sum(sums) / world == pytest.approx(np.mean([losses[row] for row in rows]))


@SHAPES
def test_padded_ranks_run_rows_of_similar_length_at_the_same_time(
    n, batch_size, accumulation, world
):
    grouping = group("padded", n, batch_size, accumulation, world)
    for step in zip(*all_ranks(grouping), strict=True):
        longest = 0
        for together in zip(*step, strict=True):
            now = [grouping.sizes[row] for row in counted_rows(together)]
            assert min(now, default=longest) >= longest
            longest = max(now, default=longest)


@SHAPES
@EACH_LAYOUT
def test_the_rest_of_a_cut_pass_is_the_tail_of_the_whole_one(
    layout, n, batch_size, accumulation, world
):
    grouping = group(layout, n, batch_size, accumulation, world)
    whole = all_ranks(grouping)
    steps = rows_of_steps(whole)
    for done in range(len(steps) + 1):
        start = sum(map(len, steps[:done]))
        assert all_ranks(grouping, start=start) == [plan[done:] for plan in whole]


@EACH_LAYOUT
@pytest.mark.parametrize("first", [(1, 4, 1), (2, 2, 2), (3, 1, 4)])
@pytest.mark.parametrize("then", [(1, 4, 1), (1, 2, 2), (2, 2, 1), (5, 3, 2), (1, 1, 8)])
def test_a_cut_pass_goes_on_with_other_ranks_and_batches(layout, first, then):
    """The numbers are rows of a micro-batch, accumulation, ranks."""
    before = rows_of_steps(all_ranks(group(layout, 75, *first)))
    grouping = group(layout, 75, *then)
    for done in range(len(before) + 1):
        trained = sum(before[:done], [])
        rest = rows_of_steps(all_ranks(grouping, start=len(trained)))
        assert sorted(trained + sum(rest, [])) == list(range(75))
        if first[0] == then[0] and grouping.accumulation * grouping.world_size == 4:
            assert rest == before[done:]


def skewed_sizes(chance, n):
    """Many short rows and a few that are ten times as long."""
    return (60 * chance.lognormal(sigma=1, size=n)).astype(int) + 2


@pytest.mark.parametrize("seed", range(5))
def test_packed_micro_batches_of_a_step_have_about_equally_many_tokens(seed):
    chance = np.random.default_rng(seed)
    sizes = skewed_sizes(chance, 3 * 8 * 16 + 5)
    grouping = Grouping(sizes, batch_size=16, accumulation=4, world_size=2, packed=True)
    for batches in in_order(all_ranks(grouping))[:3]:  # the full steps
        assert [len(batch.rows) for batch in batches] == [16] * 8
        loads = [tokens(batch, sizes) for batch in batches]
        assert max(loads) < 1.1 * np.mean(loads)
        for _ in range(20):
            dealt = sizes[chance.permutation(counted_rows(batches))].reshape(8, 16)
            assert max(loads) < max(dealt.sum(axis=1))


def all_triples(rows):
    """Every way to put rows into groups of three."""
    if not rows:
        yield []
    for pair in combinations(rows[1:], 2):
        for others in all_triples([row for row in rows[1:] if row not in pair]):
            yield [(rows[0], *pair), *others]


@pytest.mark.parametrize("seed", range(10))
def test_packed_micro_batches_are_nearly_the_most_equal_ones(seed):
    sizes = skewed_sizes(np.random.default_rng(seed), 9)
    [step] = in_order(all_ranks(Grouping(sizes, 3, accumulation=3, packed=True)))
    best = min(max(sum(sizes[list(g)]) for g in groups) for groups in all_triples([*range(9)]))
    assert best <= max(tokens(batch, sizes) for batch in step) <= 1.1 * best


@pytest.mark.parametrize("max_tokens", [59, 60, 120, 10_000])
@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (3, 1), (2, 4)])
def test_max_tokens_makes_as_few_micro_batches_as_it_allows(accumulation, world, max_tokens):
    sizes = make_sizes(101)
    assert max(sizes) == 59  # so that the lowest limit is one that a row reaches
    grouping = Grouping(sizes, 16, accumulation, world, packed=True, max_tokens=max_tokens)
    for batches in [*in_order(all_ranks(grouping)), evaluation_in_order(grouping)]:
        assert all(tokens(batch, sizes) <= max_tokens for batch in batches)
        rows = sizes[counted_rows(batches)]
        # No two of the rows that fill more than half of the limit go together.
        least = max(-(-sum(rows) // max_tokens), sum(rows > max_tokens / 2))
        assert len(batches) % world == 0
        assert len(batches) <= 1.1 * least + world


def test_max_tokens_changes_no_step():
    plan = TrainingPlan(Grouping(make_sizes(75), 4, 2, 2, packed=True), 1, 1, range(2), 16)
    limited = plan.within(90)
    assert limited.grouping.max_tokens == 90 and list(limited.within(0)) == list(plan)
    whole = [rows_of_steps(all_ranks(g, start=16)) for g in (plan.grouping, limited.grouping)]
    assert whole[0] == whole[1] and list(plan) != list(limited)


@EACH_LAYOUT
@pytest.mark.parametrize("n", [3, 64, 75])
def test_global_batches_do_not_depend_on_the_number_of_ranks(n, layout):
    one, two, four = (
        rows_of_steps(all_ranks(group(layout, n, 4, accumulation, world)))
        for world, accumulation in ((1, 4), (2, 2), (4, 1))
    )
    assert one == two == four


@EACH_LAYOUT
def test_seed_and_epoch_fix_the_order(layout):
    def orders():
        grouping = group(layout, 40, 2, 2, 2)
        return [
            rows_of_steps(all_ranks(grouping, seed, epoch)) for seed in (1, 2) for epoch in range(3)
        ]

    assert orders() == orders()
    assert all(a != b for i, a in enumerate(orders()) for b in orders()[:i])


@SHAPES
@EACH_LAYOUT
@pytest.mark.parametrize("max_batches", [0, 2, 1000])
def test_evaluation_sees_every_row_of_its_sample_once(
    n, batch_size, accumulation, world, max_batches, layout
):
    grouping = group(layout, n, batch_size, accumulation, world)
    plans = [evaluation_plan(grouping, rank, max_batches) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    weights = [w for plan in plans for batch in plan for w in batch.weights]
    assert set(weights) <= {0, 1}
    rows = counted_rows(sum(plans, []))
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(n))
    sample = min(n, max_batches * batch_size * world) if max_batches else n
    assert len(rows) == sample
    if not grouping.max_tokens:
        assert len(plans[0]) == -(-sample // (batch_size * world))


@EACH_LAYOUT
def test_evaluation_sample_is_fixed(layout):
    def sample(world, max_batches):
        grouping = group(layout, 99, 4, 1, world)
        return sorted(counted_rows(evaluation_in_order(grouping, max_batches)))

    assert sample(1, 4) == sample(1, 4) == sample(2, 2) == sample(4, 1)
    sizes = make_sizes(99)
    assert 0 < len(sample(1, 4)) < 99
    # Neither the first rows nor the shortest ones.
    assert sample(1, 4) != list(range(len(sample(1, 4))))
    assert np.mean(sizes[sample(1, 4)]) == pytest.approx(np.mean(sizes), rel=0.25)


@EACH_LAYOUT
@pytest.mark.parametrize(("n", "accumulation", "world"), [(3, 4, 2), (50, 3, 1), (75, 2, 2)])
def test_padded_tokens_are_those_of_the_padded_collator(layout, n, accumulation, world):
    chance = np.random.default_rng(n)
    rows = []
    for _ in range(n):
        lengths = chance.integers(1, 60, chance.integers(2, 7))
        ids = [[7] * length for length in lengths]
        numbers = list(range(len(ids)))
        rows.append({"input_ids": ids, "answers": numbers, "ranks": numbers})
    grouping = group(layout, n, 4, accumulation, world)
    answers = np.array([len(row["input_ids"]) for row in rows])
    longest = np.array([max(map(len, row["input_ids"])) for row in rows])
    for plan in (sum(in_order(all_ranks(grouping)), []), evaluation_in_order(grouping)):
        expected = 0
        for batch in plan:
            if batch not in stand_ins(plan):
                padded = PaddedCollator(0)([rows[row] for row in batch.rows], batch.weights)
                expected += padded.input_ids.numel()
        assert padded_tokens(plan, answers, longest) == expected


@EACH_LAYOUT
@pytest.mark.parametrize("mixed", [False, True])
def test_a_plan_of_several_epochs_is_theirs_one_after_the_other(layout, mixed):
    grouping = group(layout, 50, 3, 2, 2)
    mixture = Mixture([np.arange(20), np.arange(20, 50)], [1, 4]) if mixed else None
    for epochs, start in [(range(4), 0), (range(2, 4), 12), (range(3, 3), 0)]:
        plan = TrainingPlan(grouping, 1, 5, epochs, start, mixture=mixture)
        parts = [
            TrainingPlan(grouping, 1, 5, range(e, e + 1), start * (e == epochs[0]), mixture=mixture)
            for e in epochs
        ]
        expected = [step for part in parts for step in part]
        assert list(plan) == expected and len(plan) == sum(map(len, parts))
        backwards = [plan[number] for number in reversed(range(len(plan)))]
        assert backwards[::-1] == expected
        for number in (-1, len(plan)):
            with pytest.raises(IndexError):
                plan[number]


def test_the_plan_of_all_rows_follows_one_shuffle():
    """Another order would change every run that goes on from a training state."""
    for seed, epoch in [(0, 0), (1234, 0), (1234, 7)]:
        plan = TrainingPlan(Grouping(make_sizes(101), 1), 0, seed, range(epoch, epoch + 1))
        order = np.random.default_rng([seed, epoch]).permutation(101)
        assert [[batch.rows for batch in step] for step in plan] == [[[row]] for row in order]
        assert plan.order(epoch).tolist() == order.tolist() and plan.epoch_size == 101
