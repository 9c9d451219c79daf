"""What runs on a GPU, as far as a CPU can show it: the branch of the fused kernel.

The kernel is emulated (tests/emulation), or there are tensors without memory, whose numbers nobody
can ask for.
"""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.counting import Counting
from tests.emulation import emulated_gpu
from tests.model.test_shared_prefix import (
    FAMILIES,
    compare,
    make_rows,
    models,  # noqa: F401  # a fixture
)
from utils.data.packing import PackedCollator
from utils.model import shared_prefix
from utils.model.reward_model import RewardModel
from utils.training.loss import loss_inputs, model_loss
from utils.training.settings import parse_training_arguments

SHAPES = {
    "OPT-350m": ("opt", {"num_hidden_layers": 24, "do_layer_norm_before": False, "ffn_dim": 64}),
    "Llama-1B": ("llama", {"num_hidden_layers": 16, "intermediate_size": 64}),
}
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50, "pad_token_id": 1}
NARROW = {"opt": {"word_embed_proj_dim": 16, "dropout": 0.0}, "llama": {"num_key_value_heads": 2}}

# Operations of forward, backward and loss: a layer of OPT has 53 of them, one of Llama 125.
CEILINGS = {"OPT-350m": 1300, "Llama-1B": 2060}


def random_rows(number, answers):
    """Comparisons of random short texts, whose last two answers are equally good."""
    draw = random.Random(0)

    def text(*start):
        return [*start, *(draw.randrange(4, 50) for _ in range(draw.randrange(1, 9)))]

    batch = [(text(), [text(4 + i) for i in range(answers)]) for _ in range(number)]
    ranks = [*range(answers - 1), answers - 2]
    return [{**row, "ranks": ranks} for row in make_rows(batch, "end")]


@pytest.mark.parametrize("release", emulated_gpu.RELEASES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("position", ["end", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_branch_gives_the_scores_and_gradients_of_answers_alone(
    models,  # noqa: F811
    monkeypatch,
    family,
    position,
    checkpointing,
    release,
):
    for name in ("varlen_attn", "TAKES_ENABLE_GQA", "has_varlen_kernel"):
        monkeypatch.setattr(shared_prefix, name, getattr(shared_prefix, name))  # undone afterwards
    emulated_gpu.emulate(shared_prefix, release)
    emulated_gpu.calls.clear()
    batch = [([4, 5, 6], [[4, 7], [4], [8, 9, 4, 5]]), ([5] * 9, [[4, 4], [7]])]
    compare(*models[family], batch, position, checkpointing, floor=0.1)
    # In the last layer, where only ends are scored, queries and keys differ in number.
    assert len(emulated_gpu.calls) >= 2
    assert all(keys > 20 for _, keys in emulated_gpu.calls)


def empty_model(shape):
    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, num_labels=1, **SIZES, **NARROW[kind], **sizes)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=shared_prefix.SHARED_PREFIX, dtype=torch.bfloat16
        )
    return RewardModel(model).train()


LOSSES = [
    "--loss pairwise",
    "--loss pairwise --margin --sample_weights --center_rewards_coefficient 0.1",
    "--loss pairwise --label soft",
    "--loss pairwise --tie_threshold 1",
    "--loss plackett_luce",
    "--loss token_pairwise",
    "--loss pairwise --score_position mean",
]


@pytest.mark.parametrize("words", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_waits_in_forward_backward_and_loss(monkeypatch, shape, words):
    """Tensors without memory have no numbers: asking for one is an error."""
    emulated_gpu.use_the_kernel(monkeypatch, shared_prefix)
    args = parse_training_arguments(["--model_name_or_path", "m", *words.split()])
    collate = PackedCollator(1, args.score_position == "mean", loss_inputs(args))
    batch = collate(random_rows(6, 4), [1.0] * 6).to("meta")
    model = empty_model(shape)
    with Counting("meta") as counted:
        model_loss(args, model, batch)[0].backward()
    assert not counted.waits
    assert counted.operations.total() < CEILINGS[shape]
    calls = counted.operations["torch_attn._varlen_attn"]
    assert calls == model.model.config.num_hidden_layers
    for weight in model.parameters():
        assert weight.grad is not None and weight.grad.is_meta


def test_counting_finds_what_waits():
    found = []
    mask = torch.tensor([True, False])
    for waits in (
        lambda: mask.sum().item(),
        lambda: mask[mask],
        lambda: torch.arange(2).repeat_interleave(torch.arange(2)),
        lambda: mask.nonzero(),
        lambda: torch.bincount(torch.arange(2)),
    ):
        with Counting() as counted:
            waits()
        found.append(counted.waits.total())
    assert found == [1] * 5
    batch = PackedCollator(1)(random_rows(2, 2), [1.0] * 2)
    with pytest.raises(AssertionError, match="takes tensors on"), Counting("meta"):
        empty_model("OPT-350m")(replace(batch.to("meta"), position_ids=batch.position_ids))
