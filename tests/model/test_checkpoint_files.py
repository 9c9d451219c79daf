"""What is damaged, or no model at all, is refused in one line before any weight is read."""

import argparse
import json
import os
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3Config,
)

from tests.conftest import TEXTS
from utils.model import pretrained
from utils.settings import InputError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"


def names(**shards):
    return json.dumps({"metadata": {}, "weight_map": shards})


def only(folder, name, content=b""):
    """The folder with nothing but one file in it."""
    for file in folder.iterdir():
        file.unlink()
    (folder / name).write_bytes(content)


def replace(folder, name, content):
    """Another file in the place of the weights."""
    (folder / "model.safetensors").unlink()
    if isinstance(content, str):
        (folder / name).write_text(content)
    else:
        torch.save(content, folder / name)


def cut(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def change(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


FAULTS = {
    "safetensors cut": (lambda f: cut(f, -50), "safetensors: not a file of weights"),
    "header cut": (lambda f: cut(f, 50), "safetensors: not a file of weights"),
    "empty": (lambda f: cut(f, 0), "safetensors: not a file of weights"),
    "pointer": (
        lambda f: replace(f, "model.safetensors", POINTER),
        "safetensors: a pointer of Git",
    ),
    "pointer .bin": (lambda f: replace(f, BIN, POINTER), "bin: a pointer of Git LFS.*git lfs pull"),
    "a web page": (lambda f: replace(f, BIN, "<html>"), "bin: not a file of weights .*damaged"),
    "empty .bin": (lambda f: replace(f, BIN, ""), "bin: not a file of weights .*EOFError"),
    "nested": (lambda f: replace(f, BIN, {"module": {}}), "more than named tensors"),
    "a list": (lambda f: replace(f, BIN, [torch.ones(1)]), "more than named tensors"),
    "objects": (lambda f: replace(f, BIN, {"a": argparse.Namespace()}), "more in it than tensors"),
    "no weights": (lambda f: replace(f, BIN, {}), "hold no weights"),
    "no file": (
        lambda f: (f / "model.safetensors").unlink(),
        r"no weights among config.json, .*expected model.safetensors or pytorch_model.bin",
    ),
    "no shard": (
        lambda f: replace(f, INDEX, names(a="model-00001-of-00001.safetensors")),
        r"1 of 1 files that model.safetensors.index.json names are missing .model-00001-of",
    ),
    "index cut": (lambda f: replace(f, INDEX, "{"), "not an index of weights"),
    "index of nothing": (lambda f: replace(f, INDEX, "[]"), "not an index of weights"),
    "index pointer": (lambda f: replace(f, INDEX, POINTER), "index.json: a pointer of Git LFS"),
    "adapter": (
        lambda f: only(f, "adapter_config.json", b"{}"),
        "a LoRA adapter without its model; merge it",
    ),
    "adapter beside": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "adapter .* stands beside the weights",
    ),
    "GGUF": (lambda f: only(f, "model-Q4.gguf"), "a GGUF model; give the Transformers checkpoint"),
    "state": (lambda f: only(f, "mp_rank_00_model_states.pt"), "a training state of DeepSpeed"),
    "TensorFlow": (lambda f: only(f, "tf_model.h5"), "a TensorFlow model; give its PyTorch"),
    "text for a number": (
        lambda f: change(f, hidden_size="32"),
        "'hidden_size' expected int, got str",
    ),
    "no such function": (lambda f: change(f, activation_function="zelu"), "KeyError: 'zelu'"),
    "no heads": (lambda f: change(f, num_attention_heads=0), "by zero.*expected config.json"),
    "unknown": (lambda f: change(f, model_type="new"), "model type `new`"),
    "no head in it": (lambda f: change(f, model_type="vit"), "no model with a scalar head for vit"),
    "a list for config": (lambda f: (f / "config.json").write_text("[1]"), "not a model.*config"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON file"),
    "config pointer": (lambda f: (f / "config.json").write_text(POINTER), "json: a pointer of Git"),
    "quantised": (
        lambda f: change(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "weights are quantised .gptq., and cannot be trained",
    ),
    "more layers": (lambda f: change(f, num_hidden_layers=3), "16 weights are missing"),
    "fewer layers": (lambda f: change(f, num_hidden_layers=1), "16 weights are left over"),
    "another width": (lambda f: change(f, ffn_dim=48), "6 weights are misshapen .*64.* for .*48"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_loaded_is_refused(opt_model, fault):
    damage, message = FAULTS[fault]
    damage(opt_model)
    with pytest.raises(InputError, match=f"^{re.escape(str(opt_model))}.*{message}") as refused:
        pretrained.check_weights(
            str(opt_model), pretrained.load_config(str(opt_model)), new_head=True
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_model_is_scored_where_its_library_is(opt_model, method):
    change(opt_model, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    with pytest.raises(InputError, match=f"quantised .{method}.*cannot read them.*install"):
        pretrained.check_weights(str(opt_model), pretrained.load_config(str(opt_model)))


def test_a_quantised_model_without_its_head_is_not_scored(opt_model, opt_tokenizer):
    """Transformers reads this kind without a library, where no GPU could run it."""
    change(opt_model, quantization_config={"quant_method": "fp8"})
    arguments = str(opt_model), pretrained.load_config(str(opt_model)), opt_tokenizer
    with pytest.raises(InputError, match="score.weight is missing|cannot read them"):
        pretrained.load_model(*arguments)


def test_a_file_and_a_folder_that_may_not_be_read(opt_model, monkeypatch):
    with pytest.raises(InputError, match="config.json: a file; expected the folder"):
        pretrained.load_config(str(opt_model / "config.json"))
    monkeypatch.setattr(os, "access", lambda *args: False)  # tests may run as root
    with pytest.raises(InputError, match="may not look into the folder"):
        pretrained.load_config(str(opt_model))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", POINTER, "tokenizer.json: a pointer of Git LFS"),
        ("chat_template.jinja", POINTER, "chat_template.jinja: a pointer of Git LFS"),
        ("tokenizer.model", POINTER, "tokenizer.model: a pointer of Git LFS"),
        ("tokenizer.json", "{}", "not a model that can be loaded"),
        ("tokenizer_config.json", '{"chat_template": 5}', "the chat template is 5, not a text"),
        ("tokenizer_config.json", "[]", "not a model that can be loaded"),
    ],
)
def test_damaged_files_of_a_tokenizer(opt_model, file, content, message):
    (opt_model / file).write_text(content)
    with pytest.raises(InputError, match=message):
        pretrained.load_tokenizer(str(opt_model))


def test_a_tokenizer_of_sentencepiece_names_its_own_library(opt_model, monkeypatch):
    """Transformers asks for tiktoken, which could not read it."""
    (opt_model / "tokenizer.json").unlink()
    (opt_model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    (opt_model / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(pretrained, "is_sentencepiece_available", lambda: False)
    with pytest.raises(InputError, match="pip install sentencepiece, or copy the model's"):
        pretrained.load_tokenizer(str(opt_model))


def test_a_folder_above_the_models_names_them(opt_model):
    with pytest.raises(InputError, match=r"no config.json; there are models in opt\)"):
        pretrained.load_config(str(opt_model.parent))


@pytest.mark.parametrize("with_config", [True, False])
def test_special_tokens_of_a_tokenizer_in_parts(opt_model, opt_tokenizer, with_config):
    """vocab.json, merges.txt and special_tokens_map.json alone, as OPT has them on the hub."""
    for file in opt_model.glob("tokenizer*"):
        file.unlink()
    opt_tokenizer.backend_tokenizer.model.save(str(opt_model))
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokens = {key: {"content": value, **token} for key, value in tokens.items()}
    (opt_model / "special_tokens_map.json").write_text(json.dumps(tokens))
    if with_config:
        settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
        (opt_model / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = pretrained.load_tokenizer(str(opt_model))
    loaded.save_pretrained(opt_model / "saved")
    for tokenizer in (loaded, pretrained.load_tokenizer(str(opt_model / "saved"))):
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1)
        assert tokenizer(TEXTS).input_ids == opt_tokenizer(TEXTS).input_ids

    (opt_model / "special_tokens_map.json").unlink()
    (opt_model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer"})
    )
    with pytest.raises(InputError, match=r"no special tokens <\|endoftext\|>; copy tokenizer.json"):
        pretrained.load_tokenizer(str(opt_model))
    (opt_model / "vocab.json").unlink()
    (opt_model / "merges.txt").unlink()
    with pytest.raises(InputError, match="have no vocabulary; copy tokenizer.json"):
        pretrained.load_tokenizer(str(opt_model))


def test_the_text_part_of_a_model_that_sees_pictures(tmp_path, opt_tokenizer):
    """The whole is refused; its text part, saved as README.md says, has the same states."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {**size, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16}
    text |= {"vocab_size": len(opt_tokenizer)}
    vision = {**size, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    name, folder = tmp_path / "whole", tmp_path / "text"
    AutoModelForImageTextToText.from_config(config).save_pretrained(name)
    opt_tokenizer.save_pretrained(name)
    with pytest.raises(InputError, match=r"gemma3 is composed of .*\(text_config, vision_config\)"):
        pretrained.load_config(str(name))

    whole = AutoModelForImageTextToText.from_pretrained(name)
    text = AutoModelForCausalLM.from_config(whole.config.get_text_config())
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)

    arguments = pretrained.load_config(str(folder)), pretrained.load_tokenizer(str(folder))
    model, _ = pretrained.load_model(str(folder), *arguments, new_head=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = whole.eval().model.language_model(ids).last_hidden_state
        torch.testing.assert_close(model.eval().backbone(ids).last_hidden_state, expected)


def test_which_families_are_composed_of_several(tmp_path):
    """All others are language models or encoders alone."""
    refused = set()
    for kind in AutoModelForSequenceClassification._model_mapping:
        kind().save_pretrained(tmp_path)
        try:
            pretrained.load_config(str(tmp_path))
        except InputError as error:
            assert "composed of several models" in str(error)
            refused.add(kind.model_type)
    pictures = {"gemma3", "modernvbert", "qwen3_5", "ultravbert"}
    assert refused == pictures | {"t5gemma", "t5gemma2"}
