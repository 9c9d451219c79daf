import random

import numpy as np
import pytest

from utils.data.comparison import (
    LARGEST,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_NAME,
    Comparison,
    ranked_pairs,
    ranks_from_scores,
    shorten,
    tied_pairs,
)


@pytest.mark.parametrize("seed", range(30))
def test_ranked_pairs_equal_a_double_loop(seed):
    chance = random.Random(seed)
    count = chance.randint(2, 7)
    ranks = [chance.randint(0, 3) for _ in range(count)]
    answers = [[chance.randint(0, 1) for _ in range(chance.randint(1, 2))] for _ in range(count)]
    expected = []
    for better in range(count):
        for worse in range(count):
            if ranks[better] < ranks[worse] and answers[better] != answers[worse]:
                expected.append([better, worse])
    pairs = ranked_pairs(ranks, answers)
    assert pairs.dtype == "int64" and pairs.shape == (len(expected), 2)
    assert sorted(pairs.tolist()) == sorted(expected)


@pytest.mark.parametrize("seed", range(30))
def test_tied_pairs_equal_a_double_loop(seed):
    chance = random.Random(seed)
    count = chance.randint(1, 7)
    ranks = [chance.randint(0, 2) for _ in range(count)]
    answers = [[chance.randint(0, 1) for _ in range(chance.randint(1, 2))] for _ in range(count)]
    expected = [
        [i, j]
        for i in range(count)
        for j in range(i + 1, count)
        if ranks[i] == ranks[j] and answers[i] != answers[j]
    ]
    pairs = tied_pairs(ranks, answers)
    assert pairs.dtype == "int64" and pairs.shape == (len(expected), 2)
    assert sorted(pairs.tolist()) == sorted(expected)


@pytest.mark.parametrize("seed", range(10))
def test_rank_is_the_number_of_distinct_higher_scores(seed):
    chance = random.Random(seed)
    scores = [chance.choice([-1.5, 0, 2, 2.5, 7]) for _ in range(chance.randint(1, 8))]
    expected = [len({other for other in scores if other > score}) for score in scores]
    assert ranks_from_scores(scores) == expected


def test_text_and_messages_are_accepted():
    message = {"role": "user", "content": "Why?"}
    for prompt, responses in (
        ("", ("a", "b")),
        ("Why?", ("a", "b")),
        ([message], ("a", [message])),
    ):
        assert Comparison(prompt, responses, (0, 1), "s").prompt == prompt
    with pytest.raises(ValueError, match="answer 2 is a list of messages, but the prompt is text"):
        Comparison("Why?", ("a", [message]), (0, 1), "s")


@pytest.mark.parametrize(
    ("prompt", "responses", "ranks", "message"),
    [
        (None, ("a", "b"), (0, 1), "prompt is None"),
        (7, ("a", "b"), (0, 1), "prompt is 7"),
        ([], ("a", "b"), (0, 1), r"prompt is \[\]"),
        (["Why?"], ("a", "b"), (0, 1), "prompt has 'Why\\?'"),
        ([{"role": "user"}], ("a", "b"), (0, 1), "prompt has .*role and content"),
        ([{"role": "user", "content": None}], ("a", "b"), (0, 1), "prompt has"),
        ("p", ("a", None), (0, 1), "answer 2 is None"),
        ("p", (float("nan"), "b"), (0, 1), "answer 1 is nan"),
        ("p", ("a", "b"), (0, 1, 2), "2 answers but 3 ranks"),
        ("p", ("a", "b"), (0,), "2 answers but 1 ranks"),
        ("p", (), (), "no answers"),
    ],
)
def test_wrong_types_and_lengths_are_named(prompt, responses, ranks, message):
    with pytest.raises(ValueError, match=message):
        Comparison(prompt, responses, ranks, "s")


@pytest.mark.parametrize("name", ["grades", "votes"])
def test_a_number_belongs_to_each_answer(name):
    assert getattr(Comparison("p", ("a", "b"), (0, 1), "s", **{name: (2.0, 1.0)}), name) == [2, 1]
    for wrong in ((), (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match=f"2 answers but {len(wrong)} {name}"):
            Comparison("p", ("a", "b"), (0, 1), "s", **{name: wrong})


def test_comparisons_are_equal_whatever_sequences_made_them():
    lists = Comparison("p", ["a", "b"], [0, 1], "s", [1, 0], [2.0, 1.0])
    assert lists == Comparison("p", ("a", "b"), (0, 1), "s", (1.0, 0.0), (2, 1))
    assert lists != Comparison("p", ("a", "b"), (0, 1), "s", (1.0, 0.0))
    assert lists != Comparison("p", ("a", "b"), (0, 1), "s", (1, 0), (2, 1), tools=[{}])


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


USER = {"role": "user", "content": "Q"}
GOOD = {"prompt": [USER], "responses": ["a", "b"], "ranks": [0, 1], "source": "s"}
LONGEST = "x" * MAX_CHARACTERS
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": LONGEST},
        {"prompt": "\U0001f600 \u5b57 \n\t"},
        {"responses": [LONGEST, "b"]},
        {"responses": ["a", [CALL]]},
        {"responses": ["a", [{**CALL, "tool_calls": nested(MAX_DEPTH - 1)}]]},
        {"source": "x" * MAX_NAME},
        {"grades": [LARGEST, -LARGEST]},
        {"votes": [0, LARGEST]},
        {"tools": [{"a": [None, True, 1, 0.5, {"b": "c"}]}]},
        {"tools": [{"a": nested(MAX_DEPTH - 2)}]},
        {"ranks": [-(2**31) + 1, 2**31 - 1]},
    ],
)
def test_what_is_just_within_the_limits_passes(fields):
    comparison = Comparison(**{**GOOD, **fields})
    assert all(getattr(comparison, name) == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "ab\ud800"}, "prompt has a lone surrogate at character 3"),
        ({"prompt": [{**USER, "content": "\udfff"}]}, "prompt has a lone surrogate"),
        ({"prompt": [{**USER, "role": "\udfff"}]}, "prompt has a lone surrogate"),
        ({"prompt": [{**USER, "role": 7}]}, "prompt has .*; expected messages with role"),
        ({"prompt": [{**USER, "\ud800": "x"}]}, "a key in prompt has a lone surrogate"),
        ({"prompt": [{**USER, 7: "x"}]}, "a key in prompt is 7; expected text"),
        ({"responses": ["a", "b\0"]}, "answer 2 has a NUL byte at character 2"),
        ({"responses": ["a", LONGEST + "x"]}, "answer 2 has 1000001 characters; expected at most"),
        ({"prompt": [{**USER, "content": LONGEST}]}, "prompt has 1000015 characters"),
        ({"prompt": [USER, {**USER, "content": LONGEST[:-25]}]}, "prompt has 1000006 characters"),
        ({"prompt": [{**USER, "name": b"x"}]}, "prompt has b'x'; expected what JSON has"),
        ({"prompt": [{**USER, "name": 1e300}]}, r"prompt has 1e\+300; expected a finite number"),
        ({"prompt": [{**USER, "name": nested(MAX_DEPTH)}]}, "prompt is nested deeper than 32"),
        ({"responses": ["a", [{**CALL, "x": nested(100_000)}]]}, "answer 2 is nested deeper"),
        ({"tools": {}}, r"tools is {}; expected a list of JSON schemas"),
        ({"tools": ["f"]}, "tools is .*; expected a list of JSON schemas"),
        ({"tools": [{"a": nested(100_000)}]}, "tools is nested deeper than 32"),
        ({"tools": [{"a": [0] * MAX_CHARACTERS}]}, "tools has 1000001 characters"),
        ({"source": "x" * (MAX_NAME + 1)}, "source has 201 characters; expected at most 200"),
        ({"source": "\ud800"}, "source has a lone surrogate"),
        ({"source": None}, "source is None; expected text"),
        ({"grades": [1, float("nan")]}, "grades has nan; expected a finite number"),
        ({"grades": [1, "2"]}, "grades has '2'; expected a finite number"),
        ({"votes": [1, True]}, "votes has True; expected a finite number"),
        ({"votes": [1, 10**400]}, "votes has 1000.*; expected a finite number within"),
        ({"weight": float("inf")}, "weight has inf; expected a finite number"),
        ({"weight": 1.1 * LARGEST}, "weight has 1.1e.*; expected a finite number within"),
        ({"ranks": [0, 2**31]}, "ranks has 2147483648; expected whole numbers of 32 bits"),
        ({"ranks": [0, 1.5]}, "ranks has 1.5; expected whole numbers"),
    ],
)
def test_what_would_harm_later_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        Comparison(**{**GOOD, **fields})
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_grades_and_their_differences_are_finite_in_float32():
    largest = np.float32(LARGEST)
    assert np.isfinite([largest, largest + largest, -largest - largest]).all()
    assert float(np.finfo(np.float32).max) < 4 * LARGEST


@pytest.mark.parametrize(
    "value",
    [nested(100_000), "x" * 10**7, {str(i): "y" * 99 for i in range(99)}, 10**4000, b"\xff"],
)
def test_error_messages_stay_short(value):
    assert 0 < len(shorten(value)) <= 60
    assert shorten("a'b") == repr("a'b")
