"""Paths as users give them: the home folder, wild cards, and folders that cannot be written to."""

import argparse
import errno
import os
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import make_pairs, write_jsonl
from utils.data.sources.files import open_splits, parse_row
from utils.data.sources.names import parse_sources
from utils.evaluation import settings as evaluation_arguments
from utils.evaluation.settings import parse_evaluation_arguments
from utils.output.files import check_folder
from utils.settings import InputError, user_path
from utils.training.folders import check_folders
from utils.training.settings import parse_training_arguments, training_parser

# What else flags take as it stands.
TEXTS = {"lora_module_name", "data_split", "columns", "prompt", "response"}
NAMES = ["a[b]", "{a,b}", "*", "?", "a b", "é日本", "a:b@c", "a::b", "[!x]*"]


def evaluation_parser():
    """The parser of rw_eval.py, which its module makes and does not hand out."""
    made = []

    class Kept(evaluation_arguments.FlagParser):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_arguments, "FlagParser", Kept)
        parse_evaluation_arguments(["--model_name_or_path", "m"])
    return made[0]


@pytest.mark.parametrize("parser", [training_parser, evaluation_parser])
def test_every_flag_that_takes_a_path_knows_the_home_folder(parser):
    actions = [a for a in parser()._actions if a.nargs != 0 and not a.choices and a.dest != "help"]
    texts = {action.dest for action in actions if action.type is None}
    assert texts <= TEXTS
    assert {"output_dir", "data_path", "model_name_or_path", "config", "chat_template"} <= {
        action.dest for action in actions if action.type is user_path
    }


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", make_pairs(2))
    values = {
        "data_path": ["~/a.jsonl:0.3", "b:0.7"],
        "output_dir": "~/out",
        "tensorboard_path": None,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    words = ["--model_name_or_path", "hub/name", "--config", "~/c.yaml", "--tensorboard_path=~"]
    args = parse_training_arguments(words)
    assert args.output_dir == f"{tmp_path}/out" and args.tensorboard_path == str(tmp_path)
    assert args.data_path == [f"{tmp_path}/a.jsonl:0.3", "b:0.7"]
    assert args.model_name_or_path == "hub/name"
    assert parse_evaluation_arguments(["--compare", "~/x", "y"]).compare == [f"{tmp_path}/x", "y"]
    (tmp_path / "mix.yaml").write_text("sources:\n- path: ~/a.jsonl\n- path: other/name\n")
    sources = parse_sources([str(tmp_path / "mix.yaml")], "--data_path")
    assert [source.path for source in sources] == [f"{tmp_path}/a.jsonl", "other/name"]


@pytest.mark.parametrize(
    ("text", "message"), [("~nobody-here/x", "there is no such user"), ("a\0b", "has a NUL byte")]
)
def test_what_is_no_path(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        user_path(text)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "is a file; expected a folder"),
        ("file/below", "stands below a file; expected a folder"),
        ("/dev/null/x", "stands below a file; expected a folder"),
        ("/proc/x", r"cannot be written to \(No such file or directory\)"),
        ("/dev/full", "is a file; expected a folder"),
        ("link", "is a file; expected a folder"),
        ("x" * 300, r"cannot be written to \(File name too long\)"),
    ],
)
def test_a_folder_that_cannot_be_written_to(tmp_path, place, reason):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = tmp_path / place
    with pytest.raises(InputError, match=f"--some_flag .*{reason}; give another folder"):
        check_folder(folder, "--some_flag")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_full_disk_shows_before_the_work(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full = open("/dev/full", "wb", 0)  # noqa: SIM115
        patch.setattr(tempfile, "TemporaryFile", lambda **options: full)
        with pytest.raises(InputError, match="--flag .*No space left on device"):
            check_folder(tmp_path / "new", "--flag")
    assert not (tmp_path / "new").exists()
    check_folder(tmp_path / "new", "--flag")
    assert not (tmp_path / "new").exists()  # nothing is left of a folder that was only tried


def test_the_folders_of_a_run_are_tried_by_the_ranks_that_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    bad, common = str(tmp_path / "file" / "x"), ["--model_name_or_path", "m"]
    out = ("--output_dir", str(tmp_path / "out"))
    for rank, words, flag in (
        (0, ["--output_dir", bad], "--output_dir"),
        (0, [*out, "--enable_tensorboard", "--tensorboard_path", bad], "--tensorboard_path"),
        (0, ["--output_dir", bad, "--dry_run"], None),
        (0, ["--output_dir", bad, "--estimate_memory"], None),
        (3, ["--output_dir", bad], None),  # the second rank of the second node
        (2, ["--output_dir", bad, "--use_node_local_storage"], "--output_dir"),
    ):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        args = parse_training_arguments([*common, *words])
        if flag is None:
            check_folders(args)
            continue
        with pytest.raises(InputError, match=f"{flag} .*stands below a file"):
            check_folders(args)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", NAMES)
def test_wild_cards_are_read_as_they_stand(tmp_path, place):
    """Beside a folder that the same pattern would match too."""
    folder = tmp_path / place / "data" / f"deep {place.replace('::', ':')}"
    folder.mkdir(parents=True)
    (tmp_path / "ab" / "data").mkdir(parents=True)
    write_jsonl(tmp_path / "ab" / "data" / "train.jsonl", make_pairs(9))
    rows = make_pairs(4)
    write_jsonl(folder.parent / "train.jsonl", rows[:2])
    write_jsonl(folder / "test.jsonl", rows[2:3])
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / place / f"{place}.parquet")
    table.to_pandas().to_csv(tmp_path / place / f"{place}.csv", index=False)

    splits = open_splits(str(folder.parent))
    found = {name: list(map(parse_row, part)) for name, part in splits.items()}
    assert found == {"train": rows[:2], "test": rows[2:3]}
    for end in ("parquet", "csv"):
        found = open_splits(str(tmp_path / place / f"{place}.{end}"))["train"]
        assert list(found) == rows


def test_what_is_no_data_file(tmp_path, monkeypatch):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (
        ("gone", "is a link to .*nowhere, which is not there"),
        ("null", "is a device or the like; expected a file or folder"),
        ("empty", "no rows"),
        ("folder", "folder.jsonl: cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            open_splits(str(tmp_path / f"{name}.jsonl"))["train"].columns()
    good = open_splits(str(write_jsonl(tmp_path / "good.jsonl", make_pairs(2))))["train"]

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(InputError, match="good.jsonl: cannot be read: Permission denied"):
        good.fingerprint()
