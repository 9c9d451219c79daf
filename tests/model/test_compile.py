"""Compiled layers give the scores and gradients of plain ones, in batches of any size."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.emulation.emulated_gpu import use_the_kernel
from tests.model.test_gpu_branch import empty_model, random_rows
from tests.model.test_shared_prefix import gradients, models  # noqa: F401  # a fixture
from utils.data.packing import PackedCollator, PaddedCollator
from utils.model import shared_prefix
from utils.model.reward_model import compile_layers
from utils.training.loss import pairwise_loss


def make_batches(collate):
    for number, answers in ((6, 4), (5, 3), (9, 2)):
        rows = random_rows(number, answers)
        for row in rows:  # so few tokens has the vocabulary of the models
            row["input_ids"] = [[4 + i % 8 for i in ids] for ids in row["input_ids"]]
        yield collate(rows, [1.0] * number)


@pytest.mark.parametrize(
    ("family", "collate", "checkpointing"),
    [
        ("opt-350m", PackedCollator(1), False),
        ("llama", PackedCollator(1), True),
        ("gpt2", PaddedCollator(1), False),
    ],
)
def test_compiled_layers_agree_with_plain_ones(
    models,  # noqa: F811
    monkeypatch,
    family,
    collate,
    checkpointing,
):
    monkeypatch.setattr(shared_prefix, "has_varlen_kernel", lambda *_: False)
    model = models[family][collate.packed].train()
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_layers(compiled, backend="aot_eager")
    for one in (model, compiled):
        one.model.activation_checkpointing_disable()
        if checkpointing:
            one.model.activation_checkpointing_enable()
    for batch in make_batches(collate):
        scores = model(batch)
        again = compiled(batch)
        torch.testing.assert_close(again, scores)
        for ours, theirs in zip(gradients(compiled, again), gradients(model, scores), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ["OPT-350m", "Llama-1B"])
def test_layers_share_few_programs_for_batches_of_any_size(monkeypatch, shape):
    use_the_kernel(monkeypatch, shared_prefix)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    model = empty_model(shape)
    compile_layers(model, backend=counter)
    for batch in make_batches(PackedCollator(1)):
        batch = batch.to("meta")
        pairwise_loss(model(batch), batch.pairs, batch.weight).backward()
    assert counter.frame_count <= 5
    assert not torch._dynamo.utils.counters["graph_break"]
