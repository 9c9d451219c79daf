"""What Transformers 4 reads of a saved model and Transformers 5 no longer writes."""

import json
from collections.abc import Callable
from pathlib import Path

# The names that GPT-NeoX has for what others call rope_theta and partial_rotary_factor.
_GPT_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_PLAIN = ("rope_theta", "partial_rotary_factor")


def spell_as_before(folder: Path) -> None:
    """Write the older names beside the newer ones in config.json and tokenizer_config.json.

    Transformers 4 passes over names that it does not know: it would turn positions at a base of
    10,000, whatever the model's is.
    """
    _change(folder / "config.json", _with_older_rope)
    _change(folder / "tokenizer_config.json", _with_older_class)


def _with_older_rope(config: dict) -> dict:
    """A config with what the older names of its rotary positions are."""
    rope = config.get("rope_parameters") or {}
    older = {}
    if "full_attention" in rope:  # layers of two kinds, as in Gemma 3
        if sliding := rope.get("sliding_attention"):
            older["rope_local_base_freq"] = sliding["rope_theta"]
        rope = rope["full_attention"]

    older |= {name: rope[name] for name in _PLAIN if name in rope}
    if config["model_type"] == "gpt_neox":
        older = {_GPT_NEOX[name]: value for name, value in older.items()}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: rope[name] for name in rope if name not in _PLAIN}
    return older | config


def _with_older_class(tokenizer: dict) -> dict:
    """A tokenizer's config with what the older names of its class and of its tokens are."""
    older = dict(tokenizer)
    if older.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
        # That class would make token_type_ids, too, which decoders refuse.
        older.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(older.get("extra_special_tokens"), list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    return older


def _change(file: Path, changed: Callable[[dict], dict]) -> None:
    entries = json.loads(file.read_text(encoding="utf-8"))
    text = json.dumps(changed(entries), indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
