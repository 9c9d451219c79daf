"""Whole texts against the comparisons that they render, and against a plain tokenizer."""

import pytest

from tests.conftest import bot, train_tokenizer, user
from tests.data.chat_styles import CHATML
from utils.data.comparison import Comparison
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.data.whole_texts import WholeTextTokenizer

PROMPT = "Human: What is a lighthouse? Assistant:"
ANSWERS = [" A tower.", " It shows ships where the coast is. \n", "I'm not sure."]
MESSAGES = [user("What is a lighthouse?"), bot("Why?"), user("So.")]

WITH_START = "{{ bos_token }}" + CHATML
# As Gemma's: it has no place for a system message.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
)
SPECIALS = ["<unk>", "<pad>", "<s>", "<|im_start|>", "<|im_end|>", "<end>"]


def make_encoder(tokenizer, **settings):
    settings = {"max_seq_len": 128, **settings}
    as_written = settings.get("answer_end") == "as_written"
    end, _ = prepare_tokenizer(tokenizer, False, as_written=as_written)
    return ComparisonTokenizer(tokenizer, TextSettings(end, **settings))


def chat_encoder(template, end="<|im_end|>", leading=None, **settings):
    tokens = {"bos_token": "<s>", "eos_token": end, "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = train_tokenizer(SPECIALS, leading=leading, **tokens)
    tokenizer.chat_template = template
    return make_encoder(tokenizer, **settings)


def comparison_row(encoder, prompt, answers):
    (row,) = encoder.rows([Comparison(prompt, answers, [0] * len(answers), "")])
    return row


def same_rows(row, other):
    for name in ("input_ids", "answer_starts", "answers", "shared", "tokens", "length", "cut"):
        assert row[name] == other[name], name


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("spelled", [True, False])
def test_texts(request, family, spelled):
    """With and without the special tokens around them that the tokenizer would add."""
    encoder = make_encoder(request.getfixturevalue(f"{family}_tokenizer"))
    whole = WholeTextTokenizer(encoder)
    start = whole.leading_text if spelled else ""
    end = encoder.settings.end_token if spelled else ""
    answers = [answer if answer.startswith(" ") else " " + answer for answer in ANSWERS]
    texts = [start + PROMPT + answer + end for answer in answers]
    expected = comparison_row(encoder, PROMPT, answers)

    same_rows(whole.row(texts, start + PROMPT), expected)
    assert [whole.is_ended(text) for text in texts] == [spelled] * 3
    for text, ids in zip(texts, expected["input_ids"], strict=True):
        assert whole.row([text])["input_ids"] == [ids]
        if not spelled:
            plain = encoder.tokenizer(text).input_ids
            assert ids == [
                *plain,
                encoder.tokenizer.convert_tokens_to_ids(whole.settings.end_token),
            ]


@pytest.mark.parametrize("template", [CHATML, WITH_START, NO_SYSTEM])
@pytest.mark.parametrize("end", ["<|im_end|>", "<end>"])
@pytest.mark.parametrize("leading", [None, "<s>"])
def test_conversations(template, end, leading):
    """As a policy has them: the template's prompt and its own tokens, up to the end of its turn."""
    encoder = chat_encoder(template, end, leading)
    whole = WholeTextTokenizer(encoder)
    options = {"tokenize": False, "add_generation_prompt": True}
    prompt = encoder.tokenizer.apply_chat_template(MESSAGES, **options)
    expected = comparison_row(encoder, MESSAGES, ANSWERS)

    same_rows(whole.row([f"{prompt}{a}<|im_end|>" for a in ANSWERS], prompt), expected)
    same_rows(whole.row([f"{prompt}{a}<|im_end|>\n" for a in ANSWERS], prompt), expected)
    if end == "<end>":
        same_rows(whole.row([f"{prompt}{a}<|im_end|><end>" for a in ANSWERS], prompt), expected)
    else:  # the policy was cut before its end
        text = prompt + ANSWERS[0]
        assert not whole.is_ended(text)
        assert whole.row([text], prompt)["input_ids"] == expected["input_ids"][:1]

    rendered = encoder.tokenizer.apply_chat_template([*MESSAGES, bot("A tower.")], tokenize=False)
    plain = encoder.tokenizer(rendered, add_special_tokens=False).input_ids
    last = plain.index(encoder.tokenizer.convert_tokens_to_ids("<|im_end|>"), -4)
    (ids,) = whole.row([rendered])["input_ids"]
    assert ids[: last + 1] == plain[: last + 1]


def test_an_answer_that_ends_at_once_is_scored():
    encoder = chat_encoder(CHATML)
    prompt = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    row = WholeTextTokenizer(encoder).row([prompt + "<|im_end|>"], prompt)
    expected = encoder.tokenizer(prompt + "<|im_end|>", add_special_tokens=False).input_ids
    assert row["input_ids"] == [expected]


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("start", ["", "<s>"])
def test_models_that_score_what_is_written(template, start):
    """Nothing is cut or appended, and a leading token that is there is not doubled."""
    encoder = chat_encoder(template, leading="<s>", answer_end="as_written")
    whole = WholeTextTokenizer(encoder)
    text = f"{PROMPT} A tower. <|im_end|> \n"
    (ids,) = whole.row([start + text])["input_ids"]
    assert ids == encoder.tokenizer(text).input_ids
    assert whole.is_ended(text)
    if template:
        text = encoder.tokenizer.apply_chat_template([*MESSAGES, bot("A tower.")], tokenize=False)
        (ids,) = whole.row([text])["input_ids"]
        assert ids == comparison_row(encoder, MESSAGES, ["A tower."])["input_ids"][0]


def test_only_a_prompt_that_is_known_is_cut(opt_tokenizer):
    encoder = make_encoder(opt_tokenizer, max_seq_len=24)
    whole = WholeTextTokenizer(encoder)
    prompt = "What is a lighthouse? " * 5 + "Assistant:"
    answers = [" A tower.", " Bread.", " word" * 40]
    row = whole.row([prompt + answer for answer in answers], prompt)
    expected = comparison_row(encoder, prompt, answers)
    same_rows(row, expected)
    assert row["answers"] == [0, 1]
    assert row["cut"] > 0
    assert whole.row([prompt + answers[0]])["answers"] == []
