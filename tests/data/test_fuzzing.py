"""Rows that are nearly right give sound comparisons or ValueErrors, and nothing else."""

import json
import math
from collections import Counter
from dataclasses import asdict
from datetime import datetime

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data.formats.test_readers import SAME, SAME_TEXT, SCHEMA, bot, user
from utils.data.comparison import Comparison
from utils.data.formats.layouts import FORMATS, LAYOUTS, OPTIONAL, RANKED_FORMATS, find_reader
from utils.settings import InputError

ROWS_A_BATCH, BATCHES = 40, 250


def nested(depth, wrap):
    value = "x"
    for _ in range(depth):
        value = wrap(value)
    return value


CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}]
TOOL_TURNS = [
    {"role": "system", "content": "S", "name": None, "tool_calls": None},
    {"role": "user", "content": [{"type": "text", "text": "Q"}]},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
]
PLAIN = {"prompt": "Q: ", "chosen": "a", "rejected": "b"}
ROWS = [
    *SAME.items(),
    *SAME_TEXT.items(),
    ("pairs", PLAIN),
    ("pairs", {"prompt": TOOL_TURNS, "chosen": "a", "rejected": [bot("b")], "tools": [SCHEMA]}),
    ("pairs", {"prompt": "Q", "chosen": "a", "rejected": TOOL_TURNS[2:], "tools": [SCHEMA]}),
    ("transcripts", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}),
    ("transcripts", {"chosen": [*TOOL_TURNS, bot("a")], "rejected": [*TOOL_TURNS, bot("b")]}),
    ("scored", {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 2.5, 1]}),
    ("helpsteer2", SAME["helpsteer2"] | {"prompt": "Q\n<extra_id_1>Assistant\nA", "votes": None}),
    ("answers", {"prompt": [user("Q")], "responses": ["a", "b"]}),
    ("answer", {"prompt": "Q", "response": "a"}),
]
NASTY = {
    **{repr(v): v for v in (None, True, False, 0, 1, -1, 2, 4, -0.0, 0.5, math.nan, math.inf)},
    **{repr(v): v for v in ("", " ", "7", "a", "\n\n", "\0", "a\0b", "\ud800", "\U0001f600", "ﬃ")},
    **{
        repr(v): v for v in (1e38, 1e39, 1e300, -1e300, 5e-324, 2**31, 2**63, "model_b", "both_bad")
    },
    **{
        repr(v): v
        for v in ([], {}, [None], [[]], {"a": None}, [1, 0], [3, "1"], ["a", "b"], ("a",))
    },
    **{repr(v): v for v in ("[]", '["a"]', '["\\ud800"]', "[NaN, 1e999]", "{", b"a", b"\xff", 1j)},
    **{repr(v): v for v in (np.int64(1), np.float32(1), np.float64(0.5), np.float64("nan"))},
    **{repr(v): v for v in (np.array([1, 0]), np.str_("a"), np.bool_(True), datetime(2020, 1, 1))},
    **{
        repr(v): v
        for v in ([user("Q")], user("Q"), {"role": "user"}, {"from": "gpt", "value": "b"})
    },
    **{
        repr(v): v
        for v in ({"from": "function_call", "value": '{"name": "f"}'}, [bot(None)], CALLS)
    },
    "an int of 400 digits": 10**400,
    "a text that is too long": "x" * 1_000_001,
    "too much text in all": [user("x" * 600_000)] * 2,
    "many answers": ["a"] * 300,
    "lists in lists": nested(100_000, lambda value: [value]),
    "dicts in dicts": nested(100_000, lambda value: {"a": value}),
    "messages in messages": nested(50, lambda value: [{"role": "user", "content": value}]),
    "JSON that is too deep": "[" * 100_000,
    "a list that holds itself": (lambda value: value.append(value) or value)([]),
}
# What happens to a row: a place in it, counted over all of them, and what comes there.
CHANGES = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(["gone", "twice", *NASTY])), max_size=2
)
COLUMNS = st.dictionaries(st.sampled_from([*OPTIONAL, "source"]), st.sampled_from([*NASTY]))
BATCH = st.lists(
    st.tuples(st.integers(0, len(ROWS) - 1), CHANGES, st.just({}) | COLUMNS),
    min_size=ROWS_A_BATCH,
    max_size=ROWS_A_BATCH,
)


def places(value, path=()):
    """The paths of all parts of a row, which is at most a few levels deep."""
    parts = enumerate(value) if isinstance(value, list) else ()
    parts = value.items() if isinstance(value, dict) else parts
    for key, part in parts:
        yield (*path, key)
        if len(path) < 6:
            yield from places(part, (*path, key))


def changed(value, path, change):
    """A copy of a row with one part changed."""
    if not path:
        return NASTY[change]
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if change == "gone" and not rest:
        del copy[key]
    elif change == "twice" and not rest:
        copy[key] = [value[key], value[key]]
    else:
        copy[key] = changed(value[key], rest, change)
    return copy


def assert_text(text):
    assert isinstance(text, str) and len(text) <= 1_000_000
    assert "\0" not in text and text.encode().decode() == text


def assert_text_or_messages(value):
    if isinstance(value, str):
        return assert_text(value)
    assert value
    for message in value:
        assert {"role", "content"} <= message.keys()
        assert message.keys() <= {"role", "content", "name", "tool_call_id", "tool_calls"}
        for key in message.keys() - {"tool_calls"}:
            assert_text(message[key])
        assert all(isinstance(call, dict) for call in message.get("tool_calls", []))
    return assert_text("".join(message["content"] for message in value))


def assert_sound(comparison: Comparison, ranked: bool):
    count = len(comparison.responses)
    assert count == len(comparison.ranks) > 0
    assert {*comparison.ranks} == {*range(max(comparison.ranks) + 1)}
    assert ranked or {*comparison.ranks} == {0}
    for part in (comparison.prompt, *comparison.responses):
        assert_text_or_messages(part)
        assert isinstance(part, str) or not isinstance(comparison.prompt, str)
    for numbers in (comparison.grades, comparison.votes):
        if numbers is not None:
            column = np.array(numbers, dtype=np.float32)
            assert column.shape == (count,)
            assert np.isfinite(column[:, None] - column).all()
    others = [*(comparison.votes or []), comparison.weight or 0]
    assert min(others) >= 0 and math.isfinite(max(others))
    assert_text(comparison.source)
    assert len(comparison.source) <= 200
    # What is written and read again is the same: nothing but JSON, and no nulls of a table.
    fields = asdict(comparison)
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    nested_parts = json.dumps([comparison.tools or [], comparison.prompt, comparison.responses])
    assert ": null" not in nested_parts


def outcome(reader, row, ranked):
    try:
        comparison = reader(row, "s")
    except ValueError as error:
        assert 0 < len(str(error)) < 400 and str(error).encode()
        return "refused"
    assert_sound(comparison, ranked)
    return "accepted"


def test_ten_thousand_rows_are_sound_or_value_errors():
    outcomes = Counter()

    @settings(
        max_examples=BATCHES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a failure says itself which row it is
        suppress_health_check=list(HealthCheck),
    )
    @given(BATCH)
    def read_all(batch):
        for number, changes, columns in batch:
            name, row = ROWS[number]
            reader = find_reader(list(row), "file", name in RANKED_FORMATS, name)
            row = row | {column: NASTY[value] for column, value in columns.items()}
            for place, change in changes:
                paths = list(places(row))
                row = changed(row, paths[place % len(paths)], change)
            try:
                outcomes[name, outcome(reader, row, name in RANKED_FORMATS)] += 1
            except BaseException as error:
                error.add_note(f"a row of {name} with {changes} and {columns}")
                raise

    read_all()
    assert outcomes.total() >= ROWS_A_BATCH * BATCHES
    accepted = sum(outcomes[name, "accepted"] for name in FORMATS)
    assert 0.2 < accepted / outcomes.total() < 0.8
    for name in FORMATS:
        # How many follows from the code that Hypothesis sees, so the bound is a low one.
        assert outcomes[name, "accepted"] > 5 and outcomes[name, "refused"] > 5, name


ALL = sorted({column for layout in LAYOUTS.values() for column in layout.needed})


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(st.sets(st.sampled_from(sorted(RANKED_FORMATS)), max_size=3), st.sets(st.sampled_from(ALL)))
def test_any_columns_are_recognised_or_refused(names, columns):
    columns = columns.union(*(LAYOUTS[name].needed for name in names))
    fitting = [n for n in RANKED_FORMATS if all(c in columns for c in LAYOUTS[n].needed)]
    try:
        (found,) = find_reader(sorted(columns), "some.csv").args
    except InputError as error:
        assert len(fitting) != 1
        if fitting:
            assert "--format NAME" in str(error)
            listed = str(error).split("fit the layouts ")[1].split(":")[0].split(", ")
            assert len(listed) > 1 and {*listed} <= {*fitting}
    else:
        assert found in fitting
        needed, preference = {*LAYOUTS[found].needed}, LAYOUTS[found].preference
        for name in fitting:
            other = LAYOUTS[name]
            both = None not in (preference, other.preference)
            is_later = both and other.preference > preference
            assert is_later or {*other.needed} - {*OPTIONAL} <= needed
