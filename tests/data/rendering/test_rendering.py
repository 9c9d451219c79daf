"""What chat templates make of messages, and what they leave out."""

import json

import pytest

from tests.conftest import bot, user
from tests.data.chat_styles import (
    COHERE,
    DEEPSEEK,
    GEMMA,
    GRANITE,
    LLAMA,
    MISTRAL,
    PLAIN,
    QWEN,
    XML,
)
from tests.data.loading import make_encoder
from utils.data.comparison import Comparison
from utils.data.formats.messages import read_messages
from utils.data.token_rows import Reason

FUNCTION = {"name": "f", "description": "Says when.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {
    "time": 1690876800,
    "share": 0.5,
    "place": 'a "b"\n\\c é 😀',
    "deep": {"x": ["</s>", None, True]},
}


def call(arguments, name="f", **fields):
    """An answer that calls a function."""
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}, **fields}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def thinking(text, thought, name="reasoning_content"):
    return {**bot(text), name: thought}


def tokenize(tokenizer, template, prompt, *answers, tools=None):
    """The row of a comparison, and its texts."""
    encoder = make_encoder(tokenizer, template)
    answers = [answer if isinstance(answer, list) else [answer] for answer in answers]
    answers = [read_messages(answer, "assistant") for answer in answers]
    prompt = read_messages(prompt, "user")
    (row,) = encoder.rows([Comparison(prompt, answers, range(len(answers)), "s", tools=tools)])
    return row, [tokenizer.decode(ids) for ids in row["input_ids"]]


CONVERSATIONS = {
    "plain": ([user(" Why? \n")], [bot("\n So it is.  "), bot("<b> 'no' \\n & \"é\" </b>")], None),
    "system": ([{"role": "system", "content": "Be brief."}, user("Q")], [bot("a"), bot("b")], None),
    "many turns": ([user("Q"), bot("R"), user("Q")], [[bot("a"), user("b"), bot("c")], bot("d")]),
    "thoughts in content": ([user("Q")], [bot("<think>\nHm, so.\n</think>\n\nYes."), bot("No.")]),
    "thoughts": ([user("Q")], [thinking("Yes.", "I count.\n"), thinking("No.", "A guess.")]),
    "older name": ([user("Q")], [thinking("Yes.", "I count.", "thinking"), bot("No.")]),
    "plan": ([user("Q")], [{**call({"a": 1}), "tool_plan": "I call f."}, bot("No.")]),
    "call": ([user("Q")], [call(ARGUMENTS), call({**ARGUMENTS, "time": 2})], TOOLS),
    "call as text": ([user("Q")], [call(json.dumps(ARGUMENTS)), bot("No.")], TOOLS),
    "result": (
        [user("Q"), call({"a": 1}, id="1"), {"role": "tool", "content": '{"b": "é\n"}'}],
        [bot("It is é."), bot("No.")],
        TOOLS,
    ),
}
WRITES = {
    "llama": (LLAMA, {"plain", "system", "many turns", "thoughts in content", "result"}),
    "qwen": (QWEN, set(CONVERSATIONS) - {"plan"}),
    "deepseek": (DEEPSEEK, {"plain", "many turns"}),
    "mistral": (MISTRAL, {"plain", "system", "many turns", "thoughts in content", "call"}),
    "gemma": (GEMMA, {"plain", "many turns", "thoughts in content"}),
    "granite": (GRANITE, set(CONVERSATIONS) - {"plan", "thoughts", "older name"}),
    "cohere": (COHERE, {"plain", "system", "many turns", "thoughts in content", "plan"}),
    "xml": (XML, {"plain", "system", "many turns", "thoughts in content", "call", "result"}),
    "turns": (None, set(CONVERSATIONS)),
}


@pytest.mark.parametrize(
    ("style", "name"),
    [(style, name) for style, (_, names) in WRITES.items() for name in sorted(names)],
)
def test_a_template_that_writes_all_is_not_blamed(opt_tokenizer, style, name):
    prompt, answers, *tools = CONVERSATIONS[name]
    tools = tools[0] if tools and style not in ("llama", "cohere") else None
    row, _ = tokenize(opt_tokenizer, WRITES[style][0], prompt, *answers, tools=tools)
    assert (row["dropped"], row["problem"], row["unrendered"]) == ("", "", "")


CALL = call({"time": 2025})
# DeepSeek V3 adds arguments to a text, Qwen 3 Coder asks for the items of an object.
ADDED = PLAIN.replace(
    "{{ eos_token }}",
    "{% for call in m.tool_calls or [] %}{{ call.function.name + call.function.arguments }}"
    "{% endfor %}{{ eos_token }}",
)


@pytest.mark.parametrize("template", [ADDED, XML], ids=["text", "object"])
def test_arguments_are_given_to_a_template_as_it_takes_them(opt_tokenizer, template):
    found = []
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)):
        row, texts = tokenize(opt_tokenizer, template, [user("Q")], call(arguments), bot("no"))
        assert row["dropped"] == "" and "1690876800" in texts[0]
        found.append(texts)
    assert found[0] == found[1]


CUT = PLAIN.replace("m.content or ''", "m.content[:4]")
LOWER = PLAIN.replace("m.content", "m.content | lower")
NO_CONTENT = PLAIN.replace("m.content or ''", "''")
LOST = [
    (PLAIN, [CALL, bot("no")], "answer 1: tool_calls (assistant)"),
    (PLAIN, [bot("no"), {**CALL, "content": "f time 2025"}], "answer 2: tool_calls (assistant)"),
    (PLAIN, [thinking("no", "n"), bot("yes")], "answer 1: reasoning_content (assistant)"),
    (PLAIN, [thinking("no", "n", "thought"), bot("yes")], "answer 1: thought (assistant)"),
    (GEMMA, [bot("no"), thinking("yes", "y" * 50)], "answer 2: reasoning_content (assistant)"),
    (
        DEEPSEEK,
        [bot("<think>Hm</think>no"), bot("no")],
        "answer 1: thoughts in content (assistant)",
    ),
    (NO_CONTENT, [bot("a"), bot("b")], "answer 1: content (assistant)"),
    (CUT, [bot("a"), bot("😀😀 yes")], "answer 2: con"),
    (
        XML.replace("call.function.arguments", "{}"),
        [CALL, bot("no")],
        "answer 1: tool_calls (assistant)",
    ),
    (
        PLAIN,
        [{**bot("a"), "function_call": {"name": "f"}}, bot("b")],
        "answer 1: function_call (as",
    ),
    (PLAIN, [{**bot("a"), "mood": "x"}, {**bot("a"), "mood": "y"}], "answers 1 and 2 differ"),
    (LOWER, [bot("1 a"), bot("1 A")], "answer 2: content"),
]


@pytest.mark.parametrize(("template", "answers", "problem"), LOST)
def test_an_answer_that_loses_a_part_is_dropped(opt_tokenizer, template, answers, problem):
    row, texts = tokenize(opt_tokenizer, template, [user("Q")], *answers)
    assert row["dropped"] == Reason.NOT_RENDERED and row["problem"].startswith(problem)
    assert row["answers"] == texts == [] and len(set(row["answer_keys"])) == 2


UNRENDERED = [
    (QWEN, [user("Q"), thinking("R", "so"), user("Q")], None, "reasoning_content (assistant)"),
    (DEEPSEEK, [user("Q"), bot("<think>Hm</think>R"), user("Q")], None, "thoughts in content (as"),
    (PLAIN, [user("Q"), CALL, {"role": "tool", "content": "7"}], None, "tool_calls (assistant)"),
    (
        DEEPSEEK.replace("{% else", "{% elif m.role == 'assistant'"),
        [{"role": "system", "content": "Be brief."}, user("Q")],
        None,
        "content (system)",
    ),
    (PLAIN, [user("Q")], TOOLS, "tools"),
    (
        PLAIN + "{% if tools and false %}{% endif %}",
        [user("What?")],
        [{"name": "look_up"}],
        "tools",
    ),
]


@pytest.mark.parametrize(("template", "prompt", "tools", "part"), UNRENDERED)
def test_a_prompt_that_loses_a_part_trains_and_says_so(
    opt_tokenizer, template, prompt, tools, part
):
    row, _ = tokenize(opt_tokenizer, template, prompt, bot("a"), bot("b"), tools=tools)
    assert row["dropped"] == "" and row["answers"] == [0, 1]
    assert row["unrendered"].startswith(part)


def test_thoughts_of_passed_turns_of_an_answer_may_go_but_not_the_last_ones(opt_tokenizer):
    answer = [thinking("a", "first"), user("b"), thinking("c", "last")]
    row, texts = tokenize(opt_tokenizer, QWEN, [user("Q")], answer, bot("d"))
    assert row["dropped"] == "" and row["unrendered"] == "reasoning_content (assistant)"
    assert "first" not in texts[0] and "last" in texts[0]
    template = QWEN.replace("loop.index0 > ns.last", "loop.index0 < 0")
    row, _ = tokenize(opt_tokenizer, template, [user("Q")], answer, bot("d"))
    assert row["dropped"] == Reason.NOT_RENDERED


def test_fields_that_a_template_knows_reach_it(opt_tokenizer):
    template = PLAIN.replace("{{ m.content", "{{ m.mood }}<{{ m.reasoning_content }}>{{ m.content")
    answers = [{**thinking("yes", "I count."), "mood": "glad"}, thinking("no", "A guess.")]
    _, texts = tokenize(opt_tokenizer, template, [user("Q")], *answers)
    assert "[assistant]glad<I count.>yes</s>" in texts[0] and "<A guess.>no" in texts[1]


def test_a_call_by_its_older_name_stands_where_templates_look_for_calls(opt_tokenizer):
    function = {"name": "f", "arguments": "{}"}
    older = {"role": "assistant", "content": None, "function_call": function}
    newer = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    for template in (GRANITE.replace("call |", "call.function |"), QWEN):
        row, (text, _) = tokenize(opt_tokenizer, template, [user("Q")], older, bot("no"))
        _, (expected, _) = tokenize(opt_tokenizer, template, [user("Q")], newer, bot("no"))
        assert row["dropped"] == "" and text == expected and '"f"' in text


def test_turns_show_thoughts_and_calls(opt_tokenizer):
    answers = [thinking("yes", " I count. "), {**CALL, "function_call": {"name": "g"}}]
    row, texts = tokenize(opt_tokenizer, None, [user("Q")], *answers)
    assert "Assistant: <think>\nI count.\n</think>\nyes" in texts[0]
    assert '"time": 2025' in texts[1] and '"g"' in texts[1]


def test_answers_that_differ_in_white_space_or_notes_alone_are_identical(opt_tokenizer):
    first, second = {**call({"a": 1}, id="1"), "id": "x"}, {**call({"a": 1}, id="2"), "id": "y"}
    row, _ = tokenize(opt_tokenizer, QWEN, [user("Q")], first, second)
    assert row["dropped"] == Reason.IDENTICAL
    row, _ = tokenize(opt_tokenizer, GEMMA, [user("Q")], bot("a  "), bot("\na"))
    assert row["dropped"] == Reason.IDENTICAL


def test_a_template_that_refuses_is_still_malformed(opt_tokenizer):
    row, _ = tokenize(
        opt_tokenizer, GEMMA, [{"role": "system", "content": "S"}], bot("a"), bot("b")
    )
    assert row["dropped"] == Reason.MALFORMED and "System role" in row["problem"]
