"""Rows of token ids become the batch that model, loss and metrics share.

A batch also carries what its loss asks for: pairs, weights, margins, votes, ties, aligned tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from utils.data.comparison import common_prefix_length, ranked_pairs, tied_pairs
from utils.data.sampling import MicroBatch

if TYPE_CHECKING:  # the rest works with torch alone
    import datasets

    from utils.data.tokenization import ComparisonTokenizer

# The tokens of an answer: those that all answers of the comparison begin with, and its own ones.
Answer = tuple[range, range]


@dataclass
class _OnDevice:
    def to(self, device: torch.device) -> Self:
        """A copy with all tensors on another device."""
        movable = {name: value for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **{name: value.to(device) for name, value in movable.items()})


@dataclass
class Segments(_OnDevice):
    """Who attends to whom in a packed row: S segments of causal attention.

        row of tokens      [ prefix | tail 1 | tail 2 | tail 3 ][ next comparison ... ]

        queries of a segment      its keys        = borrowed prefix + own
        [ prefix | tail 1 ]       [ prefix | tail 1 ]         0       prefix + tail 1
                  [ tail 2 ]      [ prefix | tail 2 ]       prefix             tail 2
                  [ tail 3 ]      [ prefix | tail 3 ]       prefix             tail 3

    The last query of a segment sees all its keys, the one before it all but the last, and so on.
    Where only the ends of answers are scored, the queries are the last token of each tail.

    Attributes:
        query_lengths: queries of each segment; they stand one after the other.
        own_lengths: keys of each segment that no earlier one has; these, too, stand one after the
            other in the row.
        prefix_lengths: keys that it shares with the first segment of its comparison, and that
            begin there; 0 for that first segment.
        key_index: int64 [sum of all keys], the token of the row that each key belongs to.
        query_starts: int32 [S + 1], where the queries of each segment begin, and where all end.
        key_starts: int32 [S + 1], the same of the keys.
    """

    query_lengths: list[int]
    own_lengths: list[int]
    prefix_lengths: list[int]
    key_index: torch.Tensor
    query_starts: torch.Tensor
    key_starts: torch.Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[int, range, range]]) -> "Segments":
        """From the number of queries, the prefix and the tail of each segment."""
        queries = [number for number, _, _ in parts]
        own, prefixes, placed = [], [], 0

        for _, prefix, tail in parts:
            begins = prefix.start == placed  # a comparison: its prefix is not in the row yet
            prefixes.append(0 if begins else len(prefix))
            own.append(len(tail) + (len(prefix) if begins else 0))
            placed += own[-1]

        keys = [len(prefix) + len(tail) for _, prefix, tail in parts]
        key_index = _numbers(r for _, *ranges in parts for r in ranges)
        return cls(queries, own, prefixes, key_index, _starts(queries), _starts(keys))

    @property
    def key_lengths(self) -> list[int]:
        """Keys of each segment."""
        return [p + own for p, own in zip(self.prefix_lengths, self.own_lengths, strict=True)]


@dataclass
class Batch(_OnDevice):
    """C comparisons with N answers in all, laid out as B rows of T tokens.

    Token positions are indices into the B * T tokens, so that layouts differ only in how they
    fill them. What a loss alone needs (LossInputs) is None where it was not asked for.

    Attributes:
        input_ids: int64 [B, T].
        attention_mask: bool [B, T], false on padding.
        position_ids: int64 [B, T], counted from 0 at the first token of each answer's sequence.
        end_index: int64 [N], where each answer ends: the token that is scored.
        pairs: int64 [P, 2], the better and the worse answer, both numbers below N.
        weight: float32 [P], the weight of the comparison, divided by its number of pairs (and of
            ties, where these train).
        answer_counts: int64 [C], answers of each comparison; they stand one after the other.
        pair_counts: int64 [C], pairs of each comparison, likewise.
        counted: bool [C], false where a comparison only stands in for an empty micro-batch.
        margin: float32 [P], by how much the data grades the better answer higher.
        target: float32 [P], the probability that the better answer is preferred.
        ties: int64 [E, 2], different answers of the same rank, numbered as in `pairs`.
        tie_weight: float32 [E], as `weight`.
        token_pairs: int64 [M, 2], tokens of the better and the worse answer of each pair at the
            same position, from the first one in which they differ to the end of the longer one;
            the shorter one repeats its last token.
        token_owner: int64 [M], the pair that each of them belongs to.
        mean_index: int64 [L], all tokens of all answers, where the score is their mean; else None.
        mean_answer: int64 [L], the answer that each of them belongs to; else None.
        segments: in the packed layout, the attention of all tokens; else None.
        end_segments: the attention of the tokens of `end_index` alone, in their order, where no
            other token is scored; else None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    end_index: torch.Tensor
    pairs: torch.Tensor
    weight: torch.Tensor
    answer_counts: torch.Tensor
    pair_counts: torch.Tensor
    counted: torch.Tensor
    margin: torch.Tensor | None = None
    target: torch.Tensor | None = None
    ties: torch.Tensor | None = None
    tie_weight: torch.Tensor | None = None
    token_pairs: torch.Tensor | None = None
    token_owner: torch.Tensor | None = None
    mean_index: torch.Tensor | None = None
    mean_answer: torch.Tensor | None = None
    segments: Segments | None = None
    end_segments: Segments | None = None

    def work(self) -> torch.Tensor:
        """What the batch costs: float64 [4].

        Tokens, tokens with padding, tokens if no answer shared its prefix with another, and
        pairs of a query and a key that it sees.
        """
        flat = self.position_ids.flatten() + 1
        parts = (
            self.attention_mask.sum(),
            torch.tensor(self.attention_mask.numel()),
            flat[self.end_index].sum(),
            flat[self.attention_mask.flatten()].sum(),
        )
        return torch.tensor([float(part) for part in parts], dtype=torch.float64)


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
NO_PAIRS = np.empty((0, 2), dtype=np.int64)


# Makes a batch of tokenised comparisons (ComparisonTokenizer.rows) and their weights in the loss.
Collate = Callable[[Sequence[dict], Sequence[float]], Batch]


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
            means = [_numbers(a)[start:] for a, start in zip(answers, starts, strict=True)]
            counts = torch.tensor([len(part) for part in means])
            batch.mean_index = torch.cat(means)
            batch.mean_answer = torch.arange(len(means)).repeat_interleave(counts)
        elif self.inputs.tokens:
            places = list(map(_numbers, answers))
            batch.token_pairs, batch.token_owner = align_tokens(rows, places, batch.pairs)
        elif segments:
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


class PlannedBatches(torch.utils.data.Dataset):
    """A map-style data set whose i-th item is the batch of the i-th micro-batch of a plan.

    Args:
        rows: data set of tokenised comparisons.
        plan: micro-batches (sampling.py).
        collate: makes a batch of the rows and weights of one.
    """

    def __init__(self, rows: "datasets.Dataset", plan: Sequence[MicroBatch], collate: Collate):
        self.rows, self.plan, self.collate = rows, plan, collate

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        micro_batch = self.plan[number]
        return self.collate(self.rows.__getitems__(micro_batch.rows), micro_batch.weights)


def load_batches(
    rows: "datasets.Dataset", plan: Sequence[MicroBatch], collate: Collate
) -> torch.utils.data.DataLoader:
    """Batches in the order of a plan; the arguments are those of PlannedBatches."""
    return torch.utils.data.DataLoader(PlannedBatches(rows, plan, collate), batch_size=None)


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


def end_positions(
    input_ids: torch.Tensor, pad_token_id: int, num_padding_at_beginning: int = 0
) -> torch.Tensor:
    """Find where right-padded sequences end, for callers who hold only token ids.

    The end is the token before the first padding token after the leading ones; the last token of
    a row without padding. A padding token inside the text is taken for its end: batches of this
    project carry `end_index` instead.

    Args:
        input_ids: int [B, T].
        pad_token_id: id of the padding token.
        num_padding_at_beginning: leading tokens of every row that may look like padding.

    Returns:
        int64 [B], column of the last token of each row.
    """
    is_pad = input_ids == pad_token_id
    is_pad[:, :num_padding_at_beginning] = False
    first_pad = is_pad.int().argmax(dim=1)
    return torch.where(is_pad.any(dim=1), first_pad, input_ids.shape[1]) - 1


def _of_pairs(
    rows: Sequence[dict], column: str, pairs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The numbers of the better and of the worse answers; 0 if a row has none: float32 [P] each."""
    parts = []
    for row, own in zip(rows, pairs, strict=True):
        values = torch.tensor(row[column] or [0.0] * len(row["ranks"]), dtype=torch.float32)
        parts.append(values[row["answers"]][own])
    return torch.cat(parts).unbind(dim=1)


def _numbers(ranges: Iterable[range]) -> torch.Tensor:
    """All numbers of the ranges, one after the other: int64."""
    return torch.cat([torch.arange(r.start, r.stop) for r in ranges])


def _starts(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
