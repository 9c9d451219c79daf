"""A model and batches in, scores out; main.py and rw_eval.py share it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from utils import distributed
from utils.data.batch import Batch
from utils.data.comparison import Comparison
from utils.data.sampling import MicroBatch
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.metrics import SUMS, comparison_sums, summarize_sources
from utils.settings import InputError

# Tokens in a batch of --batch_size auto: beyond, a device gets no faster.
AUTO_TOKENS = {"cpu": 4096, "cuda": 32768}


@torch.no_grad()
def score_batches(
    model: torch.nn.Module, batches: Iterable[Batch], device: torch.device, title: str
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Score batches in evaluation mode, with a progress bar on the first rank.

    Args:
        model: a RewardModel, or the DeepSpeed engine around one.
        batches: an iterable with a length.
        device: where the model is.
        title: of the progress bar.

    Yields:
        float32 scores [N] and the batch, both on the device.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in distributed.progress(batches, desc=title, leave=False):
            batch = batch.to(device)
            yield model(batch), batch
    finally:  # also where the caller takes no more
        model.train(was_training)


class Sources(NamedTuple):
    """Where the comparisons of an evaluation come from.

    Attributes:
        names: of all sources, the same on every rank.
        numbers: for each batch of this rank the source of each comparison, int64 [C].
    """

    names: list[str]
    numbers: list[torch.Tensor]

    @classmethod
    def of(cls, plan: Iterable[MicroBatch], column: list[str]) -> "Sources":
        """For the batches of a plan over rows that have this list of sources."""
        names, numbers = np.unique(column, return_inverse=True)
        return cls(names.tolist(), [torch.from_numpy(numbers[rows]) for rows, _ in plan])


def evaluate_batches(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    stop: Callable[[], bool | int] = lambda: False,
    sources: Sources | None = None,
) -> dict | None:
    """Loss, accuracy, margin and scores over the batches of all ranks (metrics.summarize).

    Args:
        model, batches, device: as in `score_batches`.
        stop: asked after each batch, on every rank with the same answer; if true, the result is
            None.
        sources: of the comparisons; where there are several, the result has an entry `sources`
            (metrics.summarize_sources).
    """
    names = sources.names if sources else []
    sums = torch.zeros(1 + len(names), len(SUMS), dtype=torch.float64, device=device)  # of all: [0]
    for number, (scores, batch) in enumerate(score_batches(model, batches, device, "Evaluating")):
        added = comparison_sums(scores, batch)
        sums[0] += added.sum(dim=0)
        if sources:
            sums[1:].index_add_(0, sources.numbers[number].to(device), added)
        if stop():
            return None
    return summarize_sources(distributed.sum_over_ranks(sums), names)


class Scorer:
    """Scores comparisons with a model, a few at a time or thousands.

    Args:
        model: a RewardModel in evaluation mode.
        encoder: makes token ids of comparisons.
        collate: makes batches of them (packing.make_collator).
        device: where the model takes its batches.
        packed: the layout that `collate` makes.
        batch_size: comparisons in a batch; None fills batches with as many tokens as run well,
            and halves that where the memory of the device is too small.
        mean, std: what is subtracted from each score, and what divides it then.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoder: ComparisonTokenizer,
        collate: Callable[[Sequence[dict], Sequence[float]], Batch],
        device: torch.device,
        *,
        packed: bool,
        batch_size: int | None = None,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        self.model, self.encoder, self.collate, self.device = model, encoder, collate, device
        self.packed, self.batch_size = packed, batch_size
        self.mean, self.std = mean, std
        self.max_tokens = AUTO_TOKENS[device.type]

    def __call__(self, comparisons: Sequence[Comparison]) -> list[dict]:
        """Score comparisons.

        Returns:
            The row of each (ComparisonTokenizer.rows) with `scores`: K floats, None for an answer
            that is empty or too long.
        """
        rows = self.encoder.rows(comparisons)
        for row, comparison in zip(rows, comparisons, strict=True):
            row["scores"] = [None] * len(comparison.responses)
        self.score_rows(rows)
        return rows

    def score_rows(self, rows: Sequence[dict]) -> None:
        """Fill in the scores of the answers that rows of the encoder have kept.

        Raises:
            InputError: a score is not finite, or the memory is too small for a single comparison.
        """
        kept = [row for row in rows if row["answers"]]
        for numbers in self._batches(kept):
            batch = [kept[number] for number in numbers]
            scores = self._score(batch)
            if not np.isfinite(scores).all():
                raise InputError(
                    "a score is not finite: give --dtype fp32 or bf16, or check the checkpoint's "
                    "weights (--model_name_or_path)"
                )

            places = ((row, answer) for row in batch for answer in row["answers"])
            for (row, answer), score in zip(places, scores, strict=True):
                row["scores"][answer] = (score - self.mean) / self.std

    def size(self, row: dict) -> int:
        """Tokens that a row takes in a batch."""
        return row["tokens"] if self.packed else row["length"] * len(row["answers"])

    def _batches(self, rows: Sequence[dict]) -> list[np.ndarray]:
        """Row numbers of each batch; longest first, so that too large a batch shows at once."""
        sizes = list(map(self.size, rows))
        order = np.argsort(sizes, kind="stable")[::-1]
        if not len(order):
            return []
        if self.batch_size:
            return np.split(order, range(self.batch_size, len(order), self.batch_size))
        filled = np.cumsum(np.asarray(sizes)[order]) // self.max_tokens
        return np.split(order, np.flatnonzero(np.diff(filled)) + 1)

    @torch.no_grad()
    def _score(self, rows: list[dict]) -> list[float]:
        from accelerate.utils.memory import should_reduce_batch_size

        try:
            batch = self.collate(rows, [1.0] * len(rows)).to(self.device)
            return self.model(batch).tolist()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if self.batch_size or len(rows) == 1:
                raise InputError(
                    f"out of memory with {len(rows)} comparisons in a batch: give a lower "
                    "--batch_size or --max_seq_len, or --device_map auto"
                ) from error

        torch.cuda.empty_cache()
        self.max_tokens //= 2
        half = len(rows) // 2
        return self._score(rows[:half]) + self._score(rows[half:])
