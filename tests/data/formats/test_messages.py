import json

import pytest

from utils.data.comparison import MAX_DEPTH
from utils.data.formats.messages import ROLES, read_list, read_messages, read_tools, without_nulls

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}


def read(message):
    return read_messages([message], "user")[0]


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_text_is_one_message_of_the_given_role():
    assert read_messages("Hi", "user") == [{"role": "user", "content": "Hi"}]
    assert read_messages("Hi", "assistant") == [{"role": "assistant", "content": "Hi"}]
    assert read_messages([], "user") == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}),
        # Roles of chat templates stay, whatever they are.
        ({"role": "observation", "content": ""}, {"role": "observation", "content": ""}),
        (
            {"role": "user", "content": "Hi", "name": None, "tool_calls": None, "from": None},
            {"role": "user", "content": "Hi"},
        ),
        (
            {"role": "user", "content": "Hi", "mood": "glad", "id": "7", "train": True, "x": [""]},
            {"role": "user", "content": "Hi", "mood": "glad"},
        ),
        (
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "weight": 1.0},
            {"role": "assistant", "content": "", "reasoning_content": "Hm."},
        ),
        (
            {"from": "gpt", "value": "Hi", "thinking": "Hm."},
            {"role": "assistant", "content": "Hi", "thinking": "Hm."},
        ),
        (
            {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
            {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": "No call.", "tool_calls": []},
            {"role": "assistant", "content": "No call."},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a ", "image": None}] * 2},
            {"role": "user", "content": "a a "},
        ),
    ],
)
def test_messages_come_in_one_form(message, expected):
    assert read(message) == expected
    assert read(read(message)) == expected


def test_null_fields_that_a_table_adds_go_at_every_depth():
    call = {**CALL, "id": None}
    call["function"] = {"name": "weather", "arguments": {"city": "Ulm", "day": None, "x": [None]}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    arguments = read(message)["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"city": "Ulm", "x": [None]}
    assert "id" not in read(message)["tool_calls"][0] and "id" in call


@pytest.mark.parametrize("name", ROLES)
def test_sharegpt_roles_are_those_of_chat_templates(name):
    value = json.dumps(CALL["function"]) if name == "function_call" else "Hi"
    message = read({"from": name, "value": value})
    assert message["role"] in ("system", "user", "assistant", "tool")
    assert message["role"] == read({"from": message["role"], "value": "Hi"})["role"]
    assert message["content"] == ("" if name == "function_call" else "Hi")


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *((name, "user") for name in ("human", "Human", "USER", "prompter")),
        *((name, "assistant") for name in ("gpt", "bot", "model", "ChatGPT", "Assistant")),
        *((name, name) for name in ("system", "tool", "function_call", "developer", "narrator")),
    ],
)
def test_sharegpt_names_are_understood_in_a_role_too(role, expected):
    assert read({"role": role, "content": "Hi"}) == {"role": expected, "content": "Hi"}


def test_sharegpt_function_calls_are_tool_calls():
    one, two = CALL["function"], {"name": "time", "arguments": {}}
    for value, expected in (
        (json.dumps(one), [CALL]),
        (json.dumps([one, two]), [CALL, {"type": "function", "function": two}]),
    ):
        message = {"role": "assistant", "content": "", "tool_calls": expected}
        assert read({"from": "function_call", "value": value}) == message
    tool = {"role": "tool", "content": "rain"}
    assert read({"from": "observation", "value": "rain"}) == tool


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "found None; expected text or a list of messages"),
        (7, "found 7"),
        ({"role": "user", "content": "Hi"}, "found {.*; expected text or a list"),
        (["Hi"], r"found \['Hi'\]"),
        ([{}], "expected a message with role and content"),
        ([{"role": "user"}], "expected a message with role and content"),
        ([{"role": None, "content": "a"}], "expected a message with role and content"),
        ([{"role": ["user"], "content": "a"}], "expected a message with role and content"),
        ([{"role": "user", "content": nested(100_000)}], "expected a message with role"),
        ([{"role": "user", "content": b"a"}], "expected a message with role and content"),
        ([{"role": "user", "content": []}], "content has no parts"),
        ([{"role": "user", "content": ["a"]}], "content has 'a'; expected parts of the type text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "expected parts of the type text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of the content is None"),
        ([{"role": "user", "content": "a", "name": 7}], "name is 7; expected text"),
        ([{"role": "tool", "content": "a", "tool_call_id": {}}], "tool_call_id is {}"),
        ([{"role": "assistant", "content": "", "tool_calls": "f"}], "tool_calls is 'f'"),
        ([{"role": "assistant", "content": "", "tool_calls": ["f"]}], r"tool_calls is \['f'\]"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [nested(100_000)]}],
            "tool_calls is nested deeper than 32",
        ),
        ([{"from": "alien", "value": "Hi"}], "from is 'alien'; expected one of system, human"),
        ([{"from": ["human"], "value": "Hi"}], r"from is \['human'\]"),
        ([{"from": "human", "value": None}], "expected a message with role and content"),
        ([{"from": "function_call", "value": None}], "function_call is None; expected text"),
        ([{"from": "function_call", "value": "f(x)"}], "function_call is text, but no JSON"),
        ([{"from": "function_call", "value": "7"}], r"function_call is \[7\]; expected objects"),
        ([{"from": "function_call", "value": "[" * 100_000}], "function_call is text, but no JSON"),
    ],
)
def test_what_is_no_message_is_a_value_error(value, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        read_messages(value, "user")
    assert len(str(caught.value)) < 250


def test_lists_may_be_json_text():
    for value in ([], [1, "a", None], [[{"a": 1}]]):
        assert read_list("x", value) == read_list("x", json.dumps(value)) == value
        assert read_list("x", repr(value)) == value
    for bad, problem in (
        (None, "x is NoneType; expected a list"),
        ((1, 2), "x is tuple"),
        ("{}", "x is dict"),
        ("[a]", "x is text, but no JSON"),
        ("", "x is text, but no JSON"),
        ("[" * 100_000, "x is text, but no JSON"),
        ("[" + "1" * 10_000 + "]", "x is text, but no JSON"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_list("x", bad)


def test_tools_are_schemas_or_their_json_text():
    schema = {"name": "f", "parameters": {"type": "object", "enum": [None, 1], "title": None}}
    expected = [{"name": "f", "parameters": {"type": "object", "enum": [None, 1]}}]
    assert read_tools([schema]) == read_tools(json.dumps([schema])) == expected
    assert read_tools([]) is read_tools("") is None
    with pytest.raises(ValueError, match="tools is nested deeper than 32"):
        read_tools([nested(100_000)])


def test_depth_of_nested_values():
    assert without_nulls("x", nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    with pytest.raises(ValueError, match="x is nested deeper than 32"):
        without_nulls("x", nested(MAX_DEPTH + 1))
