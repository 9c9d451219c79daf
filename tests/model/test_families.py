"""Every family that Transformers scores text with: packed, padded, or refused at the start.

    python -m tests.model.test_families

prints the table of them. Scores and gradients are compared with those of Transformers' own forward
on one answer at a time.
"""

import copy
import tempfile

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
)

from utils.data.packing import PackedCollator, PaddedCollator
from utils.model import pretrained
from utils.model.layout_trial import choose_layout
from utils.model.positions import fix_positions
from utils.model.reward_model import RewardModel, check_head
from utils.model.shared_prefix import SHARED_PREFIX
from utils.model.small_model import shrink, small_model
from utils.settings import InputError

PACKED = [
    *("arcee", "axk1", "cohere_compass_text", "deepseek_v2", "deepseek_v3", "diffllama"),
    *("exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt-sw3", "gpt2"),
    *("gpt_bigcode", "gpt_neox", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe"),
    *("llama", "minicpm3", "ministral", "ministral3", "mistral", "mistral4", "mixtral", "olmo"),
    *("olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "seed_oss", "smollm3", "starcoder2"),
]
PADDED = [
    *("biogpt", "bloom", "falcon", "gemma2", "gpt_neo", "gpt_oss", "gptj", "jamba", "minimax"),
    *("mpt", "nemotron", "openai-gpt", "phimoe", "qwen3_5_text", "qwen3_next"),
    *("stablelm", "zamba", "zamba2"),
]

COMPOSED = ["gemma3", "modernvbert", "qwen3_5", "t5gemma", "t5gemma2", "ultravbert"]
NO_HEAD = sorted(set(FAMILIES) - {*PACKED, *PADDED, *COMPOSED, "axk2", "doge", "layoutlmv2"})
REFUSED = {
    **dict.fromkeys(("axk2", "doge"), "can depend on what else is in the batch"),
    "layoutlmv2": "config.json",  # it needs detectron2
}

# What checkpoints say and the defaults of Transformers do not.
LAYERS = ["full_attention", "sliding_attention"]
GIVEN = {
    "cohere_compass_text": {
        "layer_types": LAYERS * 20,
        "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": None},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "ministral": {"head_dim": 64},
    "nemotron": {"num_key_value_heads": 8},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}
WINDOW = {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1}


def make_config(family):
    """A large config, with a window where the family has one."""
    given = GIVEN.get(family, {})
    config = AutoConfig.for_model(family, **given)
    if getattr(config, "sliding_window", 0) is None:
        config = AutoConfig.for_model(family, **given, **WINDOW)
    pretrained.set_dropout(config, 0.0)
    return config


def start(config, folder):
    """The layout that both programs choose when they start."""
    config.save_pretrained(folder)
    config = pretrained.load_config(str(folder))
    fix_positions(config, 64)
    check_head(str(folder), pretrained.empty_model(config))
    return choose_layout(config, None)


def make_rows(end):
    """Comparisons of two and three answers, shorter and longer than the window of 6."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for prompt, *lengths in ((3, 2, 1), (16, 5, 1, 11), (1, 20, 7)):
        ids = [torch.randint(20, 60, (n,), generator=draw).tolist() for n in (prompt, *lengths)]
        sequences = [ids[0] + [10 + i] + answer + [end] for i, answer in enumerate(ids[1:])]
        answers = range(len(sequences))
        rows.append(
            {"input_ids": sequences, "shared": prompt, "answers": answers, "ranks": answers}
        )
    return rows


def one_at_a_time(model, rows):
    """Scores from Transformers' forward on each answer, without any mask."""
    scores = []
    for ids in (torch.tensor([ids]) for row in rows for ids in row["input_ids"]):
        scores.append(model.model.score(model.backbone(ids).last_hidden_state[0, -1])[0])
    return torch.stack(scores)


def gradient(model, scores):
    """That of a sum with weights of its own for each score, as one vector."""
    loss = (scores * torch.linspace(-1, 1.5, len(scores))).sum()
    parts = torch.autograd.grad(
        loss, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])


def check_layout(config, layout):
    """Scores and gradients of a layout are those of one answer at a time, to 1e-5."""
    plain = RewardModel(small_model(copy.deepcopy(config)))
    text = plain.model.config.get_text_config()
    rows = make_rows(getattr(text, "eos_token_id", None) or 0)
    collate, model = PaddedCollator(text.pad_token_id), plain
    if layout == "packed":
        collate = PackedCollator(text.pad_token_id)
        model = RewardModel(small_model(config, attn_implementation=SHARED_PREFIX))
    plain.train()
    model.train()
    expected, scores = one_at_a_time(plain, rows), model(collate(rows, [1.0] * len(rows)))
    assert (scores - expected).abs().max() <= 1e-5 * expected.norm()
    ours, theirs = gradient(model, scores), gradient(plain, expected)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("family", PACKED)
def test_packed_families_score_as_one_at_a_time(family, tmp_path):
    config = make_config(family)
    assert start(shrink(config), tmp_path) == choose_layout(config, None) == ("packed", [])
    for layout in ("packed", "padded"):
        check_layout(config, layout)


@pytest.mark.parametrize("family", PADDED)
def test_padded_families_score_as_one_at_a_time(family, tmp_path):
    config = make_config(family)
    layout, (note,) = start(shrink(config), tmp_path)
    assert layout == "padded" and note.startswith("batches are padded: ")
    check_layout(config, "padded")


@pytest.mark.parametrize("family", NO_HEAD)
def test_families_without_a_head_for_one_token_are_refused(family, tmp_path):
    with pytest.raises(InputError, match="no linear head `score`"):
        start(make_config(family), tmp_path)


@pytest.mark.parametrize("family", COMPOSED)
def test_families_of_several_models_are_refused(family, tmp_path):
    with pytest.raises(InputError, match="is composed of several models"):
        start(make_config(family), tmp_path)


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_are_refused_with_the_reason(family, tmp_path):
    with pytest.raises(InputError, match=REFUSED[family]):
        start(make_config(family), tmp_path)


@pytest.mark.parametrize("family", ["canine", "fnet", "xlnet"])
def test_encoders_that_see_padding_would_be_refused_for_that(family):
    """Who sees neighbours is found, whatever its head: a checkpoint's own code is tried, too."""
    with pytest.raises(InputError, match="depend on what else is in the batch"):
        choose_layout(make_config(family), None)


def test_a_config_that_makes_no_model_is_refused(tmp_path):
    config = AutoConfig.for_model("cohere_compass_text", num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="KeyError|full_attention"):
        pretrained.empty_model(pretrained.load_config(str(tmp_path)))


@pytest.mark.parametrize(
    ("family", "given", "reason"),
    [
        ("phimoe", {"sliding_window": 100}, "in packed rows phimoe would give other scores"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attends to later tokens"),
        ("falcon", {"alibi": True}, "does not let its attention be exchanged"),
    ],
)
def test_what_packed_rows_cannot_do_is_found_by_trying(family, given, reason):
    config = AutoConfig.for_model(family, **given)
    layout, (note,) = choose_layout(config, None)
    assert layout == "padded" and reason in note
    with pytest.raises(InputError, match="give --batch_layout padded"):
        choose_layout(config, "packed")


def test_windows_that_no_row_reaches_make_no_difference():
    config = AutoConfig.for_model("phimoe", sliding_window=100)
    assert choose_layout(config, None, max_seq_len=101)[0] == "padded"
    assert choose_layout(config, None, max_seq_len=100) == ("packed", [])


@pytest.mark.parametrize(("family", "name"), [("axk2", "index_topk"), ("doge", "keep_window_size")])
def test_rows_that_are_no_longer_than_the_keys_that_a_token_picks_are_scored(family, name):
    config = AutoConfig.for_model(family, **{name: 100})
    with pytest.raises(InputError, match="give --max_seq_len 100 at most"):
        choose_layout(config, None, max_seq_len=101)
    assert choose_layout(config, None, max_seq_len=100)[0] == "padded"
    check_layout(config, "padded")


def test_trying_leaves_config_and_random_numbers_as_they_were():
    config = make_config("qwen2")
    before, state = copy.deepcopy(config), torch.get_rng_state()
    choose_layout(config, None)
    assert config.to_dict() == before.to_dict()
    assert torch.equal(torch.get_rng_state(), state)
    small = shrink(config)
    assert small.layer_types == ["full_attention"] + ["sliding_attention"] * 2
    assert small.sliding_window == 6


def print_table():
    """All families in Markdown, with what both programs say of them when they start."""
    torch.set_num_threads(1)
    print("| family | layout | reason |\n|---|---|---|")
    for family in sorted(FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                layout, notes = start(make_config(family), folder)
                reason = " ".join(note.partition(": ")[2] for note in notes)
            except InputError as error:
                layout, reason = "refused", str(error).removeprefix(f"{folder}: ")
        print(f"| {family} | {layout} | {reason} |", flush=True)


if __name__ == "__main__":
    print_table()
