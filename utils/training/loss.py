"""Ranking losses: pure functions of scores, in fp32, and the one that the command line asks for.

A weight of 1 / (pairs of the comparison * comparisons) makes a weighted sum the mean over the
pairs of a comparison, then over comparisons, as in InstructGPT (arXiv 2203.02155, eq. 1).

A new loss is a function and a case of `training_loss` here; its name and flags stand in
`LossSettings` of settings.py beside this file.
"""

import math

import torch
from torch.nn.functional import logsigmoid

from utils.data.batch import Batch, LossInputs
from utils.training.settings import LossSettings


def loss_inputs(args: LossSettings) -> LossInputs:
    """What batches must carry for the loss of a command line."""
    return LossInputs(
        margins=args.margin,
        votes=args.label == "soft",
        ties=args.tie_threshold > 0,
        sample_weights=args.sample_weights,
        tokens=args.loss == "token_pairwise",
    )


def model_loss(
    args: LossSettings, model: torch.nn.Module, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch, float32 scalar, and its scores, float32 [N].

    Args:
        args: the flags of the loss.
        model: a RewardModel, or the DeepSpeed engine around one.
        batch: with what `loss_inputs` names.
    """
    output = model(batch)
    scores, values = (output, None) if batch.token_pairs is None else output
    return training_loss(args, scores, values, batch), scores


def training_loss(
    args: LossSettings, scores: torch.Tensor, values: torch.Tensor | None, batch: Batch
) -> torch.Tensor:
    """The loss that the command line asks for: each --loss has its case here.

    Args:
        args: the flags of the loss.
        scores: float [N].
        values: float [B * T], of all tokens, where `loss_inputs` asks for tokens; else None.
        batch: with what `loss_inputs` names.

    Returns:
        float32 scalar.
    """
    pairs, weight = batch.pairs, batch.weight
    match args.loss:
        case "pairwise":
            target = 1.0 if batch.target is None else batch.target
            target = target * (1 - args.label_smoothing) + (1 - target) * args.label_smoothing
            loss = pairwise_loss(
                scores,
                pairs,
                weight,
                margin=0.0 if batch.margin is None else batch.margin,
                target=target,
                tie_threshold=args.tie_threshold,
            )
        case "plackett_luce":
            loss = plackett_luce_loss(scores, pairs, weight, batch.answer_counts)
        case "token_pairwise":
            assert values is not None and batch.token_pairs is not None
            assert batch.token_owner is not None
            loss = token_pairwise_loss(values, batch.token_pairs, batch.token_owner, weight)
        case name:
            raise NotImplementedError(f"--loss {name}")

    if batch.ties is not None and batch.tie_weight is not None:
        loss = loss + tie_loss(scores, batch.ties, batch.tie_weight, args.tie_threshold)
        pairs, weight = torch.cat([pairs, batch.ties]), torch.cat([weight, batch.tie_weight])

    if args.center_rewards_coefficient:
        loss = loss + args.center_rewards_coefficient * centering_loss(scores, pairs, weight)
    return loss


def pairwise_loss(
    scores: torch.Tensor,
    pairs: torch.Tensor,
    weight: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    target: torch.Tensor | float = 1.0,
    tie_threshold: float = 0.0,
) -> torch.Tensor:
    """Bradley-Terry loss: the weighted sum of cross-entropies of better - worse.

    A pair with the difference d of its scores adds -log sigmoid(d) (InstructGPT, arXiv
    2203.02155, eq. 1), with a margin m -log sigmoid(d - m) (Llama 2, arXiv 2307.09288, eq. 2).
    With the probability P that the better answer is preferred, and the tie threshold eta, it is
    -P log sigmoid(d - m - eta) - (1 - P) log sigmoid(m - d - eta); see also `tie_loss`.

    Args:
        scores: float [N].
        pairs: int64 [P, 2], numbers of the better and the worse answer.
        weight: float [P].
        margin: float [P], or one number for all pairs.
        target: float [P] in [0, 1], the P above, or one number for all pairs.
        tie_threshold: the eta above, at least 0.

    Returns:
        float32 scalar.
    """
    better, worse = scores.float()[pairs].unbind(dim=1)
    gap = better - worse - margin
    preferred, other = logsigmoid(gap - tie_threshold), logsigmoid(-gap - tie_threshold)
    return -(weight * (target * preferred + (1 - target) * other)).sum()


def tie_loss(
    scores: torch.Tensor, ties: torch.Tensor, weight: torch.Tensor, tie_threshold: float
) -> torch.Tensor:
    """The weighted sum of -log P(tie) in the model of Rao and Kupper (1967).

    For the difference d of two scores, sigmoid(d - eta) and sigmoid(-d - eta) are the
    probabilities that one of them wins; P(tie) = (exp(2 eta) - 1) sigmoid(d - eta)
    sigmoid(-d - eta) is what is left (doi 10.1080/01621459.1967.10482901, theta = exp(eta)).

    Args:
        scores: float [N].
        ties: int64 [E, 2], numbers of the two answers.
        weight: float [E].
        tie_threshold: the eta above, more than 0.

    Returns:
        float32 scalar.
    """
    first, second = scores.float()[ties].unbind(dim=1)
    gap = first - second
    factor = 2 * tie_threshold + math.log(-math.expm1(-2 * tie_threshold))  # log(e^(2 eta) - 1)
    likelihood = factor + logsigmoid(gap - tie_threshold) + logsigmoid(-gap - tie_threshold)
    return -(weight * likelihood).sum()


def plackett_luce_loss(
    scores: torch.Tensor, pairs: torch.Tensor, weight: torch.Tensor, answer_counts: torch.Tensor
) -> torch.Tensor:
    """Plackett-Luce loss: each answer is chosen out of itself and those that are worse.

    The term of answer i is the log-sum-exp of the scores of i and of all answers worse than i,
    minus the score of i (Luce 1959, Plackett 1975; arXiv 2305.18290, appendix A.3). Answers of the
    same rank do not compete, and one that is better than none has no term. The terms of a
    comparison are averaged, so that two answers give the pairwise loss.

    Args:
        scores: float [N].
        pairs: int64 [P, 2], all better and worse answers.
        weight: float [P], the weight of the comparison divided by its pairs.
        answer_counts: int64 [C], answers of each comparison.

    Returns:
        float32 scalar.
    """
    scores = scores.float()
    better, worse = pairs.unbind(dim=1)
    gap = scores[worse] - scores[better]

    # The largest exponent is taken out, as in log-sum-exp; the answer's own is 0.
    largest = torch.zeros_like(scores).scatter_reduce(0, better, gap.detach(), "amax")
    sums = (-largest).exp().index_add(0, better, (gap - largest[better]).exp())
    terms = largest + sums.log()

    # Nothing here has a length that a GPU would have to tell first.
    comparisons = torch.arange(len(answer_counts), device=scores.device)
    owner = comparisons.repeat_interleave(answer_counts, output_size=len(scores))
    has_term = torch.zeros_like(scores).index_fill(0, better, 1.0)
    number = scores.new_zeros(len(answer_counts)).index_add(0, owner, has_term)
    total = scores.new_zeros(len(answer_counts)).index_add(0, owner[better], weight)
    return (has_term * terms * (total / number.clamp(min=1))[owner]).sum()


def token_pairwise_loss(
    values: torch.Tensor, token_pairs: torch.Tensor, token_owner: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """DeepSpeed-Chat's loss: -log sigmoid of better - worse at every token, averaged over a pair.

    Positions run from the first difference of the two sequences to the end of the longer one.
    Beyond its end, the shorter one keeps the value of its last token. DeepSpeed-Chat takes the
    values at its padding there, so the losses are equal where the answers are equally long. With
    the score at the first padding token, that token is the last of a sequence, and trains.

    Args:
        values: float [B * T], of all tokens.
        token_pairs: int64 [M, 2], numbers of the better and the worse token.
        token_owner: int64 [M], the pair that they belong to.
        weight: float [P].

    Returns:
        float32 scalar.
    """
    better, worse = values.float()[token_pairs].unbind(dim=1)
    tokens = torch.zeros_like(weight).index_add(0, token_owner, torch.ones_like(better))
    weight = weight / tokens
    return -(weight[token_owner] * logsigmoid(better - worse)).sum()


def centering_loss(scores: torch.Tensor, pairs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weighted sum of (better + worse)^2, which draws scores to 0 (arXiv 2312.09244, eq. 2).

    Args:
        scores, pairs, weight: as in `pairwise_loss`.

    Returns:
        float32 scalar.
    """
    return (weight * scores.float()[pairs].sum(dim=1).square()).sum()
