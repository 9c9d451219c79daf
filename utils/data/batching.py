"""Rows of token ids become the batch that model, loss and metrics share."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from utils.data.comparison import ranked_pairs
from utils.data.sampling import MicroBatch


@dataclass
class Batch:
    """C comparisons with N answers in all, laid out as B rows of T tokens.

    Token positions are indices into the B * T tokens, so that layouts differ only in how they
    fill them. All tensors are int64 but `attention_mask` and the float32 `weight`.

    Attributes:
        input_ids: [B, T].
        attention_mask: bool [B, T], false on padding.
        position_ids: [B, T], counted from 0 at the first token of each answer's sequence.
        end_index: [N], where each answer ends: the token that is scored.
        pairs: [P, 2], the better and the worse answer, both numbers below N.
        weight: [P], the weight of the comparison, divided by its number of pairs.
        answer_counts: [C], answers of each comparison; they stand one after the other.
        pair_counts: [C], pairs of each comparison, likewise.
        mean_index: [M], all tokens of all answers, where the score is their mean; else None.
        mean_answer: [M], the answer that each of them belongs to; else None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    end_index: torch.Tensor
    pairs: torch.Tensor
    weight: torch.Tensor
    answer_counts: torch.Tensor
    pair_counts: torch.Tensor
    mean_index: torch.Tensor | None = None
    mean_answer: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """A copy on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{k: v if v is None else v.to(device) for k, v in values.items()})


class PaddedCollator:
    """Lays each answer out as one row, padded on the right to the longest of the batch.

    Args:
        pad_token_id: what padding is filled with.
        mean_score: whether scores are means over the answer, so that its tokens are needed.
    """

    def __init__(self, pad_token_id: int, mean_score: bool = False):
        self.pad_token_id = pad_token_id
        self.mean_score = mean_score

    def __call__(self, rows: Sequence[dict], weights: Sequence[float]) -> Batch:
        """Collate tokenised comparisons.

        Args:
            rows: tokenised comparisons (ComparisonTokenizer.rows).
            weights: the factor of each comparison in the loss.
        """
        sequences = [torch.tensor(ids) for row in rows for ids in row["input_ids"]]
        lengths = torch.tensor([len(ids) for ids in sequences])
        input_ids = torch.nn.utils.rnn.pad_sequence(
            sequences, batch_first=True, padding_value=self.pad_token_id
        )
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        row_starts = torch.arange(len(lengths)) * input_ids.shape[1]
        mask = positions < lengths[:, None]
        batch = Batch(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            end_index=row_starts + lengths - 1,
            **_pair_tensors(rows, weights),
        )
        if self.mean_score:
            starts = torch.tensor([start for row in rows for start in row["answer_starts"]])
            in_answer = mask & (positions >= starts[:, None])
            batch.mean_index = in_answer.flatten().nonzero().squeeze(1)
            batch.mean_answer = batch.mean_index // input_ids.shape[1]
        return batch


def make_collator(encoder) -> PaddedCollator:
    """The collator for the rows of a ComparisonTokenizer (tokenization.py)."""
    return PaddedCollator(encoder.tokenizer.pad_token_id, encoder.settings.score_position == "mean")


class PlannedBatches(torch.utils.data.Dataset):
    """A map-style data set whose i-th item is the batch of the i-th micro-batch of a plan.

    Args:
        rows: data set of tokenised comparisons.
        plan: micro-batches (sampling.py).
        collate: what makes a batch of rows and weights.
    """

    def __init__(self, rows, plan: Sequence[MicroBatch], collate):
        self.rows = rows
        self.plan = plan
        self.collate = collate

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        micro_batch = self.plan[number]
        columns = self.rows[micro_batch.rows]
        names = ("input_ids", "answers", "ranks", "answer_starts")
        rows = [
            dict(zip(names, values, strict=True))
            for values in zip(*(columns[name] for name in names), strict=True)
        ]
        return self.collate(rows, micro_batch.weights)


def load_batches(rows, plan: Sequence[MicroBatch], collate) -> torch.utils.data.DataLoader:
    """Batches in the order of a plan; the arguments are those of PlannedBatches."""
    return torch.utils.data.DataLoader(PlannedBatches(rows, plan, collate), batch_size=None)


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


def _pair_tensors(rows: Sequence[dict], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Pairs of all comparisons, numbered through the batch, with the weight of each."""
    pairs = []
    for row in rows:
        ranks = [row["ranks"][i] for i in row["answers"]]
        pairs.append(torch.from_numpy(ranked_pairs(ranks, row["input_ids"])))
    answers = torch.tensor([len(row["input_ids"]) for row in rows])
    counts = torch.tensor([len(p) for p in pairs])
    first_answer = answers.cumsum(0) - answers
    return {
        "pairs": torch.cat(pairs) + first_answer.repeat_interleave(counts)[:, None],
        "weight": (torch.tensor(weights) / counts.clamp(min=1)).repeat_interleave(counts),
        "answer_counts": answers,
        "pair_counts": counts,
    }
