from types import SimpleNamespace

import pytest
import torch
from transformers import OPTConfig

from utils import estimates
from utils.estimates import estimate_needs, estimate_seconds

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

    monkeypatch.setattr(estimates, "_time_layers", time_layers)
    processes = {"device": torch.device("cpu"), "world_size": 4}
    seconds = estimate_seconds(arguments(**changes), CONFIG, 80_000, 800, 40.0, **processes)
    assert seen == [(rows, 40)] * 2
    # Five layers have 100 + 4 * 40 weights; a step of a process has eight comparisons.
    assert seconds == pytest.approx(micro_batches * (2.0 + 4 * 0.5) + 75 * 0.5 * 260 / 100)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_built_and_timed(checkpointing):
    args = arguments(gradient_checkpointing=checkpointing)
    ids = torch.randint(50, (3, 20))
    timed = [estimates._time_layers(args, CONFIG, layers, ids) for layers in (1, 2)]
    assert all(batch > 0 and update > 0 for batch, _, update in timed)
    layer = 4 * (16 * 16 + 16) + 16 * 32 + 32 + 32 * 16 + 16 + 4 * 16
    assert timed[1][1] - timed[0][1] == layer
    assert CONFIG.num_hidden_layers == 5


def needs(devices, nodes=1):
    return {(n.stage, n.offload): n for n in estimate_needs(1000, 100, devices, nodes)}


def test_every_stage_stands_with_and_without_offload():
    assert needs(2).keys() == {(0, False)} | {(s, o) for s in (1, 2, 3) for o in (False, True)}


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (4, 2)])
def test_states_are_divided_as_the_zero_paper_says(devices, nodes):
    """Bytes a parameter: 2 weights, 2 gradients and 16 fp32 weights, gradients and moments."""
    ranks = devices * nodes
    device = {
        stage: need.device
        for (stage, offload), need in needs(devices, nodes).items()
        if not offload
    }
    assert device[0] == 20 * 1000
    assert device[1] == pytest.approx(4 * 1000 + 16 * 1000 / ranks, abs=2)
    assert device[2] == pytest.approx(2 * 1000 + 18 * 1000 / ranks, abs=2)
    assert device[3] == pytest.approx(18 * 1000 / ranks + 4 * 100, abs=2)  # and a gathered layer


def test_offload_moves_states_to_the_host():
    for stage in (1, 2, 3):
        plain, offloaded = needs(2)[stage, False], needs(2)[stage, True]
        assert offloaded.device < plain.device
        assert offloaded.host > plain.host
