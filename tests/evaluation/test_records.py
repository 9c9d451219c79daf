import datetime
import decimal
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import make_pairs, write_jsonl
from utils.data.comparison import Comparison
from utils.data.sources.names import parse_place
from utils.evaluation.forms import as_pair, as_scores, best_of_n
from utils.evaluation.line_file import LineFile, read_records
from utils.evaluation.records import (
    WINDOW,
    RowCounts,
    score_windows,
)
from utils.evaluation.rows import OpenSource, open_source
from utils.settings import InputError


class LengthScorer:
    """Scores an answer by its letters; tokens are letters. Not those of no or 60 letters."""

    def __init__(self):
        self.encoder = type("Encoder", (), {"end_ids": [2]})
        self.calls = []

    def __call__(self, comparisons):
        self.calls.append(len(comparisons))
        rows = []
        for c in comparisons:
            kept = [i for i, r in enumerate(c.responses) if 0 < len(r) < 60]
            rows.append(
                {
                    "answers": kept,
                    "input_ids": [[1, *map(ord, c.responses[i]), 2] for i in kept],
                    "answer_starts": [1] * len(kept),
                    "scores": [
                        float(len(r)) if i in kept else None for i, r in enumerate(c.responses)
                    ],
                    "prompt_key": hash(c.prompt),
                    "dropped": "" if kept else "empty answer",
                    "problem": "",
                    "unrendered": "",
                }
            )
        return rows


def records_of(path, start=0, form=None, scorer=None):
    found = score_windows(
        scorer or LengthScorer(), [open_source(parse_place(str(path)))], start, form
    )
    return [pair for part in found for pair in part]


def test_a_record_says_what_there_is_to_say(tmp_path):
    rows = [
        {"id": 7, "prompt": "Q", "responses": ["abc", "", "abc", "de"], "ranks": [1, 2, 3, 3]},
        {"id": None, "prompt": "Q", "responses": ["", "x" * 60], "ranks": [1, 2]},
        {"id": 9, "prompt": "R", "responses": "no list", "ranks": [1, 2]},
    ]
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    source = open_source(parse_place(str(path)))
    source = source._replace(rows=rows)  # a column of a file has one type, these rows not
    ((full, _), (empty, _), (bad, _)) = next(score_windows(LengthScorer(), [source], 0))
    assert full == {
        "index": 0,
        "source": "odd",
        "prompt": hash("Q"),
        "ranks": [0, 1, 2, 2],
        "scores": [3.0, None, 3.0, 2.0],
        "lengths": [3, None, 3, 2],
        "copies": [0, 1, 0, 3],
        "id": 7,
    }
    assert empty == {
        "index": 1,
        "source": "odd",
        "ranks": [],
        "scores": [],
        "dropped": "empty answer",
    }
    assert bad["dropped"] == "malformed"
    assert bad["problem"].startswith("responses is text, but no JSON")
    counts = RowCounts()
    counts.add([full, empty])
    counts.add([bad])
    assert str(counts) == (
        "3 rows, 1 scored, 1 dropped (empty answer), 1 dropped (malformed), 1 answers left out "
        "(empty or too long), first malformed: row 3: responses is text, but no JSON: "
        "Expecting value: line 1 column 1 (char 0)"
    )


def test_votes_are_kept(tmp_path):
    rows = [{"prompt": "Q", "chosen": "ab", "rejected": "c", "votes": [7, 3]}]
    ((record, _),) = records_of(write_jsonl(tmp_path / "votes.jsonl", rows))
    assert record["votes"] == [7, 3]


@pytest.mark.parametrize("start", [0, 1, WINDOW - 1, WINDOW, WINDOW + 5, 2 * WINDOW + 3])
def test_a_later_start_scores_in_the_same_batches(tmp_path, start):
    number = 2 * WINDOW + 3
    path = write_jsonl(tmp_path / "many.jsonl", make_pairs(number))
    everything, scorer = records_of(path), LengthScorer()
    assert [record["index"] for record, _ in everything] == list(range(number))
    assert records_of(path, start, scorer=scorer) == everything[start:]
    sizes = [WINDOW, WINDOW, 3]
    assert scorer.calls == sizes[start // WINDOW :] if start < number else not scorer.calls


SCORES = [None, 2.0, -1.0, 2.0, 0.5]
ANSWERS = ["none", "best", "worst", "as good", "middle"]


def test_data_made_with_scores():
    comparison = Comparison("Q", ANSWERS, [0] * 5, "s")
    assert best_of_n(comparison, SCORES) == {"prompt": "Q", "response": "best", "score": 2.0}
    assert as_pair(comparison, SCORES) == {
        "prompt": "Q",
        "chosen": "best",
        "rejected": "worst",
        "score_chosen": 2.0,
        "score_rejected": -1.0,
    }
    assert as_scores(comparison, SCORES) == {
        "prompt": "Q",
        "responses": ANSWERS[1:],
        "scores": SCORES[1:],
    }
    nothing = [None] * 5
    assert best_of_n(comparison, nothing) is None
    assert as_pair(comparison, nothing) is None
    assert as_scores(comparison, nothing) is None
    assert as_pair(comparison, [1.0] * 5) is None  # says nothing


def test_lines_of_a_form_name_their_row(tmp_path):
    rows = [{"prompt": "Q", "responses": a} for a in (["a", "bc"], ["", " " * 70], ["d", "e"])]
    path = write_jsonl(tmp_path / "answers.jsonl", rows)
    lines = [line for _, line in records_of(path, form=as_pair)]
    assert lines[0] == {
        "index": 0,
        "source": "answers",
        "prompt": "Q",
        "chosen": "bc",
        "rejected": "a",
        "score_chosen": 2.0,
        "score_rejected": 1.0,
    }
    assert lines[1:] == [None, None]


def test_a_file_goes_on_wherever_it_was_cut(tmp_path):
    """Cut at every byte: each line is there once in the end."""
    lines = [{"index": i, "text": "é" * (i % 3)} for i in (0, 1, 3, 7)]  # not each row has one
    path = tmp_path / "lines.jsonl"
    LineFile(path).write(lines)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        file = LineFile(path, resume=True)
        left = [line for line in lines if line["index"] >= file.start]
        assert len(left) == len(lines) - whole[:cut].count(b"\n")
        file.write(left)
        assert path.read_bytes() == whole
    assert LineFile(path, resume=False).start == 0
    assert path.read_bytes() == b""


def test_any_id_of_a_table_becomes_json(tmp_path):
    """What Parquet has and JSON has not becomes text; so does what holds it."""
    deep = 7
    for _ in range(5000):
        deep = [deep]
    for value, expected in (
        (datetime.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02 03:04:05"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(days=1), "1 day, 0:00:00"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=7), str(uuid.UUID(int=7))),
        (b"ab\xff", "b'ab\\xff'"),
        (float("-inf"), "-inf"),
        (2**80, 2**80),
        (True, True),
        (["a", {"b": None}], ["a", {"b": None}]),
        ([decimal.Decimal(2)], "[Decimal('2')]"),
        (deep, "[[[[...]]]]"),
    ):
        row = {"id": value, "prompt": "Q", "responses": ["a"], "ranks": [1]}
        source = OpenSource("p", "s", [row], read_first)
        (((record, _),),) = score_windows(LengthScorer(), [source], 0)
        assert record["id"] == expected and type(record["id"]) is type(expected)
        json.dumps(record, allow_nan=False)


def read_first(row, source):
    return Comparison(row["prompt"], row["responses"], row["ranks"], source)


def test_columns_of_a_parquet_file_of_other_types_are_read(tmp_path):
    table = pa.table(
        {
            "id": pa.array([4 * 10**15, 0], pa.timestamp("ms")),  # far beyond the year 9999
            "prompt": pa.array(["Q", "Q"]).dictionary_encode(),
            "responses": pa.array([["a", "bc"]] * 2, pa.list_(pa.large_string())),
            "scores": pa.array([[decimal.Decimal("0.5"), decimal.Decimal("1.5")]] * 2),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    records = [record for record, _ in records_of(tmp_path / "t.parquet")]
    assert [record["ranks"] for record in records] == [[1, 0]] * 2
    assert "4000000000000000" in records[0]["id"] and records[1]["id"] == "1970-01-01 00:00:00.000"
    LineFile(tmp_path / "lines.jsonl").write(records)
    assert list(read_records(tmp_path / "lines.jsonl")) == [records]


def test_the_first_rank_alone_writes(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "scores.jsonl", [{"index": 0}])
    path.write_text(path.read_text() + '{"ind')
    before = path.read_bytes()
    monkeypatch.setenv("RANK", "1")
    for resume in (False, True):
        file = LineFile(path, resume)
        file.write([{"index": 1}])
        assert list(file.read()) == [] and path.read_bytes() == before


def test_a_file_whose_last_line_is_another_ones_is_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    for line in ("garbage", "[1]", '{"a": 1}'):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match="its last line is none of an evaluation"):
            LineFile(path, resume=True)


def test_records_are_read_in_parts(tmp_path):
    lines = [{"index": i} for i in range(10)]
    path = write_jsonl(tmp_path / "scores.jsonl", lines)
    parts = list(read_records(path, size=4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [line for part in parts for line in part] == lines
