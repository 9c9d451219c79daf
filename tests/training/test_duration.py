from types import SimpleNamespace

import pytest
import torch
from transformers import OPTConfig

from utils.estimates import estimate_seconds
from utils.training import duration

CONFIG = OPTConfig(
    vocab_size=50,
    hidden_size=16,
    word_embed_proj_dim=16,
    ffn_dim=32,
    num_hidden_layers=5,
    num_attention_heads=2,
    pad_token_id=1,
)


def arguments(**changes):
    flags = {"per_device_train_batch_size": 4, "max_tokens_per_micro_batch": 0}
    flags |= {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "dtype": "fp32"}
    flags |= {"gradient_checkpointing": False, "trust_remote_code": False}
    return SimpleNamespace(**{**flags, **changes})


@pytest.mark.parametrize(
    ("changes", "rows", "micro_batches"),
    [({}, 10, 150), ({"max_tokens_per_micro_batch": 600}, 15, 100)],
)
def test_what_a_layer_adds_counts_for_all_others(monkeypatch, changes, rows, micro_batches):
    """800 comparisons of 100 tokens, 40 a sequence; 2 s with one layer, 2.5 s with two."""
    seen = []

    def time_layers(args, config, layers, ids):
        seen.append(tuple(ids.shape))
        return (2.0, 100, 0.5) if layers == 1 else (2.5, 140, 0.7)

    monkeypatch.setattr(duration, "_time_layers", time_layers)
    device = torch.device("cpu")
    seconds = estimate_seconds(arguments(**changes), CONFIG, device, 80_000, 800, 40.0, 4)
    assert seen == [(rows, 40)] * 2
    # Five layers have 100 + 4 * 40 weights; every second micro-batch is followed by the optimiser.
    assert seconds == pytest.approx(micro_batches * (2.0 + 4 * 0.5 + 0.5 * 260 / 100 / 2))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_built_and_timed(checkpointing):
    args = arguments(gradient_checkpointing=checkpointing)
    ids = torch.randint(50, (3, 20))
    timed = [duration._time_layers(args, CONFIG, layers, ids) for layers in (1, 2)]
    assert all(batch > 0 and update > 0 for batch, _, update in timed)
    layer = 4 * (16 * 16 + 16) + 16 * 32 + 32 + 32 * 16 + 16 + 4 * 16
    assert timed[1][1] - timed[0][1] == layer
    assert CONFIG.num_hidden_layers == 5
