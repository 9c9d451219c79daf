"""Checkpoints in the layouts of the hub, old ones too, load as plain Transformers loads them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import SIZES, TEXTS, save_language_model
from utils.model import pretrained
from utils.settings import InputError

BIN, SAFETENSORS = ("pytorch_model", "bin"), ("model", "safetensors")
MASK = torch.ones(1, 1, 256, 256).tril()
SCALAR = torch.tensor(-1e9)
NEOX = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}

# Family: sizes, prefix of the names, and the buffers that its files on the hub have or had.
FAMILIES = {
    "opt": ({}, "model.", {"model.decoder.version": torch.tensor([3.0])}),
    "gpt2": (
        {},
        "transformer.",
        {"transformer.h.1.attn.bias": MASK, "transformer.h.1.attn.masked_bias": SCALAR},
    ),
    "gpt_neo": (
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "window_size": 16,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 256,
        },
        "transformer.",
        {
            "transformer.h.0.attn.attention.bias": MASK.bool(),
            "transformer.h.0.attn.attention.masked_bias": SCALAR,
        },
    ),
    "gptj": (
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 256},
        "transformer.",
        {
            "transformer.h.1.attn.bias": MASK.to(torch.uint8),
            "transformer.h.1.attn.masked_bias": SCALAR,
        },
    ),
    "gpt_neox": (
        NEOX,
        "gpt_neox.",
        {
            "gpt_neox.layers.0.attention.bias": MASK.bool(),
            "gpt_neox.layers.0.attention.masked_bias": SCALAR,
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
        },
    ),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 2}, "transformer.", {}),
    "llama": (
        {},
        "model.",
        {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def checkpoint(family, tmp_path, opt_tokenizer):
    """A folder without weights, its language model in 16 bits, and its old buffers by name."""
    sizes, prefix, buffers = FAMILIES[family]
    folder = save_language_model(tmp_path / family, opt_tokenizer, family, **sizes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    (folder / "model.safetensors").unlink()
    return folder, model, prefix, buffers


def write(folder, weights, layout, parts=1, **options):
    """The weights as the hub has them: in one file, or in parts with an index."""
    kind, ending = layout
    names, index = sorted(weights), {}
    for number in range(parts):
        part = {name: weights[name] for name in names[number::parts]}
        shard = f"-{number + 1:05}-of-{parts:05}" if parts > 1 else ""
        file = f"{kind}{shard}.{ending}"
        if ending == "bin":
            torch.save(part, folder / file, **options)
        else:
            save_file({name: weight.clone() for name, weight in part.items()}, folder / file)
        index |= dict.fromkeys(part, file)
    if parts > 1:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        (folder / f"{kind}.{ending}.index.json").write_text(text)


def load(folder, tokenizer, new_head=True):
    config = pretrained.load_config(str(folder))
    pretrained.set_dropout(config, 0.0)
    return pretrained.load_model(str(folder), config, tokenizer, new_head=new_head)


def assert_equal_states(model, original, tokenizer):
    """The hidden states of a reward model are those of the language model in 32 bits."""
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = original.float().eval().base_model(ids).last_hidden_state
        assert expected.std() > 0.01
        torch.testing.assert_close(model.eval().backbone(ids).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("layout", "parts", "bare", "with_head"),
    [
        (BIN, 1, False, True),
        (BIN, 2, True, False),
        (SAFETENSORS, 2, False, True),
        (SAFETENSORS, 1, True, False),
    ],
)
def test_old_buffers_are_no_weights(checkpoint, opt_tokenizer, layout, parts, bare, with_head):
    folder, original, prefix, buffers = checkpoint
    weights = {**original.state_dict(), **buffers}
    if not with_head:
        weights = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    if bare:
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    write(folder, weights, layout, parts)

    model, notes = load(folder, opt_tokenizer)
    assert_equal_states(model, original, opt_tokenizer)
    said = [note for note in notes if "makes anew" in note]
    assert len(said) == bool(buffers)
    for name in buffers:
        name = name.removeprefix(prefix) if bare else name
        assert re.sub(r"\.\d+\.", ".*.", name) in said[0]


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", (32,)),
        ("gpt_neox", "layers.0.attention.rotary_emb.inv_freq", (2, 2)),
        ("gpt2", "h.0.attn.bias", (96,)),
        ("gpt2", "transformer.h.2.attn.c_attn.weight", (32, 96)),
        ("opt", "model.decoder.layers.0.attention.bias", (32,)),
        ("opt", "decoder.layers.9.fc2.weight", (32, 64)),
        ("llama", "model.layers.0.self_attn.masked_bias", (2,)),
        ("llama", "layers.1.self_attn.q_proj.bias", (32,)),
    ],
    indirect=["family"],
)
def test_a_parameter_that_is_left_over_is_refused(checkpoint, opt_tokenizer, name, shape):
    """Whatever its name; also where Transformers itself would pass over it."""
    folder, original, _, _ = checkpoint
    weights = {**original.state_dict(), name: torch.zeros(shape)}
    write(folder, weights, BIN)
    with pytest.raises(InputError, match=rf"1 weights are left over \(.*{re.escape(name)}"):
        load(folder, opt_tokenizer)


@pytest.mark.parametrize("family", ["opt"], indirect=True)
def test_older_files_and_files_beside_each_other(checkpoint, opt_tokenizer):
    """torch.save of before torch 1.6; safetensors go before .bin, as in Transformers."""
    folder, original, _, _ = checkpoint
    weights = original.state_dict()
    write(folder, weights, BIN, _use_new_zipfile_serialization=False)
    assert_equal_states(load(folder, opt_tokenizer)[0], original, opt_tokenizer)

    write(folder, {name: 2 * weight for name, weight in weights.items()}, BIN)
    write(folder, weights, SAFETENSORS)
    assert_equal_states(load(folder, opt_tokenizer)[0], original, opt_tokenizer)


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox"], indirect=True)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_model_of_deepspeed_chat_with_old_buffers(checkpoint, opt_tokenizer, parts):
    folder, original, prefix, buffers = checkpoint
    head = torch.arange(16.0 if prefix == "model." else 32.0)[None]
    weights = {**original.base_model.state_dict(prefix="rwtransformer."), "v_head.weight": head}
    weights |= {name.replace(prefix, "rwtransformer.", 1): b for name, b in buffers.items()}
    write(folder, weights, BIN, parts)
    model, notes = load(folder, opt_tokenizer, new_head=False)
    assert_equal_states(model, original, opt_tokenizer)
    assert torch.equal(model.model.score.weight, head)
    assert "makes anew" in notes[0]

    write(folder, {**weights, "v_head.bias": torch.zeros(1)}, BIN, parts)
    with pytest.raises(InputError, match=r"1 weights are left over \(v_head.bias\)"):
        load(folder, opt_tokenizer)


def test_a_buffer_that_the_model_itself_makes_is_no_weight(tmp_path, opt_tokenizer):
    """Whatever its name; one of another shape is left over."""
    sizes = {**SIZES["llama"], "head_dim": 8}
    folder = save_language_model(tmp_path, opt_tokenizer, "gemma3_text", **sizes)
    weights = load_file(folder / "model.safetensors")
    for shape in (), (32,):
        name = "model.embed_tokens.embed_scale"
        write(folder, {**weights, name: torch.ones(shape)}, SAFETENSORS)
        if shape:
            with pytest.raises(InputError, match=f"left over .{name}"):
                load(folder, opt_tokenizer)
        else:
            assert f"makes anew are left behind: {name}" in load(folder, opt_tokenizer)[1][-1]
