"""A run on conversations, from rows that a template does not write whole to the saved date."""

import json

import pytest

import rw_eval
from tests.conftest import (
    bot,
    save_language_model,
    train_opt_tokenizer,
    user,
    write_jsonl,
)
from tests.data.chat_styles import PLAIN
from tests.forking import run_program
from utils.evaluation.settings import parse_evaluation_arguments

CALL = {"function": {"name": "f", "arguments": {"time": 7}}}
DROPPED = "not rendered by the chat template"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny OPT; 20 rows of which two lose a part of an answer and one its tools; a template."""
    folder = tmp_path_factory.mktemp("chat")
    save_language_model(folder / "model", train_opt_tokenizer())
    rows = [
        {"prompt": [user(f"Is {i} even?")], "chosen": [bot(f"It is {i}.")], "rejected": [bot("No")]}
        for i in range(20)
    ]
    for row in rows[3:5]:
        row["chosen"] = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    rows[6]["tools"] = [CALL]
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(folder / "lost.jsonl", rows[3:5])
    (folder / "chat.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + PLAIN)
    return folder


def train(folder, *more):
    words = ("--model_name_or_path", folder / "model", "--chat_template", folder / "chat.jinja")
    words += ("--output_dir", folder / "out", "--data_output_path", folder / "cache")
    words += ("--max_seq_len", 96, "--max_steps", 1, "--save_interval", 1, *more)
    return run_program("main.py", *words)


def test_a_run_says_what_is_not_rendered_and_keeps_the_date(folder, capsys):
    done = train(folder, "--data_path", folder / "pairs.jsonl", "--chat_template_date=2001-02-03")
    assert done.returncode == 0, done.stderr
    assert f"20 comparisons, 18 kept, 2 dropped ({DROPPED})" in done.stdout
    said = " ".join(done.stdout.split())
    assert "the first is row 4, answer 1: tool_calls (assistant): give a template" in said
    assert f"1 rows lack a part of the prompt that is {DROPPED}; the first is row 7, tools" in said
    record = json.loads((folder / "out" / "training_args.json").read_text())
    assert record["arguments"]["chat_template_date"] == "2001-02-03"
    (count,) = record["data"]["train"].values()
    assert count["dropped"] == {DROPPED: 2} and count["unrendered"] == {"tools": 1}
    saved = (folder / "out" / "chat_template.jinja").read_text()
    assert "03 Feb 2001" in saved and "strftime_now" not in saved
    assert "writes 2001-02-03 as the date" in (folder / "out" / "README.md").read_text()

    words = ["--model_name_or_path", folder / "out", "--data_path", folder / "pairs.jsonl"]
    words += ["--output_dir", folder / "report"]
    rw_eval.main(parse_evaluation_arguments([str(word) for word in words]))
    said = " ".join(capsys.readouterr().out.split())
    assert f"20 rows, 18 scored, 2 dropped ({DROPPED}), 1 scored without tools, {DROPPED}" in said
    assert f"first {DROPPED}: row 4: answer 1: tool_calls (assistant): give a template" in said
    assert "does not say how it was trained" not in said and "today's date" not in said
    lines = [json.loads(line) for line in (folder / "report" / "scores.jsonl").open()]
    assert lines[3]["dropped"] == DROPPED and "tool_calls" in lines[3]["problem"]
    assert lines[6]["unrendered"] == "tools" and "unrendered" not in lines[7]

    data = ("--data_path", folder / "pairs.jsonl", "--resume_from_checkpoint", "latest")
    done = train(folder, *data, "--chat_template_date", "2001-02-04")
    assert done.returncode == 2
    assert "was written with --chat_template_date 2001-02-03, but this run has" in done.stderr


def test_the_cause_is_named_where_nothing_is_left(folder):
    data = ("--data_path", folder / "lost.jsonl", "--eval_data_path", folder / "pairs.jsonl")
    done = train(folder, *data, "--overwrite_output_dir")
    assert done.returncode == 2
    assert f"no usable comparison in {folder}/lost.jsonl" in done.stderr
    assert f"since a part of an answer is {DROPPED}; the first is row 1, answer 1" in done.stderr
