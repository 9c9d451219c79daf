"""Ranking losses: pure functions of scores."""

import torch
from torch.nn.functional import logsigmoid


def pairwise_loss(scores: torch.Tensor, pairs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry loss: the weighted sum of -log sigmoid(better - worse), in fp32.

    With weights of 1 / (pairs of the comparison * comparisons), it is InstructGPT's loss
    (arXiv 2203.02155, eq. 1): the mean over the pairs of a comparison, then over comparisons.

    Args:
        scores: float [N].
        pairs: int64 [P, 2], numbers of the better and the worse answer.
        weight: float [P].

    Returns:
        float32 scalar.
    """
    better, worse = scores.float()[pairs].unbind(dim=1)
    return -(weight * logsigmoid(better - worse)).sum()
