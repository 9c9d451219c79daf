import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from tests.conftest import slow_prefix
from utils.data.batch import LossInputs
from utils.data.packing import PaddedCollator
from utils.data.token_rows import empty_row
from utils.training.loss import (
    centering_loss,
    loss_inputs,
    pairwise_loss,
    plackett_luce_loss,
    tie_loss,
    token_pairwise_loss,
    training_loss,
)
from utils.training.settings import parse_training_arguments

PAD = 1


def check(loss, expected, leaf, slow_leaf):
    """Loss and gradient are those of a slow loop in float64."""
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    (got,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    (wanted,) = torch.autograd.grad(expected, slow_leaf)
    torch.testing.assert_close(got, wanted.float(), atol=1e-5, rtol=1e-5)


def random_leaf(seed, number, scale=1.0):
    """Numbers in float32, and the same in float64."""
    leaf = torch.randn(number, generator=torch.Generator().manual_seed(seed)) * scale
    return leaf.requires_grad_(), leaf.detach().double().requires_grad_()


def slow_log_sigmoid(x):
    return -torch.log1p(torch.exp(-x)) if x > 0 else x - torch.log1p(torch.exp(x))


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(12, generator=generator, requires_grad=True)
    pairs = torch.randint(0, 12, (20, 2), generator=generator)
    weight = torch.rand(20, generator=generator)
    loss = pairwise_loss(scores, pairs, weight)
    expected, gradient = 0.0, [0.0] * 12
    for (better, worse), w in zip(pairs.tolist(), weight.tolist(), strict=True):
        margin = scores[better].item() - scores[worse].item()
        expected += w * math.log(1 + math.exp(-margin))
        slope = w * (1 / (1 + math.exp(-margin)) - 1)
        gradient[better] += slope
        gradient[worse] -= slope
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (got,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(got, torch.tensor(gradient), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_scores_neither_overflow_nor_lose_their_gradient(dtype):
    scores = torch.tensor([0.0, 3e4], dtype=dtype, requires_grad=True)
    for loss in (
        pairwise_loss(scores, torch.tensor([[0, 1]]), torch.ones(1)),
        plackett_luce_loss(scores, torch.tensor([[0, 1]]), torch.ones(1), torch.tensor([2])),
        token_pairwise_loss(scores, torch.tensor([[0, 1]]), torch.tensor([0]), torch.ones(1)),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(scores[1].item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("tie_threshold", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_margins_targets_and_threshold_equal_a_slow_loop(seed, tie_threshold, scale):
    chance = np.random.default_rng(seed)
    leaf, slow = random_leaf(seed, 9, scale)
    pairs = torch.tensor(chance.integers(0, 9, (14, 2)))
    weight, margin, target = torch.tensor(chance.random((3, 14)), dtype=torch.float32)
    target[0], target[1] = 0, 1
    expected = 0.0
    for (i, j), w, m, p in zip(
        *(part.tolist() for part in (pairs, weight, margin, target)), strict=True
    ):
        gap = slow[i] - slow[j] - m
        wins, loses = (slow_log_sigmoid(side * gap - tie_threshold) for side in (1, -1))
        expected = expected - w * (p * wins + (1 - p) * loses)
    options = {"margin": margin, "target": target, "tie_threshold": tie_threshold}
    check(pairwise_loss(leaf, pairs, weight, **options), expected, leaf, slow)


@pytest.mark.parametrize("gap", [-40.0, -1.0, 0.0, 0.3, 5.0])
@pytest.mark.parametrize("tie_threshold", [1e-3, 0.5, 3.0])
def test_the_three_outcomes_of_rao_and_kupper_sum_to_1(gap, tie_threshold):
    scores, one = torch.tensor([gap, 0.0]), torch.ones(1)
    both = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
    wins = [pairwise_loss(scores, p, one, tie_threshold=tie_threshold).item() for p in both]
    ties = [tie_loss(scores, p, one, tie_threshold).item() for p in both]
    assert ties[0] == pytest.approx(ties[1], rel=1e-6)
    assert sum(math.exp(-part) for part in (*wins, ties[0])) == pytest.approx(1, abs=1e-5)
    # In their own words: pi_i / (pi_i + theta pi_j), with pi = exp(score) and theta = exp(eta).
    strength, theta = math.exp(gap), math.exp(tie_threshold)
    assert math.exp(-wins[0]) == pytest.approx(strength / (strength + theta), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_ties_equal_a_slow_loop(seed):
    chance = np.random.default_rng(seed)
    leaf, slow = random_leaf(seed, 6)
    ties = torch.tensor(chance.integers(0, 6, (8, 2)))
    weight = torch.tensor(chance.random(8), dtype=torch.float32)
    expected = 0.0
    for (i, j), w in zip(ties.tolist(), weight.tolist(), strict=True):
        first, second = slow[i].exp(), slow[j].exp()
        theta = math.exp(0.4)
        share = (theta**2 - 1) * first * second
        expected = expected - w * torch.log(
            share / ((first + theta * second) * (second + theta * first))
        )
    check(tie_loss(leaf, ties, weight, 0.4), expected, leaf, slow)


def test_a_tie_draws_scores_together_and_a_preference_apart():
    for scores in ([1.0, 0.0], [-1.0, 0.0]):
        leaf = torch.tensor(scores, requires_grad=True)
        (slope,) = torch.autograd.grad(
            tie_loss(leaf, torch.tensor([[0, 1]]), torch.ones(1), 1.0), leaf
        )
        assert math.copysign(1, slope[0]) == math.copysign(1, scores[0])
    assert tie_loss(torch.zeros(2), torch.empty(0, 2).long(), torch.empty(0), 1.0) == 0


def make_row(chance, vocabulary=4):
    """A comparison of 2 to 7 answers; some are equal, some begin others, some are tied."""
    prompt = chance.integers(2, 2 + vocabulary, chance.integers(1, 4)).tolist()
    answers = chance.integers(2, 8)
    ids = [prompt + chance.integers(2, 4, chance.integers(1, 4)).tolist() for _ in range(answers)]
    ranks = chance.integers(0, 4, answers).tolist()
    ids[0], ids[1], ranks[0], ranks[1] = [*prompt, 2, 2, 2], [*prompt, 3], 0, 5  # a pair at least
    return {
        **empty_row(""),
        "input_ids": ids,
        "answers": list(range(answers)),
        "ranks": ranks,
        "answer_starts": [len(prompt)] * answers,
        "shared": slow_prefix(ids),
        "grades": chance.normal(size=answers).tolist(),
        "votes": chance.integers(0, 3, answers).tolist(),
        "weight": float(chance.random()),
    }


def collated(seed, comparisons=4, **inputs):
    chance = np.random.default_rng(seed)
    rows = [make_row(chance) for _ in range(comparisons)]
    weights = [*chance.random(comparisons - 1).tolist(), 0.0]
    return rows, weights, PaddedCollator(PAD, inputs=LossInputs(**inputs))(rows, weights)


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("seed", range(8))
def test_plackett_luce_equals_a_slow_loop_over_rankings(seed, scale):
    rows, weights, batch = collated(seed)
    leaf, slow = random_leaf(seed, len(batch.end_index), scale)
    expected, first = slow.sum() * 0, 0
    for row, weight in zip(rows, weights, strict=True):
        terms = []
        for i, ids in enumerate(row["input_ids"]):
            worse = [
                first + j
                for j, other in enumerate(row["input_ids"])
                if row["ranks"][j] > row["ranks"][i] and other != ids
            ]
            if worse:
                field = slow[[first + i, *worse]]
                terms.append(torch.logsumexp(field, 0) - slow[first + i])
        expected = expected + weight * sum(terms) / len(terms)
        first += len(row["input_ids"])
    loss = plackett_luce_loss(leaf, batch.pairs, batch.weight, batch.answer_counts)
    check(loss, expected, leaf, slow)


def test_plackett_luce_of_a_strict_ranking_is_its_likelihood():
    """Against the probability of the ranking, summed to 1 over all rankings of four answers."""
    scores, total = torch.tensor([0.3, -1.0, 2.0, 0.5]), 0.0
    for order in permutations(range(4)):
        pairs = torch.tensor(list(combinations(order, 2)))
        loss = plackett_luce_loss(scores, pairs, torch.full((6,), 1 / 6), torch.tensor([4]))
        total += math.exp(-3 * loss)  # three terms, averaged
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_plackett_luce_of_two_answers_is_the_pairwise_loss(seed):
    leaf, _ = random_leaf(seed, 8)
    pairs = torch.tensor([[0, 1], [3, 2], [4, 5], [7, 6]])
    weight = torch.rand(4)
    ours = plackett_luce_loss(leaf, pairs, weight, torch.full((4,), 2))
    torch.testing.assert_close(ours, pairwise_loss(leaf, pairs, weight))


def slow_deepspeed_chat(rewards, ids, pairs, weight):
    """Step 2 of DeepSpeed-Chat, pair by pair: [N, T] values and right-padded ids."""
    total = 0.0
    for (better, worse), w in zip(pairs.tolist(), weight.tolist(), strict=True):
        width = ids.shape[1]
        ends = []
        for answer in (better, worse):
            padding = (ids[answer] == PAD).nonzero().flatten()
            ends.append(int(padding[0]) if len(padding) else width)
        start = int((ids[better] != ids[worse]).nonzero()[0])
        gaps = [rewards[better, t] - rewards[worse, t] for t in range(start, max(ends))]
        total = total - w * sum(map(slow_log_sigmoid, gaps)) / len(gaps)
    return total


@pytest.mark.parametrize("seed", range(8))
def test_token_loss_is_that_of_deepspeed_chat_with_the_last_value_as_padding(seed):
    _, _, batch = collated(seed, tokens=True)
    shape = batch.input_ids.shape
    leaf, slow = random_leaf(seed, batch.input_ids.numel())
    lengths = batch.attention_mask.sum(dim=1)
    columns = torch.minimum(torch.arange(shape[1]), lengths[:, None] - 1)
    rewards = slow.view(shape).gather(1, columns)
    expected = slow_deepspeed_chat(rewards, batch.input_ids, batch.pairs, batch.weight)
    loss = token_pairwise_loss(leaf, batch.token_pairs, batch.token_owner, batch.weight)
    check(loss, expected, leaf, slow)


def test_centering_equals_a_slow_loop():
    leaf, slow = random_leaf(0, 5)
    pairs, weight = torch.tensor([[0, 1], [4, 1], [2, 3]]), torch.tensor([0.5, 0.0, 2.0])
    expected = sum(
        w * (slow[i] + slow[j]) ** 2
        for (i, j), w in zip(pairs.tolist(), weight.tolist(), strict=True)
    )
    check(centering_loss(leaf, pairs, weight), expected, leaf, slow)


def parse(*words):
    return parse_training_arguments(["--model_name_or_path", "m", *words])


def test_only_what_a_loss_needs_is_asked_for():
    assert loss_inputs(parse()) == LossInputs()
    assert loss_inputs(parse("--loss", "plackett_luce")) == LossInputs()
    assert loss_inputs(parse("--loss", "token_pairwise")) == LossInputs(tokens=True)
    assert loss_inputs(parse("--margin")) == LossInputs(margins=True)
    assert loss_inputs(parse("--label", "soft")) == LossInputs(votes=True)
    assert loss_inputs(parse("--tie_threshold", "0.1")) == LossInputs(ties=True)
    assert loss_inputs(parse("--sample_weights")) == LossInputs(sample_weights=True)


def slow_command_line_loss(args, rows, weights, scores):
    """The loss of pairs that flags ask for, from the rows."""
    total, first = scores.sum() * 0, 0
    for row, weight in zip(rows, weights, strict=True):
        terms, number = [], range(len(row["ranks"]))
        for i, j in ((i, j) for i in number for j in number):
            gap, ranks = scores[first + i] - scores[first + j], row["ranks"]
            if row["input_ids"][i] == row["input_ids"][j]:
                continue
            both = args.center_rewards_coefficient * (scores[first + i] + scores[first + j]) ** 2
            eta = args.tie_threshold
            if ranks[i] == ranks[j] and i < j and eta:
                wins = torch.sigmoid(gap - eta), torch.sigmoid(-gap - eta)
                terms.append(both - torch.log(1 - wins[0] - wins[1]))
            if ranks[i] < ranks[j]:
                gap = gap - (row["grades"][i] - row["grades"][j] if args.margin else 0)
                votes, p = (row["votes"][i], row["votes"][j]), 1.0
                if args.label == "soft" and sum(votes):
                    p = votes[0] / sum(votes)
                p = p * (1 - args.label_smoothing) + (1 - p) * args.label_smoothing
                wins, loses = (torch.sigmoid(side * gap - eta) for side in (1, -1))
                terms.append(both - p * torch.log(wins) - (1 - p) * torch.log(loses))
        weight *= row["weight"] if args.sample_weights else 1
        total = total + weight * sum(terms) / len(terms)
        first += len(row["ranks"])
    return total


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--margin",
        "--label soft",
        "--label_smoothing 0.2",
        "--tie_threshold 0.5",
        "--sample_weights",
        "--center_rewards_coefficient 0.1",
        "--margin --label_smoothing 0.1 --sample_weights",
        "--label soft --label_smoothing 0.1 --center_rewards_coefficient 0.1",
        "--tie_threshold 0.5 --label_smoothing 0.1 --sample_weights --center_rewards_coefficient 1",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_flags_give_the_loss_of_a_slow_loop_over_the_rows(seed, words):
    args = parse(*words.split())
    rows, weights, batch = collated(seed, **vars(loss_inputs(args)))
    leaf, slow = random_leaf(seed, len(batch.end_index))
    expected = slow_command_line_loss(args, rows, weights, slow)
    check(training_loss(args, leaf, None, batch), expected, leaf, slow)


@pytest.mark.parametrize("name", ["plackett_luce", "token_pairwise"])
def test_other_losses_are_chosen_and_centred(name):
    args = parse("--loss", name, "--center_rewards_coefficient", "0.5", "--sample_weights")
    _, _, batch = collated(0, **vars(loss_inputs(args)))
    values, _ = random_leaf(0, batch.input_ids.numel())
    scores = values[batch.end_index]
    plain = (
        plackett_luce_loss(scores, batch.pairs, batch.weight, batch.answer_counts)
        if name == "plackett_luce"
        else token_pairwise_loss(values, batch.token_pairs, batch.token_owner, batch.weight)
    )
    centred = 0.5 * centering_loss(scores, batch.pairs, batch.weight)
    assert centred > 0
    torch.testing.assert_close(training_loss(args, scores, values, batch), plain + centred)


def test_a_comparison_that_is_all_tied_trains_with_a_threshold():
    row = make_row(np.random.default_rng(0)) | {"ranks": [1, 1], "answers": [0, 1]}
    row["input_ids"] = row["input_ids"][:2]
    args = parse("--tie_threshold", "1")
    batch = PaddedCollator(PAD, inputs=loss_inputs(args))([row], [1.0])
    scores = torch.tensor([2.0, 0.0], requires_grad=True)
    loss = training_loss(args, scores, None, batch)
    assert loss.item() == pytest.approx(tie_loss(scores, batch.ties, torch.ones(1), 1.0).item())
    assert torch.autograd.grad(loss, scores)[0][0] > 0
