"""The memory that the scripts' headers name, against the estimate for the real models' shapes."""

import re

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.conftest import ROOT
from utils.estimates import GIB, estimate_needs
from utils.model import pretrained
from utils.model.lora import add_lora
from utils.model.reward_model import RewardModel

SCRIPTS = sorted((ROOT / "training_scripts").rglob("run_*.sh"))
SCRIPTS = [path for path in SCRIPTS if "\ntrain " in path.read_text()]
GPUS = {"single_gpu": 1, "single_node": 8, "multi_node": 16}


def opt(width, layers, heads, embeddings=None):
    return CONFIG_MAPPING["opt"](
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        word_embed_proj_dim=embeddings or width,
    )


def bloom(width, layers, heads):
    return CONFIG_MAPPING["bloom"](hidden_size=width, n_layer=layers, n_head=heads)


def decoder(family, vocabulary, width, inner, layers, heads, keys=None):
    return CONFIG_MAPPING[family](
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **({"num_key_value_heads": keys} if keys else {}),
    )


# What counts for the number of weights, as the models' configurations give it.
SHAPES = {
    "opt-125m": opt(768, 12, 12),
    "opt-350m": opt(1024, 24, 16, embeddings=512),
    "opt-1.3b": opt(2048, 24, 32),
    "opt-2.7b": opt(2560, 32, 32),
    "opt-6.7b": opt(4096, 32, 32),
    "opt-13b": opt(5120, 40, 40),
    "Llama-2-7b-hf": decoder("llama", 32000, 4096, 11008, 32, 32),
    "Llama-3.1-8B-Instruct": decoder("llama", 128256, 4096, 14336, 32, 32, keys=8),
    "Qwen2.5-0.5B-Instruct": decoder("qwen2", 151936, 896, 4864, 24, 14, keys=2),
    "Qwen2.5-7B-Instruct": decoder("qwen2", 152064, 3584, 18944, 28, 28, keys=4),
    "SmolLM2-135M-Instruct": decoder("llama", 49152, 576, 1536, 30, 9, keys=3),
    "SmolLM2-1.7B-Instruct": decoder("llama", 49152, 2048, 8192, 24, 32),
    "pythia-160m-deduped": decoder("gpt_neox", 50304, 768, 3072, 12, 12),
    "pythia-1b-deduped": decoder("gpt_neox", 50304, 2048, 8192, 16, 8),
    "pythia-6.9b-deduped": decoder("gpt_neox", 50432, 4096, 16384, 32, 32),
    "bloom-560m": bloom(1024, 24, 16),
    "bloom-7b1": bloom(4096, 30, 32),
}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: "-".join(path.parts[-3:]))
def test_memory_in_the_header_is_what_the_estimate_says(path):
    """Of the real model's shape on the GPUs of the header, without its weights."""
    header, script = path.read_text().split("\nset -")
    text = " ".join(line.removeprefix("#").strip() for line in header.splitlines())
    gpus = GPUS[path.parent.name]
    config = SHAPES[re.search(r"train \S+ \S+/(\S+) ", script).group(1)]
    model = RewardModel(pretrained.empty_model(config))
    weights = sum(p.numel() for p in model.parameters())
    if "--lora_dim" in script:
        add_lora(model, int(re.search(r"--lora_dim (\d+)", script).group(1)), 1, "layers.", True)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert f"frozen weights take {2 * weights / GIB:.1f} GiB in 16 bits" in text
        if gpus == 1:
            assert f"{20 * trained / GIB:.1f} GiB ({trained / 1e6:.0f} million, 20" in text
        return
    largest = max(sum(p.numel() for p in m.parameters(False)) for m in model.modules())
    needs = estimate_needs(weights, largest, min(gpus, 8), max(1, gpus // 8))
    needs = {(need.stage, need.offload): need for need in needs}
    pattern = r"--estimate_memory: (\S+) GiB a GPU(?: and (\S+) GiB of memory)? in stage (\d)"
    device, memory, stage = re.search(pattern, text).groups()
    need = needs[int(stage), memory is not None]
    assert stage == re.search(r"read_arguments \S+ (\d)", script).group(1)
    assert (memory is not None) == ("--offload" in script)
    assert device == f"{need.device / GIB:.1f}"
    assert memory in (None, f"{need.host / GIB:.1f}")
    for memory in re.findall(r"add --offload \((\d+) GiB of memory\)", text):
        assert memory == f"{needs[int(stage), True].host / GIB:.0f}"
    for device in re.findall(r"Without --offload (\S+) GiB", text):
        assert device == f"{needs[int(stage), False].device / GIB:.1f}"
