"""What a step costs and how fast it is: tokens, model FLOPs, share of the device's peak."""

import resource
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import last_layer

# Dense bf16 and fp16 peaks in FLOP/s, from NVIDIA's data sheets; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_memory(device: torch.device) -> int:
    """Largest memory of this process so far in bytes: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def parameter_size(parameter: nn.Parameter) -> int:
    """Number of values, also of a parameter that ZeRO-3 has spread over the ranks."""
    return getattr(parameter, "ds_numel", parameter.numel())


class Weights(NamedTuple):
    """Numbers of values: of all weights, and of those that train."""

    all: int
    trained: int

    @property
    def flops(self) -> int:
        """Forward and backward, a token."""
        return 4 * self.all + 2 * self.trained


def count_weights(weights: Iterable[nn.Parameter]) -> Weights:
    """Count their values."""
    sizes = [(parameter_size(weight), weight.requires_grad) for weight in weights]
    return Weights(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))


class Throughput:
    """Turns counted work into rates, and tells the memory it takes.

    Args:
        model: a RewardModel.
        device: where it trains.
        dtype: fp32, bf16 or fp16.
        world_size: number of such devices.
        ends_only: whether batches name the attention of scored tokens alone, so that the last layer
            runs these alone if it can (shared_prefix.cut_last_layer).
    """

    def __init__(
        self,
        model: RewardModel,
        device: torch.device,
        dtype: str,
        world_size: int,
        *,
        ends_only: bool = False,
    ):
        config = model.model.config
        embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        looked_up = {p for module in embeddings for p in module.parameters()}
        self.weights = count_weights(p for p in model.parameters() if p not in looked_up)
        self.layers, self.width = config.num_hidden_layers, config.hidden_size

        # Of the last layer, what runs for scored tokens alone: all but keys and values.
        self.cut = Weights(0, 0)
        self.is_cut = ends_only and model.cuts_last_layer
        if self.is_cut:
            heads = config.num_attention_heads
            key_heads = getattr(config, "num_key_value_heads", None) or heads
            head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
            of_keys = 2 * key_heads * head_width * config.hidden_size
            last = count_weights(last_layer(model.backbone).parameters())
            share = 1 - of_keys / last.all
            self.cut = Weights(round(last.all * share), round(last.trained * share))

        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        known = [peak for part, peak in PEAK_FLOPS.items() if part in name]
        self.peak = known[0] * world_size if known and dtype != "fp32" else None

    def flops(self, work: torch.Tensor, answers: float) -> float:
        """Model FLOPs of forward and backward.

        A weight costs 2 FLOPs a token forward, 2 backward for the activations and 2 for itself if
        it trains (arXiv 2204.02311, appendix B); a pair of query and key costs 12 times the width
        in each layer. Recomputation and padding do not count, nor what the last layer leaves out.

        Args:
            work: as of Batch.work.
            answers: how many are scored.
        """
        tokens, _, unshared, attended = work.tolist()
        left_out = tokens - answers if self.is_cut else 0.0
        in_last = unshared if self.is_cut else attended  # a scored token sees its whole sequence

        weights = tokens * self.weights.flops - left_out * self.cut.flops
        pairs = (self.layers - 1) * attended + in_last
        return weights + 12 * pairs * self.width

    def rates(
        self, comparisons: float, answers: float, work: torch.Tensor, seconds: float
    ) -> dict[str, float]:
        """Rates of so many comparisons with this work (Batch.work) in so many seconds."""
        tokens, slots, unshared, _ = work.tolist()
        rates = {
            "comparisons_per_second": comparisons / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_fraction": 1 - tokens / slots,
            "shared_fraction": 1 - tokens / unshared,
            "peak_memory_gib": peak_memory(self.device) / 2**30,
        }
        if self.peak:
            rates["mfu"] = self.flops(work, answers) / seconds / self.peak
        return rates
