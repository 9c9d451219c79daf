import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, LlamaConfig, OPTConfig

from utils.data.packing import PackedCollator
from utils.model import shared_prefix
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.training.throughput import Throughput

CPU = torch.device("cpu")
LENGTH = 96


def make_model(frozen=False):
    config = OPTConfig(
        vocab_size=50,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=1,
    )
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    if frozen:
        model.model.decoder.layers.requires_grad_(False)
    return RewardModel(model)


@pytest.mark.parametrize("frozen", [False, True], ids=["all train", "layers frozen"])
def test_flops_are_those_that_pytorch_counts(frozen):
    model = make_model(frozen)
    with FlopCounterMode(display=False) as counter:
        ids = torch.full((2, LENGTH), 7)
        # Eager attention computes the whole square.
        model.model.model(ids, use_cache=False).last_hidden_state.sum().backward()
    work = torch.tensor([2 * LENGTH, 2 * LENGTH, 0, 2 * LENGTH * LENGTH])
    ours = Throughput(model, CPU, "fp32", 1).flops(work, answers=2)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)  # biases, norms, the head


FAMILIES = {
    "opt": (OPTConfig, {"ffn_dim": 512, "word_embed_proj_dim": 128}, ("q_proj", "out_proj")),
    "llama": (
        LlamaConfig,
        {"intermediate_size": 256, "num_key_value_heads": 1},
        ("q_proj", "o_proj"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_a_last_layer_that_runs_scored_tokens_alone(monkeypatch, family):
    # Attention in pieces: its products have a name of their own.
    monkeypatch.setattr(shared_prefix, "has_varlen_kernel", lambda *_: False)
    kind, sizes, projections = FAMILIES[family]
    sizes |= {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = kind(vocab_size=50, num_labels=1, pad_token_id=1, **sizes)
    network = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=SHARED_PREFIX
    )
    model = RewardModel(network)
    rows = [{"input_ids": [[4] * 9 + [5] * n for n in (30, 40)], "shared": 9}] * 3
    rows = [{**row, "answers": [0, 1], "ranks": [0, 1], "answer_starts": [9, 9]} for row in rows]
    collate = PackedCollator(1)
    batch = collate(rows, [1.0] * 3)

    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op))

    tokens, answers = batch.input_ids.numel(), len(batch.end_index)
    throughput = Throughput(model, CPU, "fp32", 1, ends_only=collate.ends_only)
    ours = throughput.flops(torch.tensor([tokens, tokens, 0, 0]), answers)
    # Forward alone, the projections of all queries run too, and keys and values of ends again.
    layer = dict(network.base_model.named_modules())
    last = {
        name.rpartition(".")[2]: part.weight.numel()
        for name, part in layer.items()
        if "layers.2." in name and name.endswith("_proj")
    }
    unused = sum(last[name] for name in projections)
    unused_keys = last["k_proj"] + last["v_proj"]
    expected = ours + 2 * tokens * unused + 2 * answers * unused_keys
    assert products == pytest.approx(expected, rel=0.01)  # biases, norms, the head

    # Without scored tokens alone, the last layer counts as the others.
    whole = Throughput(model, CPU, "fp32", 1).flops(torch.tensor([tokens, tokens, 0, 0]), answers)
    assert ours < 0.85 * whole


def test_rates_are_shares_and_counts_by_time():
    throughput = Throughput(make_model(), CPU, "fp32", 1)
    work = torch.tensor([600.0, 800.0, 1000.0, 5000.0])
    rates = throughput.rates(12, 24, work, 4.0)
    peak = rates.pop("peak_memory_gib")
    assert peak >= psutil.Process().memory_info().rss / 2**30 - 0.01
    held = torch.ones(int(peak * 2**30 / 4))  # as much again
    assert throughput.rates(12, 24, work, 4.0)["peak_memory_gib"] > peak + 0.05
    del held
    assert rates == {
        "comparisons_per_second": 3,
        "tokens_per_second": 150,
        "padding_fraction": 0.25,
        "shared_fraction": pytest.approx(0.4),
    }
    throughput.peak = 1e9
    mfu = throughput.rates(12, 24, work, 4.0)["mfu"]
    assert mfu == throughput.flops(work, 24) / 4e9


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "fp16", 312e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("A GPU of tomorrow", "bf16", None),
    ],
)
def test_peak_of_known_devices_and_their_number(monkeypatch, name, dtype, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = Throughput(make_model(), torch.device("cuda"), dtype, 4).peak
    assert found == (peak and 4 * peak)
