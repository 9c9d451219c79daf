import gzip
import json

import pytest

from tests.conftest import make_pairs, write_jsonl
from utils.data.sources import files
from utils.data.sources.files import Rows, find_columns, open_splits, parse_row, train_and_test
from utils.settings import InputError

PAIRS = make_pairs(4)
GOOD = [json.dumps(row).encode() for row in PAIRS]
FAULTS = {
    "no JSON": (b'{"prompt": "Q", "chosen": oops}', "Expecting value; expected one JSON object"),
    "cut off": (b'{"prompt": "Q", "chosen": "a', "Unterminated string"),
    "no object": (b"5", "found int; expected one JSON object a line"),
    "a list": (b'["Q", "a", "b"]', "found list; expected one JSON object a line"),
    "no UTF-8": (b'{"prompt": "Q\xff"}', "invalid start byte; expected UTF-8"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "many digits": (b'{"a": ' + b"1" * 5000 + b"}", "integer string conversion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_line_is_a_bad_row_and_the_others_are_read(tmp_path, fault):
    line, message = FAULTS[fault]
    content = b"\n".join([*GOOD[:2], b"", line, *GOOD[2:]])
    (tmp_path / "rows.jsonl").write_bytes(content)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        rows = list(open_splits(str(tmp_path / name))["train"])
        assert [parse_row(row) for row in (*rows[:2], *rows[3:])] == PAIRS
        with pytest.raises(ValueError, match=message):
            parse_row(rows[2])


def test_a_line_of_any_length_takes_a_row_and_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 200)
    long = [b'{"a": "' + b"x" * size + b'"}' for size in (150, 191, 192, 193, 399, 5000)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([long[0], *long, GOOD[0]]))
    rows = list(Rows(str(path), (str(path),)))
    assert len(rows) == 8 and max(map(len, rows)) <= 201
    assert rows[-1] == GOOD[0] and rows[:3] == [row + b"\n" for row in (long[0], *long[:2])]
    for row in rows[3:-1]:
        if len(row) > 200:
            with pytest.raises(ValueError, match="longer than"):
                parse_row(row)
    assert sum(len(row) > 200 for row in rows) >= 3


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, text in (("a.jsonl", GOOD[0]), ("b.json", b"[" + GOOD[0] + b"]")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
        (row,) = open_splits(str(tmp_path / name))["train"]
        assert parse_row(row) == PAIRS[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n{"a": oops}]', "line 2: Expecting value; expected a list of JSON objects"),
        (b'[{"a": 1},\n\n{"a": "\xff"}]', "line 3: invalid start byte"),
        (b"[" * 100_000, "line 1: nested too deeply"),
    ],
)
def test_an_array_is_read_whole_or_not_at_all(tmp_path, content, message):
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(open_splits(str(tmp_path / "rows.json"))["train"])
    assert str(tmp_path / "rows.json") in str(caught.value)


def test_elements_of_an_array_that_are_no_objects_are_bad_rows(tmp_path):
    (tmp_path / "rows.json").write_text('[{"a": 1}, 5, {"a": 2}]')
    rows = list(open_splits(str(tmp_path / "rows.json"))["train"])
    with pytest.raises(ValueError, match="found int"):
        parse_row(rows[1])
    assert [parse_row(row) for row in rows[::2]] == [{"a": 1}, {"a": 2}]


def test_columns_are_those_of_the_first_rows_together():
    rows = [b"oops", b'{"a": 1}', {"b": 1}, b'{"a": 1, "c": 2}']
    assert find_columns(rows, "file") == ["a", "b", "c"]
    with pytest.raises(InputError, match="file: no rows"):
        find_columns([], "file")
    with pytest.raises(InputError, match="file: row 1: Expecting value"):
        find_columns([b"oops", b"[]"], "file")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    def fingerprint(*contents):
        paths = [tmp_path / f"{number}.jsonl" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content)
        return Rows("x", tuple(map(str, paths))).fingerprint()

    seen = [fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("c", "ab"), fingerprint("")]
    assert len(set(seen)) == 4
    assert fingerprint("ab", "c") == seen[0]


def test_splits_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "train-00.jsonl", PAIRS[:1])
    write_jsonl(tmp_path / "train-01.jsonl", PAIRS[1:2])
    write_jsonl(tmp_path / "test.jsonl", PAIRS[2:])
    splits = open_splits(str(tmp_path))
    read = {name: [parse_row(row) for row in rows] for name, rows in splits.items()}
    assert read == {"train": PAIRS[:2], "test": PAIRS[2:]}
    train, test = train_and_test(splits, "x")
    assert (train, test) == (splits["train"], splits["test"])
    assert train_and_test(splits, "x", "test") == (splits["test"], None)
    with pytest.raises(InputError, match="x: has the splits train, test; expected one named other"):
        train_and_test(splits, "x", "other")


def test_nothing_that_could_run_code_is_read(tmp_path):
    (tmp_path / "rows.pkl").write_bytes(b"\x80\x04.")
    for path in (tmp_path / "rows.pkl", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            open_splits(str(path))


CARD = """---
configs:
- config_name: helpful
  data_files: helpful/*.jsonl
- config_name: harmless
  data_files:
  - {split: train, path: harmless/old.jsonl}
  - {split: test, path: harmless/new.jsonl}
---
"""


def write_clone(folder, card=CARD):
    """A folder whose README lists configurations; returns the rows of each file."""
    rows = {}
    for number, name in enumerate(("helpful/a", "helpful/b", "harmless/old", "harmless/new")):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows[name] = PAIRS[number : number + 1]
        write_jsonl(path, rows[name])
    (folder / "README.md").write_text(card)
    return rows


def test_configurations_of_a_local_folder(tmp_path):
    rows = write_clone(tmp_path)

    def read(subset):
        splits = open_splits(str(tmp_path), subset)
        return {name: [parse_row(row) for row in split] for name, split in splits.items()}

    assert read("helpful") == {"train": rows["helpful/a"] + rows["helpful/b"]}
    assert read("harmless") == {"train": rows["harmless/old"], "test": rows["harmless/new"]}
    for subset in (None, "other"):
        with pytest.raises(InputError, match="configurations helpful, harmless") as caught:
            read(subset)
        assert f"{tmp_path}#helpful or with `subset: helpful` in a YAML file" in str(caught.value)
    write_clone(tmp_path, CARD.replace("harmless\n", "harmless\n  default: true\n", 1))
    assert read(None) == read("harmless")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# no front matter\n", "has no configurations: leave #helpful out"),
        ("---\nconfigs: [\n---\n", "README.md has no readable front matter: while parsing"),
        ("---\nconfigs: 5\n---\n", "cannot be read: Expected configs to be a list"),
    ],
)
def test_a_card_that_lists_no_configurations(tmp_path, card, message):
    write_clone(tmp_path, card)
    with pytest.raises(InputError, match=message):
        open_splits(str(tmp_path), "helpful")


def test_a_file_has_no_configurations(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    with pytest.raises(InputError, match="rows.jsonl#part: a file has no configurations"):
        open_splits(str(path), "part")


@pytest.mark.parametrize("path", ["./x", "../x/y", "/no/where", "~/x", "rows.jsonl", "a/b c"])
def test_what_can_be_no_name_on_the_hub_is_a_missing_path(path):
    with pytest.raises(InputError, match="no such file or folder .* and no name of a data set"):
        open_splits(path)


@pytest.mark.parametrize("path", ["data/pairs", "pairs", "a/b/c", "a/b/c/d"])
def test_both_readings_of_a_name_are_said(path):
    with pytest.raises(InputError, match="neither a local path nor, on the hub, .*OFFLINE") as said:
        open_splits(path)
    assert ("the folder c" in str(said.value)) == path.startswith("a/b/c")
