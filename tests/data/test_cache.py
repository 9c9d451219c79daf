import csv
import gzip
import hashlib
import json
import os
import signal
import string
import subprocess
import sys

import datasets
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from tests.conftest import ROOT, make_pairs, write_jsonl
from tests.data.loading import load, make_encoder
from utils.data import cache
from utils.data.cache import SplitTokenizer
from utils.data.comparison import Comparison
from utils.settings import InputError

AWKWARD = [
    {"prompt": 'Q, with "quotes" and\nlines:', "chosen": " NA", "rejected": "null"},
    {"prompt": "Naïve 😀?", "chosen": "NA", "rejected": " it's, well, </s>"},
]
SCORED = [
    {
        "prompt": [{"role": "user", "content": f"Why {i}?"}],
        "responses": ["a", "b", "c", f"d{i}"],
        "scores": [1.0, 2.5, float(i), 1.0],
    }
    for i in range(5)
]


@pytest.fixture
def encoder(opt_tokenizer):
    return make_encoder(opt_tokenizer)


def write_rows(path, rows):
    if path.suffix == ".gz":
        plain = write_rows(path.with_suffix(""), rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize(
    ("rows", "ending"),
    [
        (rows, ending)
        for rows in (AWKWARD + make_pairs(8), SCORED)
        for ending in ("json", "json.gz", "jsonl.gz", "parquet", "csv", "csv.gz")
        if rows is not SCORED or "csv" not in ending
    ],
)
def test_file_and_folder_equal_jsonl(tmp_path, encoder, rows, ending):
    (tmp_path / "folder" / "rows").mkdir(parents=True)
    expected = load(write_jsonl(tmp_path / "rows.jsonl", rows), encoder, tmp_path)
    assert len(expected["train"]) == len(rows) and set(expected) == {"train"}
    file = write_rows(tmp_path / f"rows.{ending}", rows)
    assert load(file, encoder, tmp_path) == expected
    # "rows" again, so that the source has the same name.
    write_rows(tmp_path / "folder" / "rows" / f"train.{ending}", rows)
    write_rows(tmp_path / "folder" / "rows" / f"test.{ending}", rows[:2])
    splits = load(tmp_path / "folder" / "rows", encoder, tmp_path)
    assert splits == {"train": expected["train"], "test": expected["train"][:2]}


def test_csv_answers_that_look_like_numbers_are_text(tmp_path, encoder):
    rows = [{"prompt": "1 + 1 =", "chosen": "2", "rejected": "03"}]
    expected = load(write_jsonl(tmp_path / "rows.jsonl", rows), encoder, tmp_path)
    assert load(write_rows(tmp_path / "rows.csv", rows), encoder, tmp_path) == expected


def test_two_workers_give_the_rows_of_one(tmp_path, encoder, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", make_pairs(29))
    expected = load(path, encoder, tmp_path / "one")
    monkeypatch.setattr(cache, "CHUNK_ROWS", 2)  # pieces, which come back in some order
    assert load(path, encoder, tmp_path / "two", num_workers=2) == expected


CHANGES = {
    "nothing": {},
    "time of the file": {},
    "max_seq_len": {"max_seq_len": 20},
    "chat template": {"template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    "score position": {"score_position": "first_pad"},
    "content": {},
    "padding token": {},
    "bos token of the template": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_cache_is_used_until_something_changes(tmp_path, opt_tokenizer, monkeypatch, change):
    path = write_jsonl(tmp_path / "rows.jsonl", SCORED)
    settings = {"template": "{{ bos_token }}{{ messages }}", "score_position": "end"}
    if change == "padding token":
        settings["score_position"] = "first_pad"
    first = load(path, make_encoder(opt_tokenizer, **settings), tmp_path)
    if change == "content":  # neither its size nor its time tells
        before = path.stat()
        write_jsonl(path, [*SCORED[1:], SCORED[0]])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time of the file":
        os.utime(path, (0, 0))
    elif change == "padding token":
        opt_tokenizer.pad_token = "<s>"
    elif change == "bos token of the template":
        opt_tokenizer.bos_token = "<s>"
    encoder = make_encoder(opt_tokenizer, **{**settings, **CHANGES[change]})
    monkeypatch.setattr(SplitTokenizer, "table", lambda *_: 1 / 0)
    if change in ("nothing", "time of the file"):
        assert load(path, encoder, tmp_path) == first
    else:
        with pytest.raises(ZeroDivisionError):
            load(path, encoder, tmp_path)


KILLED = """
import os, signal, sys
from tests.conftest import train_opt_tokenizer
from tests.data.loading import load, make_encoder
from utils.data import cache
from pathlib import Path
cache.CHUNK_ROWS = 5
table, left = cache.SplitTokenizer.table, [3]
def die(*words):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return table(*words)
cache.SplitTokenizer.table = die
load(sys.argv[1], make_encoder(train_opt_tokenizer()), Path(sys.argv[2]))
"""


def test_a_killed_start_leaves_nothing_that_is_taken_for_whole(tmp_path, encoder):
    path = write_jsonl(tmp_path / "rows.jsonl", make_pairs(29))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (partial,) = (tmp_path / "cache").glob("*.partial")  # some of it was written
    assert not list((tmp_path / "cache").glob("*.arrow"))
    rows = load(path, encoder, tmp_path)["train"]
    assert [row["index"] for row in rows] == list(range(29))
    assert rows == load(path, encoder, tmp_path / "other")["train"]
    assert not partial.exists()


def test_a_killed_worker_is_an_error_that_names_the_flag(tmp_path, encoder, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", make_pairs(29))
    monkeypatch.setattr(SplitTokenizer, "table", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match="fewer --num_workers"):
        load(path, encoder, tmp_path, num_workers=2)
    monkeypatch.undo()
    assert len(load(path, encoder, tmp_path)["train"]) == 29


def test_pieces_of_work_are_bounded_in_rows_and_bytes(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_ROWS", 4)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 100)
    rows = [b"x" * size for size in (1, 1, 1, 1, 1, 90, 30, 300, 5)]
    chunks = list(cache._chunks(rows))
    assert [(first, len(chunk)) for first, chunk in chunks] == [(0, 4), (4, 3), (7, 1), (8, 1)]
    assert [row for _, chunk in chunks for row in chunk] == rows


FORMATS = {2: "ab2cfc529c5093b0"}  # FORMAT -> a hash of the rows below


def test_other_token_rows_have_another_format():
    """A cache that was written with other rows must not be taken for one of this version."""
    words = ["<s>", "</s>", "<pad>", "<unk>", *string.ascii_lowercase, ":", "."]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = Split(" ", "removed")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    template = "{% for m in messages %} {{ m['role'][0] }} : {{ m['content'] }}{% endfor %}"

    asked = [{"role": "user", "content": "q r"}]
    said = [[{"role": "assistant", "content": text}] for text in ("a b", "c")]
    comparisons = [
        Comparison("q r", (" a b", " c"), (0, 1), source="pair", weight=0.5),
        Comparison("q", (" a", "", " b c"), (2, 0, 1), source="ranked", grades=(1.0, 4.0, 3.0)),
        Comparison("q", (" a", " b"), (0, 0), source="tied", votes=(1.0, 1.0)),
        Comparison("q", (" a", " a"), (0, 1), source="identical"),
        Comparison("q r s t u v w x y z " * 2 + "q", (" a b", " c"), (0, 1), source="cut"),
        Comparison("q", (" a", " b" * 40), (0, 1), source="long"),
        Comparison(asked, said, (0, 1), source="messages"),
    ]
    digest = hashlib.blake2b(digest_size=8)
    for settings in ({}, {"overlength": "truncate_end"}, {"score_position": "first_pad"}):
        encoder = make_encoder(tokenizer, template, max_seq_len=16, **settings)
        for row in encoder.rows(comparisons):
            digest.update(json.dumps(row, sort_keys=True).encode())
    message = (
        "token rows changed: raise FORMAT in cache.py, and write down the hash of the new rows"
    )
    assert FORMATS.get(cache.FORMAT) == digest.hexdigest(), message
