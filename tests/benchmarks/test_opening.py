"""Where the rows of a benchmark come from; how they are read has tests in test_layouts.py."""

import pytest

from tests.conftest import make_pairs, write_jsonl
from utils.benchmarks import layouts
from utils.benchmarks.layouts import Benchmark, open_benchmark
from utils.data.comparison import Comparison
from utils.data.sources.files import Rows, parse_row
from utils.evaluation.rows import windows
from utils.settings import InputError

PAIRS = make_pairs(23)


def read_name(row, source):
    return Comparison(row["prompt"], (row["chosen"], row["rejected"]), (0, 1), source)


@pytest.fixture
def open_at(monkeypatch):
    """Open a benchmark whose rows name no subset."""

    def open_at(path, **changes):
        options = {"hub": None, "split": None, "download": "it", "read": read_name}
        benchmark = Benchmark(**options | changes, score=dict)
        monkeypatch.setitem(layouts.PUBLIC_BENCHMARKS, "one", benchmark)
        return open_benchmark("one", path and str(path))

    return open_at


def test_files_of_a_benchmark_keep_their_place(tmp_path, open_at):
    for place in ("natural", "hard/one", "hard/two"):
        (tmp_path / place).mkdir(parents=True)
        write_jsonl(tmp_path / place / "dataset.jsonl", PAIRS[:3])
    (tmp_path / "notes.txt").write_text("not data")
    found = windows(open_at(tmp_path), 10)
    assert [window.read(parse_row(window.rows[0])).source for window in found] == [
        "hard/one/dataset",
        "hard/two/dataset",
        "natural/dataset",
    ]
    (alone,) = open_at(tmp_path / "natural/dataset.jsonl")
    assert alone.name == "dataset"
    write_jsonl(tmp_path / "natural" / "other.jsonl", [{**PAIRS[0], "subset": "not asked"}])
    *_, named = windows(open_at(tmp_path, files="other*"), 10)
    assert named.read(parse_row(named.rows[0])).source == "natural/other"  # whatever the row says


def test_a_benchmark_on_the_hub_has_its_split(tmp_path, monkeypatch, open_at):
    file = str(write_jsonl(tmp_path / "rows.jsonl", PAIRS))
    asked = []

    def open_splits(*place):
        asked.append(place)
        return {"filtered": Rows("some", (file,)), "raw": Rows("some", ())}

    monkeypatch.setattr(layouts, "open_splits", open_splits)
    (source,) = open_at("some/benchmark@v1", split="filtered")
    assert [parse_row(row) for row in source.rows] == PAIRS
    assert asked == [("some/benchmark", None, "v1")]
    assert open_at(None, hub="some/benchmark", split="raw")[0].path == "some/benchmark"
    with pytest.raises(InputError, match="has the splits filtered, raw; expected test"):
        open_at("some/benchmark", split="test")


def test_an_empty_benchmark_folder(tmp_path, open_at):
    with pytest.raises(InputError, match=r"no file \* that ends in \.json"):
        open_at(tmp_path)
