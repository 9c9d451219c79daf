"""What scores are worth: accuracy, ties, margins, loss. Sums first, so that ranks can add them."""

import torch
from torch.nn.functional import logsigmoid

from utils.data.batching import Batch

SUMS = ("comparisons", "loss", "pairs", "correct", "ties", "margin", "better", "worse")


def comparison_sums(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What each comparison of a batch adds to the metrics; nothing if its weight is 0.

    Args:
        scores: float [N].
        batch: its pairs count; of its weights only whether they are 0.

    Returns:
        float64 [C, 8], the columns of SUMS. `loss` is the Bradley-Terry loss, its mean over the
        pairs; the others are sums over the pairs. Equal scores are half correct.
    """
    owner = torch.arange(len(batch.pair_counts), device=scores.device)
    owner = owner.repeat_interleave(batch.pair_counts)
    share = 1 / batch.pair_counts[owner].double()
    better, worse = scores.double()[batch.pairs].unbind(dim=1)
    ties = (better == worse).double()
    columns = [
        share,
        -share * logsigmoid(better - worse),
        torch.ones_like(share),
        (better > worse) + 0.5 * ties,
        ties,
        better - worse,
        better,
        worse,
    ]
    counted = (batch.weight > 0)[:, None]
    sums = torch.zeros(len(batch.pair_counts), len(SUMS), dtype=torch.float64, device=scores.device)
    return sums.index_add(0, owner, torch.stack(columns, dim=1) * counted)


def summarize(sums: torch.Tensor) -> dict[str, float]:
    """Means out of `comparison_sums` [8], added over comparisons, batches and ranks.

    Returns:
        comparisons, pairs and ties (pairs with equal scores) as counts; loss a comparison;
        accuracy, margin, better_score and worse_score a pair. NaN where there is no pair.
    """
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    pairs = total["pairs"] or float("nan")
    return {
        "loss": total["loss"] / (total["comparisons"] or float("nan")),
        "accuracy": total["correct"] / pairs,
        "margin": total["margin"] / pairs,
        "better_score": total["better"] / pairs,
        "worse_score": total["worse"] / pairs,
        "comparisons": round(total["comparisons"]),
        "pairs": int(total["pairs"]),
        "ties": int(total["ties"]),
    }
