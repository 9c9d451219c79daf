import math

import pytest
import torch

from utils.training.loss import pairwise_loss


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
    loss = pairwise_loss(scores, torch.tensor([[0, 1]]), torch.ones(1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(scores[1].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.tolist() == [-1.0, 1.0]
