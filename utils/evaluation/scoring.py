"""A model and batches in, scores out; main.py and rw_eval.py share it."""

from collections.abc import Callable, Iterable, Iterator

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
    try:
        for batch in distributed.progress(batches, desc=title, leave=False):
            batch = batch.to(device)
            yield model(batch), batch
    finally:  # also where the caller takes no more
        model.train(was_training)


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    stop: Callable[[], bool | int] = lambda: False,
) -> dict[str, float] | None:
    """Loss, accuracy, margin and scores over the batches of all ranks (metrics.summarize).

    Args:
        model, batches, device: as in `score_batches`.
        stop: asked after each batch, on every rank with the same answer; if true, the result is
            None.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    for scores, batch in score_batches(model, batches, device, "Evaluating"):
        sums += comparison_sums(scores, batch).sum(dim=0)
        if stop():
            return None
    return summarize(distributed.sum_over_ranks(sums))
