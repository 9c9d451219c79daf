"""A saved folder has the names that Transformers 4 reads, and means the same in Transformers 5."""

import json

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from utils.model.transformers_4 import spell_as_before

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
# A family, its rotary positions as Transformers 5 has them, and what 4 calls them.
SPELLINGS = {
    "plain": (
        "llama",
        {"rope_type": "default", "rope_theta": 1e5},
        {"rope_theta": 1e5},
    ),
    "llama 3": (
        "llama",
        {**LLAMA_3, "rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": LLAMA_3},
    ),
    "yarn": (
        "qwen2",
        {**YARN, "rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": YARN},
    ),
    "a part of each head": (
        "phi",
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
    ),
    "other names": (
        "gpt_neox",
        {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
    ),
    "two kinds of layers": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


def save(config, folder):
    config.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    spell_as_before(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", SPELLINGS)
def test_rotary_positions_have_both_names(tmp_path, name):
    family, newer, older = SPELLINGS[name]
    config = CONFIG_MAPPING[family](rope_parameters=newer)
    rope = json.loads(json.dumps(config.rope_parameters))
    written = save(config, tmp_path)
    assert {key: written[key] for key in older} == older
    assert written["rope_parameters"] == rope
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


def test_every_family_means_the_same(tmp_path):
    count = 0
    for family in AutoModelForSequenceClassification._model_mapping:
        config = family()
        before = config.to_dict()
        save(config, tmp_path)
        after = family.from_pretrained(tmp_path).to_dict()
        changed = {key for key in before if before[key] != after.get(key)}
        assert not {key for key in changed if "rope" in key or "rot" in key}, family
        count += "rope_parameters" in before
    assert count > 40


def test_the_tokenizer_is_one_that_both_know(tmp_path, opt_tokenizer):
    opt_tokenizer.add_special_tokens({"extra_special_tokens": ["<|a|>", "<é>"]})
    opt_tokenizer.save_pretrained(tmp_path)
    CONFIG_MAPPING["opt"]().save_pretrained(tmp_path)
    spell_as_before(tmp_path)
    entries = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert entries["model_input_names"] == ["input_ids", "attention_mask"]
    assert entries["additional_special_tokens"] == ["<|a|>", "<é>"]
    assert "extra_special_tokens" not in entries

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Why?<é> <|a|></s><pad>"
    assert loaded(text).data == opt_tokenizer(text).data
    assert loaded.get_vocab() == opt_tokenizer.get_vocab()
    assert set(loaded.all_special_tokens) == set(opt_tokenizer.all_special_tokens)
