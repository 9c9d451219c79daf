import pytest

from utils.data.formats.columns import ColumnMap, parse_columns, read_columns
from utils.settings import InputError

GIVEN = ColumnMap((("prompt", "frage"), ("chosen", "a")), ("x", "y", "z"))


def test_flag_and_file_say_the_same():
    assert parse_columns(["prompt=frage", "ignore=x,y", "chosen=a", "ignore=z"]) == GIVEN
    value = {"prompt": "frage", "chosen": "a", "ignore": ["x", "y", "z"]}
    assert read_columns(value, "p") == read_columns({**value, "ignore": "x, y,z"}, "p") == GIVEN
    assert parse_columns(None) is parse_columns([]) is None
    assert parse_columns(["prompt=a=b"]).names == (("prompt", "a=b"),)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt"], "--columns prompt: expected NAME=COLUMN, as in prompt=question"),
        (["=a"], "--columns =a: expected NAME=COLUMN"),
        (["prompt="], "--columns prompt=: expected NAME=COLUMN"),
        (["asked=a"], "asked=a gives a name that no layout reads; expected ignore or one of "),
        (["prompt=a", "prompt=b"], "--columns: prompt is given twice"),
        (["prompt=a", "system=a"], "--columns: a gets a name twice"),
        (["prompt=a", "ignore=a"], "--columns: a gets a name twice"),
    ],
)
def test_words_that_mean_nothing(words, message):
    with pytest.raises(InputError, match=message):
        parse_columns(words)


@pytest.mark.parametrize("value", ["prompt=a", ["prompt=a"], None, {"prompt": 5}, {5: "a"}])
def test_values_of_a_file_that_mean_nothing(value):
    with pytest.raises(InputError, match="p: columns"):
        read_columns(value, "p")


def test_rows_get_the_new_names():
    row = {"frage": 1, "prompt": 2, "a": 3, "x": 4, "rejected": 5}
    assert GIVEN.rename(row) == {"prompt": 1, "chosen": 3, "rejected": 5}
    assert GIVEN.rename({"rejected": 5}) == {"rejected": 5}
    assert ColumnMap().rename(row) == row


def test_columns_that_are_not_there_are_named():
    with pytest.raises(InputError, match=r"some.csv: --columns names frage, z, but .* a, x, y"):
        GIVEN.of_table(["a", "x", "y"], "some.csv")


def test_other_names_of_columns_are_known_where_the_usual_one_is_missing():
    names = ["instruction", "chosen_response", "rejected_response"]
    found = ColumnMap().of_table(names, "p").names
    assert found == (("chosen", "chosen_response"), ("rejected", "rejected_response"))
    assert ColumnMap().of_table([*names, "chosen", "rejected"], "p") == ColumnMap()
    taken = ColumnMap((("prompt", "chosen_response"),))
    assert taken.of_table(names, "p").names[1:] == (("rejected", "rejected_response"),)
