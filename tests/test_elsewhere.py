"""What other programs score with a saved folder, restated where they are too large to install.

benchmarks/consumers.py asks the programs themselves.
"""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rw_eval
from tests.conftest import (
    bot,
    save_language_model,
    train_opt_tokenizer,
    train_tokenizer,
    user,
    write_jsonl,
)
from tests.data.chat_styles import CHATML
from utils.evaluation.settings import parse_evaluation_arguments
from utils.model import pretrained
from utils.settings import InputError
from utils.training.model import make_training_encoder
from utils.training.settings import parse_training_arguments

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] }}"
    "{{ '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}  # far from 10,000, that a loss of it shows
FAMILIES: dict[str, tuple[str, dict]] = {
    "opt": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": True}),
    "opt-350m": ("opt", {}),
    "llama": ("llama", {"rope_parameters": ROPE}),
    "qwen2": ("qwen2", SIZES | {"rope_parameters": ROPE}),
    "qwen3": ("qwen3", SIZES | {"rope_parameters": ROPE}),
    "gpt_neox": (
        "gpt_neox",
        SIZES | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
    ),
}
TEMPLATES = ("chatml", "llama 3", "none")

ROWS = [
    {"prompt": [user("Why? \n")], "responses": [" So it is. ", "No", "\n<|im_end|> </s> <s>"]},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, user("Is 2 even?"), bot("Yes")],
        "responses": [[bot("It is."), user("And 3?"), bot("No")], [bot("It is.")]],
    },
    {"prompt": [user("<|eot_id|> is a word. " * 3)], "responses": ["Bread\n\n", "Salt"]},
]


def make_tokenizer(template):
    if template == "none":
        return train_opt_tokenizer()
    if template == "chatml":  # as Qwen's: nothing before a text
        ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = train_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **ends)
        tokenizer.chat_template = CHATML
        return tokenizer
    special = ["<s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    ends = {"bos_token": "<s>", "eos_token": "<|eot_id|>"}
    tokenizer = train_tokenizer(special, leading="<s>", **ends)
    tokenizer.chat_template = LLAMA_3
    return tokenizer


def save(tmp_path, family, template, save_format="hf"):
    """A folder as a run saves it, with a head whose scores are far apart."""
    name, changes = FAMILIES[family]
    base = str(save_language_model(tmp_path / "base", make_tokenizer(template), name, **changes))
    words = ["--model_name_or_path", base, "--max_seq_len", "256", "--save_format", save_format]
    config = pretrained.load_config(base)
    args, encoder = make_training_encoder(parse_training_arguments(words), config)
    model, _ = pretrained.load_model(base, config, encoder.tokenizer, new_head=True)
    with torch.no_grad():
        model.model.score.weight.mul_(10)
    settings = {"end_token": encoder.settings.end_token, "max_seq_len": 256}
    weights, folder = model.model.state_dict(), str(tmp_path / save_format)
    pretrained.save_model(
        model, weights, encoder.tokenizer, settings, folder, save_format=save_format
    )
    return folder


def our_scores(folder, tmp_path, rows):
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["--model_name_or_path", folder, "--data_path", data, "--output_dir", tmp_path / "out"]
    rw_eval.main(parse_evaluation_arguments([*map(str, words), "--overwrite_output_dir"]))
    lines = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    scores = [score for line in lines for score in json.loads(line)["scores"]]
    assert torch.tensor(scores).std() > 0.1
    return pytest.approx(scores, rel=0, abs=1e-5)


def conversations():
    for row in ROWS:
        for answer in row["responses"]:
            yield row["prompt"] + (answer if isinstance(answer, list) else [bot(answer)])


def transformers_scores(folder, batch):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def openrlhf_scores(folder, batch):
    """Its get_llm_for_sequence_regression: the head's value of the last token that is attended."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    mask = batch["attention_mask"]
    with torch.no_grad():
        states = model.base_model(batch["input_ids"], attention_mask=mask).last_hidden_state
        values = torch.nn.functional.linear(states, model.score.weight)[:, :, 0]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return values[torch.arange(len(last)), last].tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_score_alike(tmp_path, family, template):
    folder = save(tmp_path, family, template)
    expected = our_scores(folder, tmp_path, ROWS)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations()]
    assert all(text.endswith(tokenizer.eos_token) for text in rendered)
    batch = tokenizer.apply_chat_template(
        list(conversations()), padding=True, return_tensors="pt", return_dict=True
    )
    batch.pop("token_type_ids", None)
    assert transformers_scores(folder, batch) == expected
    assert openrlhf_scores(folder, batch) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_folded_model_scores_alike(tmp_path, template):
    folder = save(tmp_path, "opt-350m", template, "folded")
    expected = our_scores(save(tmp_path, "opt-350m", template), tmp_path, ROWS)
    assert our_scores(folder, tmp_path, ROWS).expected == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_texts_score_alike(tmp_path, family, template):
    folder = save(tmp_path, family, template)
    rows = [
        {"prompt": "Why?", "responses": [" So.", " No, never."]},
        {"prompt": "A", "responses": ["\nB"]},
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["prompt"] + answer for row in rows for answer in row["responses"]]
    texts = [text + tokenizer.eos_token for text in texts]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    assert transformers_scores(folder, batch) == our_scores(folder, tmp_path, rows)


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("opt", [], "scores the token before it, not the end of the answer: give --add_eot_token"),
        ("gpt2", ["--add_eot_token"], "give --save_format hf, since --add_eot_token would add the"),
        ("opt", ["--add_eot_token"], None),
    ],
)
def test_deepspeed_chat_must_not_pad_with_what_is_scored(request, tmp_path, family, more, message):
    tokenizer = request.getfixturevalue(f"{family}_tokenizer")
    folder = str(save_language_model(tmp_path, tokenizer))
    words = ["--model_name_or_path", folder, "--save_format", "dschat", "--max_seq_len", "64"]
    args, config = parse_training_arguments([*words, *more]), pretrained.load_config(folder)
    if message is None:
        make_training_encoder(args, config)
        return
    with pytest.raises(InputError, match=message):
        make_training_encoder(args, config)
