import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, OPTConfig

from utils.model.reward_model import RewardModel
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
