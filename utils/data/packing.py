"""Rows of token ids become a batch: packed without padding, or padded.

`PackedCollator` lays the packed row out, `PaddedCollator` the rows that the packed one must agree
with. Both add what the loss asks for: pairs, weights, margins, votes, ties, aligned tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from utils.data.batch import NO_INPUTS, Batch, LossInputs, Segments, join_ranges
from utils.data.comparison import common_prefix_length, ranked_pairs, tied_pairs

if TYPE_CHECKING:  # the rest works with torch alone
    from utils.data.tokenization import ComparisonTokenizer

# The tokens of an answer: those that all answers of the comparison begin with, and its own ones.
Answer = tuple[range, range]

NO_PAIRS = np.empty((0, 2), dtype=np.int64)


@dataclass
class _Collator:
    """What both layouts share.

    Args:
        pad_token_id: what padding is filled with.
        mean_score: whether scores are means over the answer, so that its tokens are needed.
        inputs: what the loss needs.
    """

    pad_token_id: int
    mean_score: bool = False
    inputs: LossInputs = NO_INPUTS

    packed: ClassVar[bool] = False

    @property
    def ends_only(self) -> bool:
        """Whether batches name the attention of scored tokens alone (Batch.end_segments)."""
        return self.packed and not (self.mean_score or self.inputs.tokens)

    def _batch(
        self,
        rows: Sequence[dict],
        weights: Sequence[float],
        answers: Sequence[Answer],
        *,
        segments: Segments | None = None,
        **tokens: torch.Tensor,
    ) -> Batch:
        """The batch of rows whose tokens are laid out already, with what the loss needs."""
        ends = torch.tensor([(tail or prefix)[-1] for prefix, tail in answers])
        pairs = pair_tensors(rows, weights, self.inputs)
        batch = Batch(**tokens, end_index=ends, segments=segments, end_segments=None, **pairs)

        if self.mean_score:
            starts = [start for row in rows for start in row["answer_starts"]]
            means = [join_ranges(a)[start:] for a, start in zip(answers, starts, strict=True)]
            counts = torch.tensor([len(part) for part in means])
            batch.mean_index = torch.cat(means)
            batch.mean_answer = torch.arange(len(means)).repeat_interleave(counts)
        elif self.inputs.tokens:
            places = list(map(join_ranges, answers))
            batch.token_pairs, batch.token_owner = align_tokens(rows, places, batch.pairs)
        if segments and self.ends_only:
            batch.end_segments = Segments.of([(1, *answer) for answer in answers])
        return batch


class PaddedCollator(_Collator):
    """Lays each answer out as one row, padded on the right to the longest of the batch."""

    def __call__(self, rows: Sequence[dict], weights: Sequence[float]) -> Batch:
        """Collate tokenised comparisons (ComparisonTokenizer.rows), each with its loss weight."""
        sequences = [torch.tensor(ids) for row in rows for ids in row["input_ids"]]
        lengths = torch.tensor([len(ids) for ids in sequences])
        input_ids = torch.nn.utils.rnn.pad_sequence(
            sequences, batch_first=True, padding_value=self.pad_token_id
        )
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)

        starts = range(0, input_ids.numel(), input_ids.shape[1])
        answers = [
            (range(start, start + len(ids)), range(0))
            for start, ids in zip(starts, sequences, strict=True)
        ]
        return self._batch(
            rows,
            weights,
            answers,
            input_ids=input_ids,
            attention_mask=positions < lengths[:, None],
            position_ids=positions,
        )


@dataclass
class PackedCollator(_Collator):
    """Lays all comparisons out as one row without padding, each token once.

    A comparison becomes the tokens that all its answers begin with, then the tail of each answer.
    Every tail counts its positions from the end of this prefix and attends to the prefix and to
    itself, so that the scores are those of the padded layout.
    """

    packed: ClassVar[bool] = True

    def __call__(self, rows: Sequence[dict], weights: Sequence[float]) -> Batch:
        """Collate tokenised comparisons (ComparisonTokenizer.rows), each with its loss weight."""
        ids: list[int] = []
        positions: list[int] = []
        answers: list[Answer] = []
        segments = []

        for row in rows:
            shared = row["shared"]
            prefix = range(len(ids), len(ids) + shared)
            ids += row["input_ids"][0][:shared]
            positions += range(shared)

            queries = shared  # the first tail stands behind the prefix: both are one segment
            for sequence in row["input_ids"]:
                tail = range(len(ids), len(ids) + len(sequence) - shared)
                ids += sequence[shared:]
                positions += range(shared, len(sequence))
                answers.append((prefix, tail))
                if tail:
                    segments.append((queries + len(tail), prefix, tail))
                    queries = 0
            if queries:
                segments.append((queries, prefix, range(0)))

        return self._batch(
            rows,
            weights,
            answers,
            segments=Segments.of(segments),
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.bool),
            position_ids=torch.tensor([positions]),
        )


def make_collator(
    encoder: "ComparisonTokenizer", layout: str, inputs: LossInputs = NO_INPUTS
) -> PaddedCollator | PackedCollator:
    """The collator for the rows of an encoder, packed or padded."""
    mean_score = encoder.settings.score_position == "mean"
    shared = (encoder.tokenizer.pad_token_id, mean_score, inputs)
    return PaddedCollator(*shared) if layout == "padded" else PackedCollator(*shared)


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
        tied = tied_pairs(ranks, row["input_ids"]) if inputs.ties else NO_PAIRS
        ties.append(torch.from_numpy(tied))

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
