import datetime
import json
import random

import numpy as np
import pytest

from utils.data.formats.spelling import MAX_SPELLED, read_spelled

AWKWARD = ["it's", 'a "b"', "}\n {", "a  b", "[", "\\", "\\n", "é\n", "None", "1 2", ", "]


@pytest.mark.parametrize("seed", range(20))
def test_a_value_is_read_as_it_was_written(seed):
    chance = random.Random(seed)

    def value(depth):
        kind = chance.choice(["text", "number", "list", "dict", "none"]) if depth else "list"
        parts = range(chance.randint(0, 4))
        if depth > 3 or kind == "text":
            return chance.choice(AWKWARD)
        if kind == "list":
            return [value(depth + 1) for _ in parts]
        if kind == "dict":
            return {chance.choice(AWKWARD): value(depth + 1) for _ in parts}
        return None if kind == "none" else chance.choice([0, -1, 2.5, 1e-30, True])

    written = value(0)
    assert read_spelled(json.dumps(written)) == read_spelled(repr(written)) == written


@pytest.mark.parametrize(
    "written", [[{"a": "}\n {"}, {"b": "it's"}], ["a b", "c"], [1.5, -2.0, 3.0], [[1, 2], [3, 4]]]
)
def test_commas_that_numpy_leaves_out_are_put_in(written):
    kind = object if isinstance(written[0], dict | str) else None
    assert read_spelled(str(np.array(written, dtype=kind))) == written


@pytest.mark.parametrize("written", [[{"a": "nan, f(x), dtype=object)"}], [{"a": {"b": "it's"}}]])
def test_arrays_and_values_of_other_types_are_read_for_what_they_hold(written):
    array = np.empty(1, dtype=object)
    array[0] = written[0] | {"inner": np.array([{"c": 1}, {"d": 2}], dtype=object)}
    others = {"n": float("nan"), "t": datetime.datetime(2026, 1, 31), "s": np.str_("x")}
    expected = [{**written[0], "inner": [{"c": 1}, {"d": 2}]}]
    assert read_spelled(repr(array)) == read_spelled(str(array)) == expected
    assert read_spelled(repr([others])) == [{"n": None, "t": (2026, 1, 31, 0, 0), "s": "x"}]


@pytest.mark.parametrize(
    "text",
    ["", "a", "[", "[a]", "f(x)", "[" * 100_000, "['a' + 'b']", "__import__('os')", "['a'" + "'b'"]
    + ["['" + "x" * MAX_SPELLED + "']"],
)
def test_what_spells_nothing_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        read_spelled(text)
