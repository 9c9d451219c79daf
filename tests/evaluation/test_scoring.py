import math
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import TEXTS, make_pairs, user
from tests.evaluation.test_metrics import make_rows, slow_summary
from utils import distributed
from utils.data.comparison import Comparison
from utils.data.packing import PaddedCollator, make_collator
from utils.data.sampling import Grouping, evaluation_plan
from utils.data.token_rows import empty_row
from utils.data.tokenization import ComparisonTokenizer, TextSettings
from utils.evaluation.metrics import SOURCE_METRICS, comparison_sums, summarize
from utils.evaluation.scoring import Scorer, Sources, evaluate_batches, score_batches
from utils.model import pretrained
from utils.settings import InputError
from utils.training.plan import PlannedBatches


class Noisy(nn.Module):
    """Scores an answer by the mean of its ids; dropout makes it noisy while it trains."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        return self.dropout(batch.input_ids.float()).mean(dim=1)


@pytest.fixture
def batches():
    rows = [
        {
            **empty_row(""),
            "input_ids": [[2, 5 + i, 9], [2, 7, 3 * i]],
            "ranks": [0, 1],
            "answers": [0, 1],
            "answer_starts": [1, 1],
        }
        for i in range(6)
    ]
    return [PaddedCollator(1)(rows[i : i + 2], [1.0, 1.0]) for i in (0, 2, 4)]


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_free_of_dropout_and_leaves_the_mode(batches, training):
    model = Noisy().train(training)
    for (scores, batch), again in zip(
        score_batches(model, batches, torch.device("cpu"), "Scoring"), batches, strict=True
    ):
        assert torch.equal(scores, again.input_ids.float().mean(dim=1))
        assert batch.pairs.tolist() == again.pairs.tolist()
    assert model.training is training


def test_evaluation_adds_its_batches(batches):
    result = evaluate_batches(Noisy(), batches, torch.device("cpu"))
    sums = sum(comparison_sums(b.input_ids.float().mean(dim=1), b).sum(dim=0) for b in batches)
    assert result == summarize(sums)
    assert result["pairs"] == 6


def make_sources(number, names):
    """Comparisons with four ids an answer; those of the last name are all tied."""
    rows = make_rows(torch.Generator().manual_seed(number), number)
    chosen = np.random.default_rng(number).choice(names, number).tolist()
    chosen[:2] = names[:2]
    for row, name in zip(rows, chosen, strict=True):
        row["source"] = name
        if name == names[-1]:
            row["ranks"] = [1] * len(row["ranks"])
        elif len(set(row["ranks"])) == 1:
            row["ranks"][0] += 1
    return rows


def evaluate_rank(rows, rank, world, max_batches=0):
    sizes = np.arange(len(rows)) + 4
    plan = evaluation_plan(Grouping(sizes, 3, world_size=world), rank, max_batches)
    rows = datasets.Dataset.from_list(rows)
    sources = Sources.of(plan, rows["source"][:])
    batches = PlannedBatches(rows, plan, PaddedCollator(1))
    return plan, evaluate_batches(Noisy(), batches, torch.device("cpu"), sources=sources)


def slow_sources(rows):
    """A loop over the comparisons of each source."""
    results = {}
    for name in {row["source"] for row in rows}:
        own = [row for row in rows if row["source"] == name and len(set(row["ranks"])) > 1]
        scores = [sum(ids) / len(ids) for row in own for ids in row["input_ids"]]
        if own:
            summary = slow_summary(own, scores, [1.0] * len(own))
            results[name] = pytest.approx({metric: summary[metric] for metric in SOURCE_METRICS})
    return results


@pytest.mark.parametrize(("number", "world"), [(2, 1), (31, 1), (31, 2), (20, 3), (2, 4)])
def test_sources_of_an_evaluation_are_those_of_a_slow_loop(monkeypatch, number, world):
    """With several ranks, the sums of those before are added as the all-reduce would."""
    rows = make_sources(number, ["web", "books", "b/c d", "tied"])
    calls = []

    def sum_over_ranks(values):
        calls.append(values)
        return sum(calls)

    monkeypatch.setattr(distributed, "sum_over_ranks", sum_over_ranks)
    evaluated = [evaluate_rank(rows, rank, world) for rank in range(world)]
    stand_ins = [batch for plan, _ in evaluated for batch in plan if 0 in batch.weights]
    assert (len(stand_ins) > 0) is (world > 1)
    assert len(calls) == world  # one all-reduce an evaluation
    result = evaluated[-1][1]
    assert result["sources"] == slow_sources(rows)
    assert "tied" not in result["sources"]
    for count in ("comparisons", "pairs"):
        assert result[count] == sum(part[count] for part in result["sources"].values())
    parts = result["sources"].values()
    right = sum(part["accuracy"] * part["pairs"] for part in parts)
    assert result["accuracy"] == pytest.approx(right / result["pairs"])


def test_sources_of_a_sample_are_those_of_its_rows():
    rows = make_sources(40, ["a", "b", "c", "tied"])
    plan, result = evaluate_rank(rows, 0, 1, max_batches=2)
    assert result["sources"] == slow_sources([rows[row] for batch in plan for row in batch.rows])


def test_one_source_needs_no_table():
    rows = make_sources(9, ["a", "a", "tied"])
    plain = [row for row in rows if row["source"] == "a"]
    for own in (rows, plain):
        _, result = evaluate_rank(own, 0, 1)
        assert "sources" not in result
    # Nor do sources change anything else.
    plan = evaluation_plan(Grouping(np.arange(len(plain)) + 4, 3))
    batches = PlannedBatches(datasets.Dataset.from_list(plain), plan, PaddedCollator(1))
    assert result == evaluate_batches(Noisy(), batches, torch.device("cpu"))


class Small:
    """A model that runs out of memory, in PyTorch's words, beyond so many answers at once."""

    def __init__(self, model, answers):
        self.model, self.answers, self.seen = model, answers, []

    def __call__(self, batch):
        self.seen.append(len(batch.end_index))
        if len(batch.end_index) > self.answers:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.model(batch)


@pytest.fixture
def make_scorer(opt_model, opt_tokenizer):
    config = pretrained.load_config(opt_model)

    def make(layout="packed", overlength="truncate_prompt", **options):
        encoder = ComparisonTokenizer(opt_tokenizer, TextSettings("</s>", 64, overlength))
        torch.manual_seed(0)
        model, _ = pretrained.load_model(
            opt_model, config, opt_tokenizer, layout=layout, new_head=True
        )
        collate = make_collator(encoder, layout)
        packed = layout == "packed"
        return Scorer(model.eval(), encoder, collate, torch.device("cpu"), packed=packed, **options)

    return make


def make_comparisons():
    """Two to five answers each; some are empty, some too long."""
    odd = ["", "word " * 200]
    return [
        Comparison(
            pair["prompt"],
            [pair["chosen"], pair["rejected"], *odd, *TEXTS][: 2 + i % 5],
            range(2 + i % 5),
            "test",
        )
        for i, pair in enumerate(make_pairs(17))
    ]


def one_by_one(scorer, comparisons):
    """Each answer in a batch of its own."""
    return [
        [
            scorer([Comparison(c.prompt, [response], [0], "alone")])[0]["scores"][0]
            for response in c.responses
        ]
        for c in comparisons
    ]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("batch_size", [1, 3, 100, None])
def test_no_score_depends_on_the_batch(make_scorer, layout, batch_size):
    comparisons = make_comparisons()
    scorer = make_scorer(layout, batch_size=batch_size)
    rows = scorer(comparisons)
    expected = one_by_one(make_scorer("padded"), comparisons)
    for row, scores, comparison in zip(rows, expected, comparisons, strict=True):
        assert [s is None for s in row["scores"]] == [s is None for s in scores]
        assert [s for s in row["scores"] if s is not None] == pytest.approx(
            [s for s in scores if s is not None], abs=1e-5
        )
        left_out = [i for i, r in enumerate(comparison.responses) if not r or len(r) > 500]
        assert [i for i, s in enumerate(row["scores"]) if s is None] == left_out


# Words around the limit of 64 tokens: prompts and answers that fit, that are cut, that never fit.
SAID = st.builds(
    lambda word, times, end: f"{word} " * times + end,
    st.sampled_from(["so", "Bread is", "7", "</s>"]),
    st.sampled_from([1, 4, 9, 12, 15, 25, 40]),
    st.sampled_from(["", "a", "no.\n", "yes"]),
)
GROUPS = st.lists(
    st.tuples(SAID, st.booleans(), st.lists(SAID, min_size=1, max_size=5)), min_size=1, max_size=4
)


@pytest.mark.parametrize("overlength", ["truncate_prompt", "drop", "truncate_end"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_score_depends_on_prompt_and_answer_alone(make_scorer, layout, overlength):
    alone = make_scorer("padded", overlength=overlength)
    scorers = [make_scorer(layout, overlength=overlength, batch_size=n) for n in (1, 2, None)]
    seen = Counter()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(groups=GROUPS, chance=st.randoms(use_true_random=False))
    def check(groups, chance):
        comparisons = [
            Comparison([user(prompt)] if chat else prompt, answers, [0] * len(answers), "")
            for prompt, chat, answers in groups
        ]
        expected = one_by_one(alone, comparisons)
        orders = [chance.sample(range(len(c.responses)), len(c.responses)) for c in comparisons]
        shuffled = [
            replace(c, responses=[c.responses[i] for i in order])
            for c, order in zip(comparisons, orders, strict=True)
        ]
        for row, order, scores in zip(
            chance.choice(scorers)(shuffled), orders, expected, strict=True
        ):
            assert row["scores"] == [
                None if scores[i] is None else pytest.approx(scores[i], abs=1e-5) for i in order
            ]
            seen.update(cut=row["cut"] > 0, left_out=row["long_answers"], answers=len(order))

    check()
    assert seen["answers"] > 200
    assert (seen["cut"] > 10) == (overlength != "drop")
    assert (seen["left_out"] > 10) == (overlength != "truncate_end")


def test_nothing_to_score(make_scorer):
    assert make_scorer()([]) == []
    (row,) = make_scorer()([Comparison("a", ["", " "], [0, 1], "empty")])
    assert row["scores"] == [None, None]


def test_scores_are_normalised(make_scorer):
    comparisons = make_comparisons()[:4]
    plain = [score for row in make_scorer()(comparisons) for score in row["scores"]]
    scaled = [s for row in make_scorer(mean=0.5, std=4.0)(comparisons) for s in row["scores"]]
    assert [s and s * 4 + 0.5 for s in scaled] == pytest.approx(plain, abs=1e-6)


def test_batches_that_are_too_large_are_halved(make_scorer):
    scorer, comparisons = make_scorer(), make_comparisons()
    expected = [row["scores"] for row in scorer(comparisons)]
    scorer.model = Small(scorer.model, answers=9)
    tokens = scorer.max_tokens
    assert [row["scores"] for row in scorer(comparisons)] == [
        pytest.approx(scores, abs=1e-5) for scores in expected
    ]
    assert scorer.max_tokens < tokens  # later batches are smaller from the start
    scorer.model.seen.clear()
    scorer(comparisons[:2] * 20)
    assert max(scorer.model.seen) < 80


@pytest.mark.parametrize(("answers", "batch_size"), [(1, None), (9, 8)])
def test_what_cannot_be_halved_is_an_error(make_scorer, answers, batch_size):
    scorer = make_scorer(batch_size=batch_size)
    scorer.model = Small(scorer.model, answers)
    with pytest.raises(InputError, match="out of memory with .* lower --batch_size"):
        scorer(make_comparisons())


def test_other_errors_pass(make_scorer):
    scorer = make_scorer()

    def broken(batch):
        raise RuntimeError("something else")

    scorer.model = broken
    with pytest.raises(RuntimeError, match="something else"):
        scorer(make_comparisons())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_an_error(make_scorer, value):
    scorer = make_scorer()
    scorer.model = lambda batch: torch.full((len(batch.end_index),), value)
    with pytest.raises(InputError, match="a score is not finite.*--dtype"):
        scorer(make_comparisons())
