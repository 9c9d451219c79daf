"""GPU hours that training should take, derived from counted FLOPs; nothing is run.

    python benchmarks/expected_time.py --comparisons 100000 --tokens 236

Prints a Markdown table. A model is built without weights, its FLOPs are those that main.py logs as
`mfu`, and the share of the peak is assumed. `--tokens` of your data: `tokens_per_epoch` divided by
`comparisons_per_epoch` in training_args.json; for a padded layout, what a padded comparison takes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import LlamaConfig, OPTConfig, PreTrainedConfig, Qwen2Config

from utils.model import pretrained
from utils.model.reward_model import RewardModel
from utils.training.throughput import PEAK_FLOPS, Throughput

GPUS = ("RTX 4090", "A100", "H100")


def opt(layers: int, hidden: int, heads: int, **others) -> OPTConfig:
    """An OPT of the sizes in arXiv 2205.01068, table 1."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return OPTConfig(**sizes, ffn_dim=4 * hidden, **{"word_embed_proj_dim": hidden, **others})


# Shapes that the config.json of each hub model has.
MODELS: dict[str, PreTrainedConfig] = {
    "OPT 125m": opt(12, 768, 12),
    "OPT 350m": opt(24, 1024, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "OPT 1.3b": opt(24, 2048, 32),
    "OPT 6.7b": opt(32, 4096, 32),
    "OPT 13b": opt(40, 5120, 40),
    "Qwen 2.5 0.5b": Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "Llama 3.1 8b": LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
}


def comparison_flops(config: PreTrainedConfig, tokens: float) -> float:
    """Model FLOPs of a comparison, forward and backward.

    Args:
        config: of the model.
        tokens: of the comparison.
    """
    model = RewardModel(pretrained.empty_model(config))
    work = torch.tensor([tokens, tokens, tokens, tokens**2 / 2])  # at most: each sees all before it
    return Throughput(model, torch.device("cpu"), "bf16", 1).flops(work, answers=2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparisons", type=int, default=100_000, help="that train")
    parser.add_argument("--tokens", type=float, default=236, help="of a comparison, on average")
    parser.add_argument("--share", type=float, default=0.4, help="of the GPU's peak, assumed")
    args = parser.parse_args()

    print(f"| GPU hours, derived | {' | '.join(GPUS)} |\n|{'---|' * (len(GPUS) + 1)}")
    for name, config in MODELS.items():
        flops = args.comparisons * comparison_flops(config, args.tokens)
        hours = [flops / (args.share * PEAK_FLOPS[gpu]) / 3600 for gpu in GPUS]
        print(f"| {name} | {' | '.join(f'{hour:.2g}' for hour in hours)} |")


if __name__ == "__main__":
    main()
