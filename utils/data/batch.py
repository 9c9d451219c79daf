"""The batch that model, loss and metrics share, and what it carries for a loss.

packing.py makes it of rows of token ids.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass
class _OnDevice:
    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """A copy with all tensors on another device; out of pinned memory nobody waits for it."""
        return self._each("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """A copy in memory that a GPU reads by itself; DataLoader(pin_memory=True) calls it."""
        return self._each("pin_memory")

    def _each(self, method: str, *args: object, **options: object) -> Self:
        parts = {name: value for name, value in vars(self).items() if hasattr(value, method)}
        changed = {name: getattr(v, method)(*args, **options) for name, v in parts.items()}
        return replace(self, **changed)


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
        most_queries: of a segment.
        most_keys: the same.
        query_starts: int32 [S + 1], where the queries of each segment begin, and where all end.
        key_starts: int32 [S + 1], the same of the keys.
        key_index: int64 [sum of all keys], the token of the row that each key belongs to.
        first_use: int64 [T], where in `key_index` each token of the row stands first.
        reuses: int64 [R], the other places of `key_index`: those of borrowed keys.
        reused: int64 [R], the tokens that stand there.
    """

    query_lengths: list[int]
    own_lengths: list[int]
    prefix_lengths: list[int]
    most_queries: int
    most_keys: int
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    key_index: torch.Tensor
    first_use: torch.Tensor
    reuses: torch.Tensor
    reused: torch.Tensor

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
        key_starts = _starts(keys)
        places = list(zip(key_starts[1:].tolist(), keys, own, strict=True))
        key_index = join_ranges(r for _, *ranges in parts for r in ranges)
        reuses = join_ranges(range(end - length, end - new) for end, length, new in places)

        return cls(
            queries,
            own,
            prefixes,
            max(queries),
            max(keys),
            query_starts=_starts(queries),
            key_starts=key_starts,
            key_index=key_index,
            first_use=join_ranges(range(end - new, end) for end, _, new in places),
            reuses=reuses,
            reused=key_index[reuses],
        )


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
        mask = self.attention_mask.flatten()
        parts = mask.sum(), mask.new_tensor(len(mask), dtype=torch.int64)
        return torch.stack([*parts, flat[self.end_index].sum(), (flat * mask).sum()]).double()


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


# Makes a batch of tokenised comparisons (ComparisonTokenizer.rows) and their weights in the loss.
Collate = Callable[[Sequence[dict], Sequence[float]], Batch]


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


def join_ranges(ranges: Iterable[range]) -> torch.Tensor:
    """All numbers of the ranges, one after the other: int64."""
    return torch.cat([torch.arange(r.start, r.stop) for r in ranges])


def _starts(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
