"""The readers of public data sets."""

import gzip
import json
import math
import pickle
from itertools import combinations

import pytest

from tests.conftest import ROOT, bot, user
from utils.data.comparison import Comparison
from utils.data.formats.layouts import LAYOUTS, RANKED_FORMATS, find_reader

NAN = float("nan")


def read(row):
    comparison = find_reader(list(row), "file")(row, "s")
    return comparison.prompt, comparison.responses


A, B = [user("Q"), bot("a")], [user("Q"), bot("b")]
START = "\n\nHuman: Q\n\nAssistant:"


# One conversation in every layout that can express it: Q, then a (1 better, 3 votes of 3) or b.
NUMBERS = {"margin": 1, "votes": [3, 0]}
SAME = {
    "ranked": {"prompt": [user("Q")], "responses": ["a", "b"], "ranks": [1, 2], **NUMBERS},
    "scored": {"prompt": "Q", "responses": [[bot("a")], "b"], "scores": [1, 0], "votes": [3, 0]},
    "voted": {"prompt": [user("Q")], "responses": ["a", "b"], **NUMBERS},
    "pairs": {"prompt": [user("Q")], "chosen": [bot("a")], "rejected": [bot("b")], **NUMBERS},
    "transcripts": {"chosen": A, "rejected": B, **NUMBERS},
    "webgpt": {
        "question": {"full_text": "Q"},
        "answer_0": "a",
        "answer_1": "b",
        "score_0": 1,
        "score_1": 0,
        "votes": [3, 0],
    },
    "shp": {
        "history": "Q",
        "human_ref_A": "a",
        "human_ref_B": "b",
        "labels": 1,
        "score_ratio": math.e,
        "votes": [3, 0],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
        **NUMBERS,
    },
    "messages": {
        "messages": [user("Q")],
        "chosen": bot("a"),
        "rejected": bot("b"),
        **NUMBERS,
    },
    "conversation": {
        "conversation": json.dumps([user("Q")]),
        "chosen": A,
        "rejected": "b",
        **NUMBERS,
    },
    "alpaca": {"instruction": "Q", "input": "", "chosen": "a", "rejected": "b", **NUMBERS},
    "question": {"question": "Q", "chosen": "a", "rejected": "b", **NUMBERS},
    "query": {"query": "Q", "chosen": "a", "rejected": "b", "system": None, **NUMBERS},
    "input": {"input": "Q", "chosen": A, "rejected": B, **NUMBERS},
    "history": {"history": [["Q", ""]], "chosen": "a", "rejected": "b", **NUMBERS},
    "ultrafeedback": {
        "instruction": "Q",
        "completions": [
            {"response": "a", "overall_score": 1.0, "fine-grained_score": 4.5},
            {"response": "b", "overall_score": 0.0, "fine-grained_score": 4.75},
        ],
        "votes": [3, 0],
    },
    "helpsteer2": {
        "prompt": "Q",
        "response_1": "a",
        "response_2": "b",
        "preference_strength": -1,
        "votes": [3, 0],
    },
    "helpsteer3": {
        "context": [user("Q")],
        "response1": "a",
        "response2": "b",
        "overall_preference": -1,
        "individual_preference": [{"score": -1}, {"score": -2}, {"score": -1}],
    },
    "arena": {"conversation_a": A, "conversation_b": B, "winner": "model_a", **NUMBERS},
    "arena_55k": {
        "prompt": '["Q"]',
        "response_a": '["a"]',
        "response_b": '["b"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
        **NUMBERS,
    },
    "pandalm": {
        "instruction": "Q",
        "input": None,
        "response1": "a",
        "response2": "b",
        "annotator1": 1,
        "annotator2": 1,
        "annotator3": 1,
        "margin": 1,
    },
}
# The same, where the prompt is text with its turns.
SAME_TEXT = {
    "nectar": {
        "prompt": START,
        "answers": [{"answer": " b", "model": "m", "rank": 2.0}, {"answer": " a", "rank": 1.0}],
        "source": ["anthropic-hh"],
    },
    "ranked": {"prompt": START, "responses": [" b", " a"], "ranks": [2, 1]},
    "voted": {"prompt": START, "responses": [" b", " a"], "votes": [0, 1]},
}


def test_every_layout_has_its_example():
    assert SAME.keys() | SAME_TEXT.keys() == {*RANKED_FORMATS}


@pytest.mark.parametrize(("one", "other"), list(combinations(SAME, 2)))
def test_one_conversation_in_two_layouts_is_one_comparison(one, other):
    first, second = (find_reader(list(SAME[n]), "file")(SAME[n], "s") for n in (one, other))
    assert first == second
    assert first == Comparison([user("Q")], ["a", "b"], [0, 1], "s", [1, 0], [3, 0])
    # Neither is so because the other fits all.
    assert first != find_reader(list(SAME[one]), "file", layout=one)(SAME[one], "t")


def test_prompts_with_turns_in_the_text_stay_text():
    read_all = {n: find_reader(list(row), "file")(row, "s") for n, row in SAME_TEXT.items()}
    assert read_all["nectar"] == read_all["ranked"]
    assert read_all["nectar"] == Comparison(START, [" b", " a"], [1, 0], "s")
    pairs = {"prompt": START, "chosen": " a", "rejected": " b"}
    both = (pairs, {"chosen": START + " a", "rejected": START + " b"})
    assert [find_reader(list(row), "file")(row, "s") for row in both] == [
        Comparison(START, [" a", " b"], [0, 1], "s")
    ] * 2
    assert read_all["voted"].ranks == [1, 0] and read_all["voted"].votes == [0, 1]


@pytest.mark.parametrize("name", RANKED_FORMATS)
def test_readers_go_to_other_processes(name):
    row = (SAME | SAME_TEXT)[name]
    reader = find_reader(list(row), "file")
    assert pickle.loads(pickle.dumps(reader))(row, "s") == reader(row, "s")
    assert reader.args == (name,)


def numbers(row):
    """Ranks, grades and votes."""
    comparison = find_reader(list(row), "file")(row, "s")
    return comparison.ranks, comparison.grades, comparison.votes


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (-3, ([0, 1], [3, 0])),
        (-1, ([0, 1], [1, 0])),
        (0, ([0, 0], [0, 0])),
        (0.0, ([0, 0], [0, 0])),
        (2, ([1, 0], [0, 2])),
    ],
)
def test_helpsteer_strength_is_negative_where_the_first_is_better(strength, expected):
    assert numbers({**SAME["helpsteer2"], "preference_strength": strength})[:2] == expected
    assert numbers({**SAME["helpsteer3"], "overall_preference": strength})[:2] == expected


@pytest.mark.parametrize(
    ("scores", "votes"),
    [([-3, -1, 2], [2, 1]), ([0, 0, 1], [1, 2]), ([0], [0.5, 0.5]), ([], None), (None, None)],
)
def test_helpsteer3_annotators_vote(scores, votes):
    parts = None if scores is None else [{"score": score, "reasoning": "x"} for score in scores]
    assert numbers({**SAME["helpsteer3"], "individual_preference": parts})[2] == votes


def test_helpsteer2_turns_are_messages():
    prompt = "Q\n\n1\n<extra_id_1>Assistant\nA\n\nB\n<extra_id_1>User\nR"
    turns = [user("Q\n\n1"), bot("A\n\nB"), user("R")]
    assert read({**SAME["helpsteer2"], "prompt": prompt})[0] == turns


@pytest.mark.parametrize(
    ("choices", "ranks", "votes"),
    [
        ((1, 1, 1), [0, 1], [3, 0]),
        ((2, 1, 2), [1, 0], [1, 2]),
        ((0, 0, 2), [1, 0], [1, 2]),
        ((0, 1, 2), [0, 0], [1.5, 1.5]),
        ((0, 0, 0), [0, 0], [1.5, 1.5]),
    ],
)
def test_pandalm_annotators_vote(choices, ranks, votes):
    row = {**SAME["pandalm"], "margin": None}
    row |= {f"annotator{number}": choice for number, choice in enumerate(choices, 1)}
    assert numbers(row) == (ranks, None, votes)


@pytest.mark.parametrize(("more", "prompt"), [("I", "Q\n\nI"), ("", "Q"), (None, "Q"), (NAN, "Q")])
def test_pandalm_input_stands_below_the_instruction(more, prompt):
    assert read({**SAME["pandalm"], "input": more})[0] == [user(prompt)]


@pytest.mark.parametrize(
    ("labels", "ratio", "grades"),
    [(1, 1.0, [0, 0]), (1, math.e**2, [2, 0]), (0, 10, [0, math.log(10)]), (0, None, None)],
)
def test_shp_ratio_is_the_odds(labels, ratio, grades):
    row = {**SAME["shp"], "labels": labels, "score_ratio": ratio, "votes": None}
    assert numbers(row) == ([1 - labels, labels], grades and pytest.approx(grades), None)


TIE = [0, 0]


@pytest.mark.parametrize(
    ("winner", "ranks"),
    [("model_a", [0, 1]), ("model_b", [1, 0])]
    + [(name, TIE) for name in ("tie", "tie (bothbad)", "both_bad")],
)
def test_arena_winner(winner, ranks):
    row = {**SAME["arena"], "winner": winner, "margin": None}
    assert numbers(row)[0] == ranks
    flags = [ranks == [0, 1], ranks == [1, 0], ranks == TIE]
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    row = {**SAME["arena_55k"], **dict(zip(names, map(int, flags), strict=True)), "margin": None}
    assert numbers(row)[0] == ranks


def test_arena_conversations_part_at_the_first_different_turn():
    row = SAME["arena"].copy()
    row["conversation_a"], row["conversation_b"] = (
        [*A, user("R"), bot("c")],
        [*A, user("R"), bot("d")],
    )
    assert read(row) == ([*A, user("R")], ["c", "d"])
    turns = {"prompt": '["Q", "R"]', "response_a": '["a", "c"]', "response_b": '["a", "d"]'}
    assert read(SAME["arena_55k"] | turns) == ([*A, user("R")], ["c", "d"])
    turns["response_b"] = '["b", "d"]'
    later = [[bot("a"), user("R"), bot("c")], [bot("b"), user("R"), bot("d")]]
    assert read(SAME["arena_55k"] | turns) == ([user("Q")], later)
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in A]
    assert read({**SAME["arena"], "conversation_a": parts}) == ([user("Q")], ["a", "b"])


def test_sharegpt_has_more_forms():
    system = {"role": "system", "content": "S"}
    row = SAME["sharegpt"]
    for others in (
        {"system": "S"},
        {"conversations": [{"from": "system", "value": "S"}, user("Q")]},
    ):
        assert read({**row, **others})[0] == [system, user("Q")]
    both = [{"from": "system", "value": "S"}, *row["conversations"]]
    assert read({**row, "system": "S ", "conversations": both})[0] == [system, user("Q")]
    with pytest.raises(ValueError, match="system text is 'T'.*begins with the system message 'S'"):
        read({**row, "system": "T", "conversations": both})
    for chosen in ("a", bot("a"), [bot("a")], [user("Q"), bot("a")]):
        assert read({**row, "chosen": chosen}) == ([user("Q")], ["a", "b"])


SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_tools_and_their_calls_are_kept():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"prompt": [user("Q")], "chosen": [calls], "rejected": [bot("b")]}
    row["tools"] = [{**SCHEMA, "id": None}]
    comparison = find_reader(list(row), "file")(row, "s")
    assert comparison.tools == [SCHEMA] and comparison.prompt == [user("Q")]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert comparison.responses[0] == [{**calls, "content": "", "tool_calls": [call]}]
    assert comparison.responses[1] == [bot("b")]
    sharegpt = {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        "rejected": {"from": "gpt", "value": "b"},
        "tools": json.dumps([SCHEMA]),
    }
    assert find_reader(list(sharegpt), "file")(sharegpt, "s") == comparison
    assert find_reader(list(row), "file")({**row, "tools": ""}, "s").tools is None


def test_messages_of_a_tool_are_shared_turns():
    tool = {"role": "tool", "content": "7", "tool_call_id": "1"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {}}]}
    turns = [user("Q"), call, tool]
    row = {"chosen": [*turns, bot("a")], "rejected": [*turns, bot("b")]}
    assert read(row) == (turns, ["a", "b"])


BAD_VALUES = {
    "shp": [{"score_ratio": bad} for bad in (0.5, 0, -1, NAN, math.inf, "2")],
    "ultrafeedback": [
        {"completions": bad}
        for bad in (
            None,
            [],
            [None],
            [{"response": "a"}],
            [{"response": "a", "overall_score": NAN}],
        )
    ],
    "helpsteer2": [{"preference_strength": bad} for bad in (None, 4, -3.5, NAN, "1")]
    + [{"prompt": bad} for bad in (None, [user("Q")])],
    "helpsteer3": [{"overall_preference": bad} for bad in (None, 4, NAN)]
    + [{"individual_preference": bad} for bad in (7, [7], [{}], [{"score": None}])]
    + [{"context": bad} for bad in (None, "Q", [], [7])],
    "nectar": [{"answers": bad} for bad in (None, [], [7], [{"answer": "a"}], "ab")]
    + [{"answers": [{"answer": "a", "rank": "1"}]}],
    "arena": [{"winner": bad} for bad in (None, "model_c", ["model_a"], 1)]
    + [{"conversation_b": bad} for bad in (None, [], "b", [bot("b")])],
    "arena_55k": [{"prompt": bad} for bad in ("Q", '["Q", "R"]', "[null]", None, "[]")]
    + [{"winner_tie": bad} for bad in (1, 2, None, "0")]
    + [{"response_a": bad} for bad in ("[null]", '["\\ud800"]', "[[7]]")],
    "pandalm": [{"annotator2": bad} for bad in (None, 3, "1", NAN)]
    + [{"input": bad} for bad in (7, ["a"])],
    "sharegpt": [{"conversations": bad} for bad in (None, [], "Q", [{"from": "x", "value": "Q"}])]
    + [{"chosen": bad} for bad in (None, {}, [], {"from": "gpt", "value": None})]
    + [{"system": 7}],
}


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, all_bad in BAD_VALUES.items() for bad in all_bad]
)
def test_bad_values_of_public_layouts_are_value_errors(name, bad):
    row = (SAME | SAME_TEXT)[name] | bad
    with pytest.raises(ValueError, match="."):
        find_reader(list(row), "file", layout=name)(row, "s")


@pytest.mark.parametrize("name", RANKED_FORMATS)
def test_a_row_without_a_column_is_a_value_error(name):
    row = (SAME | SAME_TEXT)[name]
    reader = find_reader(list(row), "file")
    for column in LAYOUTS[name].needed:
        with pytest.raises(ValueError, match=f"no {column}; expected"):
            reader({key: value for key, value in row.items() if key != column}, "s")


def test_a_column_of_the_layout_is_not_read_as_an_optional_one():
    assert numbers({**SAME["helpsteer2"], "votes": None})[2] is None
    row = {**SAME["pairs"], "preference_strength": -1}
    with pytest.raises(ValueError, match="preference_strength has -1; expected at least 0"):
        find_reader(list(row), "file")(row, "s")


DEMO = ROOT.parent / "shared" / "data" / "sharegpt_demo.jsonl.gz"


@pytest.mark.skipif(not DEMO.exists(), reason="needs real data")
def test_real_sharegpt_data_is_read():
    with gzip.open(DEMO, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    reader = find_reader(list(rows[0]), "demo")
    for row in rows:
        comparison = reader(row, "demo")
        turns = [turn["value"] for turn in row["conversations"]]
        assert [message["content"] for message in comparison.prompt] == turns
        assert comparison.responses == [row["chosen"]["value"], row["rejected"]["value"]]
