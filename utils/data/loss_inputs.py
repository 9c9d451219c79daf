"""What losses need of a batch: pairs, weights, margins, votes, ties, aligned tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.data.comparison import common_prefix_length, ranked_pairs, tied_pairs


@dataclass(frozen=True)
class LossInputs:
    """What a batch carries for a loss besides pairs and weights; an evaluation needs none of it.

    Attributes:
        margins: fill `margin` from the data's grades.
        votes: fill `target` from the data's votes.
        ties: fill `ties` and `tie_weight`.
        sample_weights: multiply weights by those of the data.
        tokens: fill `token_pairs` and `token_owner`.
    """

    margins: bool = False
    votes: bool = False
    ties: bool = False
    sample_weights: bool = False
    tokens: bool = False


NO_INPUTS = LossInputs()
EMPTY = np.empty((0, 2), dtype=np.int64)


def pair_tensors(
    rows: Sequence[dict], weights: Sequence[float], inputs: LossInputs
) -> dict[str, torch.Tensor]:
    """Pairs of all comparisons, numbered through the batch, with the weight of each.

    Args:
        rows: tokenised comparisons (ComparisonTokenizer.rows).
        weights: the factor of each comparison in the loss.
        inputs: what the loss needs.

    Returns:
        Fields of a Batch: those of pairs and comparisons, and what `inputs` asks for but tokens.
    """
    pairs, ties = [], []
    for row in rows:
        ranks = [row["ranks"][i] for i in row["answers"]]
        pairs.append(torch.from_numpy(ranked_pairs(ranks, row["input_ids"])))
        ties.append(torch.from_numpy(tied_pairs(ranks, row["input_ids"]) if inputs.ties else EMPTY))
    pair_counts, tie_counts = (torch.tensor([len(p) for p in parts]) for parts in (pairs, ties))
    answers = torch.tensor([len(row["input_ids"]) for row in rows])
    first_answer = answers.cumsum(0) - answers
    weight = torch.tensor(weights)
    tensors = {"answer_counts": answers, "pair_counts": pair_counts, "counted": weight > 0}
    if inputs.sample_weights:
        given = [1.0 if row["weight"] is None else row["weight"] for row in rows]
        weight = weight * torch.tensor(given)
    weight = weight / (pair_counts + tie_counts).clamp(min=1)
    tensors["pairs"] = torch.cat(pairs) + first_answer.repeat_interleave(pair_counts)[:, None]
    tensors["weight"] = weight.repeat_interleave(pair_counts)
    if inputs.ties:
        tensors["ties"] = torch.cat(ties) + first_answer.repeat_interleave(tie_counts)[:, None]
        tensors["tie_weight"] = weight.repeat_interleave(tie_counts)
    if inputs.margins:
        better, worse = _of_pairs(rows, "grades", pairs)
        tensors["margin"] = better - worse
    if inputs.votes:
        better, worse = _of_pairs(rows, "votes", pairs)
        tensors["target"] = torch.where(better + worse > 0, better / (better + worse), 1.0)
    return tensors


def align_tokens(
    rows: Sequence[dict], places: Sequence[torch.Tensor], pairs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of the two answers of each pair at the same position.

    Args:
        rows: tokenised comparisons with N answers in all.
        places: where the tokens of each answer are in the batch; N tensors, int64 of its length.
        pairs: int64 [P, 2], P > 0.

    Returns:
        `token_pairs` and `token_owner` of a Batch.
    """
    sequences = [ids for row in rows for ids in row["input_ids"]]
    aligned = []
    for pair in pairs.tolist():
        ids = [sequences[answer] for answer in pair]
        positions = torch.arange(common_prefix_length(ids), max(map(len, ids)))
        both = [places[answer] for answer in pair]
        columns = [place[positions.clamp(max=len(place) - 1)] for place in both]
        aligned.append(torch.stack(columns, dim=1))
    counts = torch.tensor([len(part) for part in aligned])
    return torch.cat(aligned), torch.arange(len(aligned)).repeat_interleave(counts)


def _of_pairs(
    rows: Sequence[dict], column: str, pairs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The numbers of the better and of the worse answers; 0 if a row has none: float32 [P] each."""
    parts = []
    for row, own in zip(rows, pairs, strict=True):
        values = torch.tensor(row[column] or [0.0] * len(row["ranks"]), dtype=torch.float32)
        parts.append(values[row["answers"]][own])
    return torch.cat(parts).unbind(dim=1)
