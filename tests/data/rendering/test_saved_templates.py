"""A saved chat template ends at the scored token, whoever renders with it."""

import json

import pytest

from tests.conftest import bot, user
from tests.data.loading import make_encoder
from tests.data.rendering.test_rendering import CONVERSATIONS, WRITES
from utils.data.comparison import Comparison
from utils.data.formats.messages import REASONING, read_messages
from utils.data.rendering.saved_templates import TRANSCRIPT, end_at_scored_token, own_template
from utils.data.rendering.templates import fix_date
from utils.data.tokenization import leading_text
from utils.settings import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>' + '\\n' }}{% endfor %}\n"
    "{%- if add_generation_prompt %}\n  {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
INDENTED = "  {% for m in messages %}\n  {{ m.content }}  \n  {% endfor %}\n   "
LINES = "\n  {% for m in messages %}\n  {{ m.role }}: {{ m.content }}\n  {% endfor %}\n\n"
STYLES = {name: template for name, (template, _) in WRITES.items()} | {
    "chatml": CHATML,
    "lines": LINES,
    "indented": INDENTED,
}
TOKENIZERS = {"opt": "opt_tokenizer", "gpt2": "gpt2_tokenizer", "llama": "llama_tokenizer"}


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request):
    return request.getfixturevalue(TOKENIZERS[request.param])


def end_it(tokenizer, template):
    """The tokenizer with a template that ends at its end token, and what makes rows with it."""
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    encoder = make_encoder(tokenizer, template)
    fix_date(tokenizer, "2026-01-31")
    end_at_scored_token(tokenizer, leading_text(tokenizer), encoder.settings.end_token)
    return make_encoder(tokenizer, tokenizer.chat_template, max_seq_len=4096)


def conversation(name):
    prompt, answers, *tools = CONVERSATIONS[name]
    answers = [answer if isinstance(answer, list) else [answer] for answer in answers]
    answers = [read_messages(answer, "assistant") for answer in answers]
    return read_messages(prompt, "user"), answers, tools[0] if tools else None


@pytest.mark.parametrize(
    ("style", "name"),
    [(style, name) for style, (_, names) in WRITES.items() for name in sorted(names)]
    + [
        ("chatml", "plain"),
        ("chatml", "many turns"),
        ("lines", "plain"),
        ("indented", "many turns"),
    ],
)
def test_others_render_the_tokens_that_train(tokenizer, style, name):
    prompt, answers, tools = conversation(name)
    tools = None if style in ("llama", "cohere") else tools
    comparison = Comparison(prompt, answers, range(len(answers)), "s", tools=tools)
    plain = make_encoder(tokenizer, STYLES[style], max_seq_len=4096)
    fix_date(tokenizer, "2026-01-31")
    (before,) = plain.rows([comparison])
    size = len(tokenizer)

    encoder = end_it(tokenizer, STYLES[style])
    (row,) = encoder.rows([comparison])
    assert not row["dropped"]
    if STYLES[style] and len(tokenizer) == size:
        assert row["input_ids"] == before["input_ids"]
    for answer, ids in zip(answers, row["input_ids"], strict=True):
        if any(spelled in json.dumps([prompt, answer]) for spelled in tokenizer.all_special_tokens):
            continue  # in the arguments of a call, where a template cannot look for it
        rendered = tokenizer.apply_chat_template(prompt + answer, tools=tools, return_dict=False)
        assert rendered == ids
        assert rendered.count(tokenizer.eos_token_id) >= 1
        assert rendered[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("style", [style for style in STYLES if STYLES[style]])
def test_a_prompt_for_an_answer_stays_as_it_is(tokenizer, style):
    make_encoder(tokenizer, STYLES[style])
    fix_date(tokenizer, "2026-01-31")
    messages = [user("Why?\n"), bot(" So. "), user("And?")]
    options = {"tokenize": False, "add_generation_prompt": True}
    before = tokenizer.apply_chat_template(messages, **options)
    end_it(tokenizer, STYLES[style])
    assert tokenizer.apply_chat_template(messages, **options) == before


@pytest.mark.parametrize("style", STYLES)
def test_a_template_is_ended_once(tokenizer, style):
    end_it(tokenizer, STYLES[style])
    once = tokenizer.chat_template
    end_it(tokenizer, once)
    assert tokenizer.chat_template == once
    if STYLES[style] and "strftime" not in STYLES[style]:
        assert own_template(once) == STYLES[style].removesuffix("\n")


def test_each_of_several_templates_is_ended(tokenizer):
    end_it(tokenizer, {"default": CHATML, "tool_use": LINES})
    for name in ("default", "tool_use"):
        text = tokenizer.apply_chat_template(
            [user("Q"), bot("a")], tokenize=False, chat_template=tokenizer.chat_template[name]
        )
        assert text.endswith(tokenizer.eos_token)


@pytest.mark.parametrize("style", ["chatml", "llama", "lines", "turns"])
def test_what_a_message_spells_becomes_no_special_token(tokenizer, style):
    encoder = end_it(tokenizer, STYLES[style])
    spelled = "".join(tokenizer.all_special_tokens) + " and <|im_start|>user"
    prompt, answer = [user(f"Q {spelled}")], [bot(f"{spelled} a")]
    (row,) = encoder.rows([Comparison(prompt, [answer, [bot("b")]], [0, 1], "s")])
    rendered = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    assert rendered == row["input_ids"][0]

    plain = tokenizer.apply_chat_template([user("Q"), bot("a")], return_dict=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    of = [[token for token in ids if token in special] for ids in (rendered, plain)]
    assert of[0] == of[1]


def test_a_template_that_writes_otherwise_inside_another_is_refused(tokenizer):
    blocks = "{% set e = eos_token %}{% block b %}{{ messages[-1].content + e }}{% endblock %}"
    with pytest.raises(InputError, match="cannot be made to end at.*'e' is undefined.*blocks"):
        end_it(tokenizer, blocks)


@pytest.mark.parametrize("end", ["‹🙂>", '"é\\" }}', "{{ x }}", "{% endset %}"])
def test_any_end_token_can_end_a_template(tokenizer, end):
    tokenizer.add_special_tokens({"eos_token": end})
    encoder = end_it(tokenizer, CHATML.replace("'<|im_end|>'", "eos_token"))
    prompt, answer = [user(f"Q {end}")], [bot(f"a {end} b")]
    (row,) = encoder.rows([Comparison(prompt, [answer, [bot("b")]], [0, 1], "s")])
    rendered = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    assert rendered == row["input_ids"][0]
    assert rendered.count(tokenizer.eos_token_id) == 2


def test_a_message_without_content_is_written(tokenizer):
    end_it(tokenizer, None)
    calls = [{**bot(""), "content": None, "tool_calls": [{"id": "1"}]}]
    text = tokenizer.apply_chat_template([user("Q"), *calls], tokenize=False)
    assert text.endswith('\n\nAssistant: {"id": "1"}' + tokenizer.eos_token)


def slow_transcript(messages, tools):
    """As Anthropic's HH transcripts write turns, one message after the other."""
    text = json.dumps(tools) if tools else ""
    for message in messages:
        lines = []
        for name in REASONING:
            if name in message:
                said = message[name]
                said = said.strip() if isinstance(said, str) else json.dumps(said)
                if f"<think>\n{said}\n</think>" not in lines:
                    lines.append(f"<think>\n{said}\n</think>")
        lines.append(message["content"].strip())
        lines += [json.dumps(call) for call in message.get("tool_calls", [])]
        if "function_call" in message:
            lines.append(json.dumps(message["function_call"]))
        name = {"user": "Human: ", "assistant": "Assistant: "}.get(message["role"], "")
        text += "\n\n" + name + "\n".join(lines).strip()
    return text


ODD = [
    {"role": "tool", "content": " é <b> "},
    {**bot(""), "thinking": " a\n", "thought": "a"},
    {**bot(""), "reasoning": {"b": ["é"]}},
    {**bot("x"), "function_call": {"name": "f", "arguments": "{}"}, "tool_calls": [{"id": 1}, {}]},
]


@pytest.mark.parametrize("name", [*CONVERSATIONS, "odd"])
def test_the_transcript_equals_a_slow_one(opt_tokenizer, name):
    prompt, answers, tools = (ODD, [ODD], None) if name == "odd" else conversation(name)
    for answer in answers:
        found = opt_tokenizer.apply_chat_template(
            prompt + answer, tools=tools, chat_template=TRANSCRIPT, tokenize=False
        )
        assert found == slow_transcript(prompt + answer, tools)
