"""Positions that depended on the longest row of a batch no longer do."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import rw_eval
from tests.conftest import (
    ROOT,
    make_pairs,
    run_command,
    save_language_model,
    train_opt_tokenizer,
    write_jsonl,
)
from tests.model.test_families import PACKED, PADDED, make_config
from utils.evaluation.settings import parse_evaluation_arguments
from utils.model.layout_trial import choose_layout
from utils.model.positions import fix_positions, rope_parameters
from utils.settings import InputError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 8.0, 30.0]}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 8, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
TYPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}
KINDS = {
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "partial": ("phi3", {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 1.0}}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 8}),
    "of layers": (
        "olmo3",
        {
            "rope_parameters": {**TYPES, "full_attention": DYNAMIC},
            "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 8,
        },
    ),
}
ROW = torch.arange(20)[None] + 10


def rope_config(kind):
    family, given = copy.deepcopy(KINDS[kind])
    return AutoConfig.for_model(family, **{**SIZES, "max_position_embeddings": 64, **given})


def hidden(config, ids):
    """What a model with random weights makes of the last token of a row."""
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        return model.base_model(ids).last_hidden_state[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_get_the_positions_of_the_longest_one(kind):
    """As Transformers computes them for a row of that length, and the same for a row before."""
    config = rope_config(kind)
    expected = hidden(copy.deepcopy(config), ROW)
    assert len(fix_positions(config, ROW.shape[1])) == 1
    assert fix_positions(config, 7) == []  # there is nothing left to choose
    torch.testing.assert_close(hidden(config, ROW), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_short_rows_keep_the_positions_that_they_had(kind):
    config = rope_config(kind)
    expected = hidden(copy.deepcopy(config), ROW[:, :6])
    fix_positions(config, 8)
    torch.testing.assert_close(hidden(config, ROW[:, :6]), expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_depend_on_neighbours_are_refused(kind):
    config = rope_config(kind)
    with pytest.raises(InputError, match="depend on what else is in the batch"):
        choose_layout(config, None)
    fix_positions(config, 32)
    assert choose_layout(config, None) == ("packed", [])


def test_notes_say_what_was_chosen():
    config = rope_config("longrope")
    (short,) = fix_positions(copy.deepcopy(config), 8)
    (long,) = fix_positions(config, 9)
    assert "take the short factors, as --max_seq_len 8 is not more than the 8" in short
    assert "take the long factors, as --max_seq_len 9 is more than the 8" in long
    (note,) = fix_positions(rope_config("dynamic"), 9)
    assert "dynamic" in note and "--max_seq_len 9" in note


def test_the_base_of_dynamic_positions_is_that_of_transformers():
    config = rope_config("dynamic")
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](copy.deepcopy(config), seq_len=100)
    fix_positions(config, 100)
    exponents = torch.arange(0, 8, 2) / 8
    found = config.rope_parameters["rope_theta"] ** -exponents
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)


def test_scaling_that_never_changes_is_left_alone():
    for parameters in (
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    ):
        config = AutoConfig.for_model("llama", **SIZES, rope_parameters=parameters)
        before = config.to_dict()
        assert fix_positions(config, 100) == [] and config.to_dict() == before
    # HunYuan calls a scaling dynamic whose base does not grow.
    alpha = {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0, "rope_theta": 10000.0}
    config = AutoConfig.for_model(
        "hunyuan_v1_dense", **SIZES, head_dim=8, rope_parameters=alpha, max_position_embeddings=8
    )
    before = config.to_dict()
    assert fix_positions(config, 100) == [] and config.to_dict() == before
    assert choose_layout(config, None) == ("packed", [])


def with_scaling(family, kind):
    """A config whose layers all have a scaling."""
    config = make_config(family)
    text = config.get_text_config()
    if getattr(text, "head_dim", 64) is None:
        text.head_dim = 64
    for part, rope in rope_parameters(text):
        rope.pop("type", None)
        rope |= copy.deepcopy({"longrope": LONGROPE, "dynamic": DYNAMIC}[kind])
        if family == "phimoe" and kind == "longrope":
            rope |= {"short_mscale": 1.1, "long_mscale": 1.4}
        part.max_position_embeddings = 64 if kind == "longrope" else 8
    return config


ROTARY = [f for f in (*PACKED, *PADDED) if any(rope_parameters(make_config(f).get_text_config()))]
SCALED = [(family, kind) for family in ROTARY for kind in ("longrope", "dynamic")]
SCALED.remove(("mistral4", "dynamic"))  # its positions without scaling do not fit its heads


@pytest.mark.parametrize(("family", "kind"), SCALED)
def test_every_family_with_scaled_positions_scores_as_one_at_a_time(family, kind):
    config = with_scaling(family, kind)
    fix_positions(config, 64)
    assert choose_layout(config, None)[0] == ("packed" if family in PACKED else "padded")


def test_a_run_saves_its_choice_and_every_batch_size_gives_its_scores(tmp_path, capsys):
    tokenizer = train_opt_tokenizer()
    sizes = {name: SIZES[name] for name in list(SIZES)[1:6]}
    rope = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
    base = save_language_model(
        tmp_path / "base", tokenizer, "phi3", **sizes, max_position_embeddings=256, **rope
    )
    pairs = [
        {**pair, "prompt": pair["prompt"] * (1 + i % 2 * 4)}
        for i, pair in enumerate(make_pairs(24))
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    done = run_command(
        *("python", ROOT / "main.py", "--model_name_or_path", base, "--data_path", data),
        *("--max_seq_len", 128, "--max_steps", 2, "--output_dir", tmp_path / "model"),
        *("--data_output_path", tmp_path / "cache", "--learning_rate", 1e-3),
    )
    assert done.returncode == 0, done.stderr
    note = "all rows take the long factors, as --max_seq_len 128 is more than the 32"
    assert done.stdout.count(note) == 1
    rope = json.loads((tmp_path / "model" / "config.json").read_text())["rope_parameters"]
    assert rope["short_factor"] == rope["long_factor"] == FACTORS["long_factor"]

    # As somebody else would have saved it: rw_eval.py makes the choice.
    config = tmp_path / "model" / "config.json"
    values = json.loads(config.read_text())
    for name in ("rope_parameters", "rope_scaling"):
        values[name] |= FACTORS
    config.write_text(json.dumps(values))
    scores = []
    for size in ("1", "24"):
        out = tmp_path / f"scores{size}"
        words = ("--model_name_or_path", tmp_path / "model", "--data_path", data)
        words += ("--output_dir", out, "--batch_size", size)
        rw_eval.main(parse_evaluation_arguments([str(word) for word in words]))
        assert capsys.readouterr().out.count(note) == 1
        lines = map(json.loads, (out / "scores.jsonl").read_text().splitlines())
        scores.append(torch.tensor([line["scores"] for line in lines]))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
