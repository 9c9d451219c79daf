import pytest
import torch
from torch import nn

from utils.data.batching import PaddedCollator
from utils.evaluation.metrics import comparison_sums, summarize
from utils.evaluation.scoring import evaluate, score_batches


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
    result = evaluate(Noisy(), batches, torch.device("cpu"))
    sums = sum(comparison_sums(b.input_ids.float().mean(dim=1), b).sum(dim=0) for b in batches)
    assert result == summarize(sums)
    assert result["pairs"] == 6
