"""What a step costs and how fast it is: tokens, model FLOPs, share of the device's peak."""

import resource

import torch
from torch import nn
from transformers import PreTrainedModel

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


class Throughput:
    """Turns counted work into rates, and tells the memory it takes.

    Args:
        model: a language model with a scalar head.
        device: where it trains.
        dtype: fp32, bf16 or fp16.
        world_size: number of such devices.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, dtype: str, world_size: int):
        config = model.config
        embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        looked_up = {p for module in embeddings for p in module.parameters()}
        weights = [p for p in model.parameters() if p not in looked_up]
        self.weights = sum(map(parameter_size, weights))
        self.trained = sum(parameter_size(p) for p in weights if p.requires_grad)
        self.attention = config.num_hidden_layers * config.hidden_size
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        known = [peak for part, peak in PEAK_FLOPS.items() if part in name]
        self.peak = known[0] * world_size if known and dtype != "fp32" else None

    def flops(self, tokens: float, attended: float) -> float:
        """Model FLOPs of forward and backward over so many tokens.

        A weight costs 2 FLOPs a token forward, 2 backward for the activations and 2 for itself if
        it trains (arXiv 2204.02311, appendix B); a pair of query and key costs 12 times the width
        in each layer. Recomputation and padding do not count.

        Args:
            tokens: without padding.
            attended: pairs of a query and a key that it sees.
        """
        return tokens * (4 * self.weights + 2 * self.trained) + 12 * attended * self.attention

    def rates(self, comparisons: float, work: torch.Tensor, seconds: float) -> dict[str, float]:
        """Rates of so many comparisons with this work (Batch.work) in so many seconds."""
        tokens, slots, unshared, attended = work.tolist()
        rates = {
            "comparisons_per_second": comparisons / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_fraction": 1 - tokens / slots,
            "shared_fraction": 1 - tokens / unshared,
            "peak_memory_gib": peak_memory(self.device) / 2**30,
        }
        if self.peak:
            rates["mfu"] = self.flops(tokens, attended) / seconds / self.peak
        return rates
