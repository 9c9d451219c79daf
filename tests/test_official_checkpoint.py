"""OPT-350m's folder as the hub has it, trained by main.py."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import make_pairs, write_jsonl
from tests.forking import run_program
from utils.model import pretrained


@pytest.fixture
def official(opt_model, opt_tokenizer):
    """Old names without `model.`, 16 bits, two .bin files, and a tokenizer in parts."""
    model = AutoModelForCausalLM.from_pretrained(opt_model, dtype=torch.float16)
    weights = {name.removeprefix("model."): w for name, w in model.state_dict().items()}
    weights["decoder.version"] = torch.tensor([3.0])
    for file in (*opt_model.glob("*.safetensors"), *opt_model.glob("tokenizer*")):
        file.unlink()

    index, names = {}, sorted(weights)
    for number in (0, 1):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: weights[name] for name in names[number::2]}, opt_model / file)
        index |= dict.fromkeys(names[number::2], file)
    index = {"metadata": {"total_size": 1}, "weight_map": index}
    (opt_model / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    opt_tokenizer.backend_tokenizer.model.save(str(opt_model))
    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    (opt_model / "special_tokens_map.json").write_text(json.dumps(tokens))
    return opt_model, weights


def test_it_trains_in_32_bits(official, opt_tokenizer, tmp_path):
    """In partitions (ZeRO-3), where Transformers itself does not say what is left over."""
    folder, weights = official
    data, out = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24)), tmp_path / "out"
    words = ("--model_name_or_path", folder, "--data_path", data, "--output_dir", out)
    cache = ("--data_output_path", tmp_path / "cache", "--max_seq_len", 64)
    steps = ("--max_steps", 1, "--learning_rate", 1e-6, "--zero_stage", 3)
    done = run_program("main.py", *words, *cache, *steps)
    assert done.returncode == 0, done.stderr
    assert "buffers that Transformers makes anew are left behind: decoder.version" in done.stdout

    saved = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    for name, weight in weights.items():
        if name not in ("decoder.version", "lm_head.weight"):
            torch.testing.assert_close(saved[f"model.{name}"], weight.float(), rtol=0, atol=1e-5)
    assert pretrained.load_config(str(out)).dtype == torch.float32
    tokenizer = pretrained.load_tokenizer(str(out))
    assert tokenizer("a b").input_ids == opt_tokenizer("a b").input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")

    torch.save(
        {**weights, "decoder.layers.7.fc2.bias": torch.ones(32)}, folder / "pytorch_model.bin"
    )
    done = run_program("main.py", *words, *cache, *steps, "--overwrite_output_dir")
    assert done.returncode == 2
    assert "1 weights are left over (decoder.layers.7.fc2.bias)" in done.stderr
