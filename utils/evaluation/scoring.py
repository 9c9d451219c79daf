"""A model and batches in, scores out; main.py and rw_eval.py share it."""

from collections.abc import Iterable, Iterator

import torch

from utils import distributed
from utils.data.batching import Batch
from utils.evaluation.metrics import SUMS, comparison_sums, summarize


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
    for batch in distributed.progress(batches, desc=title, leave=False):
        batch = batch.to(device)
        yield model(batch), batch
    model.train(was_training)


def evaluate(
    model: torch.nn.Module, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Loss, accuracy, margin and scores over the batches of all ranks (metrics.summarize)."""
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    for scores, batch in score_batches(model, batches, device, "Evaluating"):
        sums += comparison_sums(scores, batch).sum(dim=0)
    return summarize(distributed.sum_over_ranks(sums))
