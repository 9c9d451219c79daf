import gzip
import io
import json
import sys

import datasets
import pytest

from tests.conftest import make_pairs, write_jsonl
from utils.data.comparison import Comparison
from utils.data.formats.columns import parse_columns
from utils.data.sources.files import parse_row
from utils.data.sources.names import Source
from utils.evaluation.rows import open_source, windows
from utils.settings import InputError

PAIRS = make_pairs(23)


def write_everywhere(folder):
    """The same pairs in each kind of file, and in a folder whose other split has more."""
    table = datasets.Dataset.from_list(PAIRS)
    table.to_parquet(folder / "pairs.parquet")
    table.to_csv(folder / "pairs.csv", index=False)
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    (folder / "list.json").write_text(json.dumps(PAIRS))
    with gzip.open(folder / "zipped.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in PAIRS)
    (folder / "splits").mkdir()
    write_jsonl(folder / "splits" / "train.jsonl", make_pairs(40))
    write_jsonl(folder / "splits" / "test.jsonl", PAIRS)


@pytest.mark.parametrize(
    "name", ["pairs.parquet", "pairs.csv", "pairs.jsonl", "list.json", "zipped.jsonl.gz", "splits"]
)
def test_each_kind_of_file_gives_its_rows(tmp_path, name):
    write_everywhere(tmp_path)
    found = list(windows([open_source(Source(str(tmp_path / name)))], 10))
    assert [(window.first, len(window.rows)) for window in found] == [(0, 10), (10, 10), (20, 3)]
    comparisons = [window.read(parse_row(row)) for window in found for row in window.rows]
    expected = [
        Comparison(row["prompt"], (row["chosen"], row["rejected"]), (0, 1), name.split(".")[0])
        for row in PAIRS
    ]
    assert comparisons == expected


@pytest.mark.parametrize("start", range(48))
def test_a_later_start_leaves_the_windows_as_they_are(tmp_path, start):
    """Windows do not reach from one file into the next, and stand where they always stand."""
    first = write_jsonl(tmp_path / "first.jsonl", PAIRS)
    second = write_jsonl(tmp_path / "second.jsonl", make_pairs(20))

    def cut(start):
        sources = [open_source(Source(str(path))) for path in (first, second)]
        found = windows(sources, 7, start)
        return [(w.first, [*map(parse_row, w.rows)], w.source.name) for w in found]

    everything = cut(0)
    assert [w[0] for w in everything] == [0, 7, 14, 21, 23, 30, 37]
    assert [row for w in everything for row in w[1]] == PAIRS + make_pairs(20)
    assert cut(start) == [w for w in everything if w[0] + len(w[1]) > start]


def test_a_row_names_its_source(tmp_path):
    rows = [{**PAIRS[0], "subset": "easy"}, {**PAIRS[1], "subset": None}]
    (window,) = windows([open_source(Source(str(write_jsonl(tmp_path / "named.jsonl", rows))))], 10)
    assert [window.read(parse_row(row)).source for row in window.rows] == ["easy", "named"]


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"prompt": "Q", "responses": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"prompt": "Q", "response": "a"}, ["a"]),
    ],
)
def test_answers_need_no_ranks(tmp_path, row, answers):
    (window,) = windows([open_source(Source(str(write_jsonl(tmp_path / "rows.jsonl", [row]))))], 10)
    comparison = window.read(parse_row(window.rows[0]))
    assert list(comparison.responses) == answers
    assert set(comparison.ranks) == {0}


def test_standard_input(monkeypatch):
    text = "".join(json.dumps(row) + "\n\n" for row in PAIRS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = list(windows([open_source(Source("-"))], 10))
    assert [parse_row(row) for window in found for row in window.rows] == PAIRS
    assert found[0].read(PAIRS[0]).source == "stdin"


def test_columns_of_standard_input_get_new_names(monkeypatch):
    text = json.dumps({"q": "Q", "a": "A", "title": "x"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    source = open_source(Source("-", columns=parse_columns(["prompt=q", "response=a"])))
    (window,) = windows([source], 10)
    assert window.read(parse_row(window.rows[0])) == Comparison("Q", ("A",), (0,), "stdin")
    assert source.note == (
        "standard input: layout answer; read: prompt=q, response=a; not read: title"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "standard input: no rows"),
        ("oops", "standard input: row 1: Expecting value"),
        ('{"question": "a"}', "standard input: no known layout has the columns question"),
    ],
)
def test_faults_of_standard_input(monkeypatch, text, message):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(InputError, match=message):
        list(windows([open_source(Source("-"))], 10))


def test_a_bad_line_of_standard_input_is_a_bad_row(monkeypatch):
    text = '{"prompt": "a", "response": "b"}\n{"prompt":\n\n{"prompt": "c", "response": "d"}'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    (window,) = windows([open_source(Source("-"))], 10)
    assert [parse_row(row)["prompt"] for row in window.rows[::2]] == ["a", "c"]
    with pytest.raises(ValueError, match="Expecting value"):
        parse_row(window.rows[1])


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
        open_source(Source(str(tmp_path / "missing.jsonl")))
    with pytest.raises(InputError, match="no known layout has the columns a"):
        open_source(Source(str(write_jsonl(tmp_path / "odd.jsonl", [{"a": 1}]))))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"\n')
    with pytest.raises(InputError, match=r"broken\.jsonl: row 1: Expecting"):
        open_source(Source(str(broken)))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(InputError, match=r"empty\.jsonl: .*no rows"):
        open_source(Source(str(empty)))


def test_rows_that_lack_a_column_are_bad_rows(tmp_path):
    (window,) = windows([open_source(Source(str(write_jsonl(tmp_path / "a.jsonl", PAIRS))))], 30)
    with pytest.raises(ValueError, match="no rejected; expected prompt, chosen, rejected"):
        window.read({"prompt": "a", "chosen": "b"})
