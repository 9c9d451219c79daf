import math

import numpy as np
import pytest
import torch

from utils.data.packing import PaddedCollator
from utils.data.token_rows import empty_row
from utils.evaluation.metrics import SUMS, comparison_sums, summarize, summarize_sources


def make_rows(generator, number):
    rows = []
    for _ in range(number):
        k = int(torch.randint(2, 6, (1,), generator=generator))
        ids = [[2, *torch.randint(4, 9, (3,), generator=generator).tolist()] for _ in range(k)]
        ranks = torch.randint(0, 3, (k,), generator=generator).tolist()
        rows.append(
            {
                **empty_row(""),
                "input_ids": ids,
                "ranks": ranks,
                "answers": list(range(k)),
                "answer_starts": [1] * k,
            }
        )
    return rows


def slow_summary(rows, scores, weights):
    losses, right, ties, margins, better_scores, worse_scores = [], 0, 0, [], [], []
    answers = []
    first = 0
    for row, weight in zip(rows, weights, strict=True):
        own = []
        for i, rank_i in enumerate(row["ranks"]):
            for j, rank_j in enumerate(row["ranks"]):
                if weight and rank_i < rank_j and row["input_ids"][i] != row["input_ids"][j]:
                    better, worse = scores[first + i], scores[first + j]
                    own.append(math.log1p(math.exp(worse - better)))
                    right += 1 if better > worse else 0.5 if better == worse else 0
                    ties += better == worse
                    margins.append(better - worse)
                    better_scores.append(better)
                    worse_scores.append(worse)
        if own:
            losses.append(sum(own) / len(own))
            answers += scores[first : first + len(row["ranks"])]
        first += len(row["ranks"])
    pairs = len(margins)
    return {
        "loss": sum(losses) / len(losses),
        "accuracy": right / pairs,
        "margin": sum(margins) / pairs,
        "better_score": sum(better_scores) / pairs,
        "worse_score": sum(worse_scores) / pairs,
        "score_mean": np.mean(answers),
        "score_std": np.std(answers),
        "comparisons": len(losses),
        "pairs": pairs,
        "ties": ties,
    }


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = make_rows(generator, 9)
    # Any factor counts a comparison once; 0 leaves it out.
    weights = [1.0, 0.0, 2.5, 1.0, 0.0, 1.0, 0.25, 1.0, 1.0]
    batch = PaddedCollator(pad_token_id=1)(rows, weights)
    scores = torch.randint(-3, 4, (len(batch.end_index),), generator=generator) / 2
    sums = comparison_sums(scores, batch)
    assert summarize(sums.sum(dim=0)) == pytest.approx(
        slow_summary(rows, scores.tolist(), weights), rel=1e-6
    )
    one_by_one = torch.zeros_like(sums[0])
    for row, weight, part in zip(
        rows, weights, scores.split(batch.answer_counts.tolist()), strict=True
    ):
        one_by_one += comparison_sums(part, PaddedCollator(1)([row], [weight])).sum(dim=0)
    torch.testing.assert_close(sums.sum(dim=0), one_by_one)


def test_nothing_to_rank_is_not_a_number():
    row = {**empty_row(""), "input_ids": [[2, 5]]}
    row.update(ranks=[0], answers=[0], answer_starts=[1])
    batch = PaddedCollator(1)([row], [1.0])
    summary = summarize(comparison_sums(torch.zeros(1), batch).sum(dim=0))
    assert math.isnan(summary["accuracy"])
    assert math.isnan(summary["loss"])
    assert math.isnan(summary["score_mean"])
    assert math.isnan(summary["score_std"])
    assert (summary["comparisons"], summary["pairs"]) == (0, 0)


def test_sources_have_the_metrics_of_their_own_sums():
    chance = torch.Generator().manual_seed(0)
    parts = torch.rand(3, len(SUMS), generator=chance, dtype=torch.float64) * 100
    parts[1] = 0  # a source without comparisons
    sums = torch.cat([parts.sum(dim=0)[None], parts])
    result = summarize_sources(sums, ["a", "b", "c"])
    sources = result.pop("sources")
    assert result == summarize(sums[0])
    assert list(sources) == ["a", "c"]
    for name, part in (("a", parts[0]), ("c", parts[2])):
        whole = summarize(part)
        assert set(sources[name]) == {"comparisons", "pairs", "accuracy", "loss", "margin"}
        assert sources[name].items() <= whole.items()
    assert summarize_sources(sums[:3], ["a", "b"]) == summarize(sums[0])
    assert summarize_sources(sums[:1], []) == summarize(sums[0])
