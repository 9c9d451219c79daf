"""rw_eval.py as people run it; what it computes has tests of its own in evaluation/."""

import io
import json
import re
import signal
import subprocess
import sys

import pytest
import torch

import rw_eval
from tests.conftest import (
    ROOT,
    TEXTS,
    TOO_LONG,
    make_pairs,
    save_language_model,
    train_opt_tokenizer,
    write_jsonl,
)
from tests.forking import run_program
from utils.benchmarks import layouts
from utils.data.formats.layouts import find_reader
from utils.evaluation import settings
from utils.evaluation.settings import parse_evaluation_arguments
from utils.model import pretrained
from utils.settings import InputError

STATISTICS = {"mean": 0.25, "std": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with random weights, and rows for it."""
    folder = tmp_path_factory.mktemp("rw_eval")
    tokenizer = train_opt_tokenizer()
    base = save_language_model(folder / "base", tokenizer)
    torch.manual_seed(0)
    model, _ = pretrained.load_model(
        str(base), pretrained.load_config(str(base)), tokenizer, new_head=True
    )
    settings = {"end_token": "</s>", "max_seq_len": 96}
    weights = model.model.state_dict()
    pretrained.save_model(
        model, weights, tokenizer, settings, str(folder / "model"), score_statistics=STATISTICS
    )
    write_jsonl(folder / "pairs.jsonl", make_pairs(30))
    ranked = [
        {"prompt": pair["prompt"], "responses": [pair["rejected"], *TEXTS[:2]], "ranks": [2, 1, 3]}
        for pair in make_pairs(20)
    ]
    write_jsonl(folder / "ranked.jsonl", ranked)
    return folder


@pytest.fixture
def evaluate(folder, capsys):
    """Run rw_eval.py in this process; returns what it printed."""

    def run(*words):
        given = ["--model_name_or_path", folder / "model", *words]
        rw_eval.main(parse_evaluation_arguments([str(word) for word in given]))
        return capsys.readouterr()

    return run


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_lists_of_benchmarks_agree():
    assert tuple(layouts.PUBLIC_BENCHMARKS) == settings.BENCHMARKS


def test_a_report_of_several_files(folder, tmp_path, evaluate):
    data = (folder / "pairs.jsonl", folder / "ranked.jsonl")
    said = evaluate("--data_path", *data, "--output_dir", tmp_path / "out").out
    assert "50 rows, 50 scored" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"scores.jsonl", "report.json", "report.md", "scores.png", "sources.png"} <= names
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["results"]) == ["pairs", "ranked", "all"]
    assert report["rows"]["read"] == 50
    lines = read_lines(tmp_path / "out" / "scores.jsonl")
    assert [line["index"] for line in lines] == list(range(50))
    right = sum(line["scores"][0] > line["scores"][1] for line in lines[:30])
    assert report["results"]["pairs"]["accuracy"] == right / 30


def test_what_is_there_is_not_lost(folder, tmp_path, evaluate):
    words = ("--data_path", folder / "pairs.jsonl", "--output_dir", tmp_path)
    evaluate(*words)
    before = (tmp_path / "scores.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds an evaluation already: give --resume"):
        evaluate(*words)
    with pytest.raises(InputError, match=r"cannot go on, --dtype was fp32 and is bf16"):
        evaluate(*words, "--resume", "--dtype", "bf16")
    assert (tmp_path / "scores.jsonl").read_bytes() == before
    evaluate(*words, "--overwrite_output_dir", "--normalize")
    for new, old in zip(read_lines(tmp_path / "scores.jsonl"), before.splitlines(), strict=True):
        plain = [(s - STATISTICS["mean"]) / STATISTICS["std"] for s in json.loads(old)["scores"]]
        assert new["scores"] == pytest.approx(plain)


@pytest.mark.parametrize("kept", [0, 1, 17, 49, 50])
def test_a_cut_run_goes_on(folder, tmp_path, evaluate, kept):
    """From any line, also a broken one: the same lines and the same report."""
    data = ("--data_path", folder / "pairs.jsonl", folder / "ranked.jsonl")
    evaluate(*data, "--output_dir", tmp_path / "whole")
    whole = (tmp_path / "whole" / "scores.jsonl").read_bytes()
    evaluate(*data, "--output_dir", tmp_path / "cut")
    lines = whole.splitlines(keepends=True)
    (tmp_path / "cut" / "scores.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"index": 17, "s')
    evaluate(*data, "--output_dir", tmp_path / "cut", "--resume")
    assert (tmp_path / "cut" / "scores.jsonl").read_bytes() == whole
    reports = [(tmp_path / name / "report.json").read_text() for name in ("whole", "cut")]
    # Sums in another order differ by rounding.
    first, second = (json.loads(r, parse_float=lambda t: round(float(t), 9)) for r in reports)
    assert first == second


# rw_eval.py that sends itself a signal once it has written lines, or once it loads the model.
ENDS = """
import os
from utils.evaluation.line_file import LineFile
from utils.model import pretrained
owner, name = (LineFile, "write") if place == "write" else (pretrained, "load_model")
real = getattr(owner, name)
def end(*args, **options):
    result = real(*args, **options)
    os.kill(os.getpid(), number)
    return result
setattr(owner, name, end)
"""


def test_killed_or_stopped_and_resumed(folder, tmp_path):
    """While rows are scored; the same file in the end. Each signal comes in the first window."""
    path = write_jsonl(tmp_path / "many.jsonl", make_pairs(60) * 10)
    flags = ("--model_name_or_path", folder / "model", "--data_path", path, "--output_dir")
    whole = run_program("rw_eval.py", *flags, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    scores = cut / "scores.jsonl"

    def end(place, number, *more):
        code = f"place, number = {place!r}, {int(number)}\n{ENDS}"
        return run_program("rw_eval.py", *flags, cut, *more, code=code)

    # Before the first line nothing is there to go on with, nor to lose.
    done = end("load", signal.SIGTERM)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "stopped; nothing was written")
    done = end("write", signal.SIGINT)
    said = f"stopped; {scores} has 512 lines, and --resume goes on"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, said)
    assert "Traceback" not in done.stderr
    done = end("write", signal.SIGKILL, "--overwrite_output_dir")
    assert done.returncode == -signal.SIGKILL
    assert scores.read_bytes().count(b"\n") == 512
    done = run_program("rw_eval.py", *flags, cut, "--resume")
    assert done.returncode == 0, done.stderr
    assert scores.read_bytes() == (tmp_path / "whole" / "scores.jsonl").read_bytes()
    assert [line["index"] for line in read_lines(scores)] == list(range(600))


def test_two_processes_write_what_one_does(folder, tmp_path, evaluate):
    data = ("--data_path", folder / "ranked.jsonl", "--output_dir")
    evaluate(*data, tmp_path / "one")
    done = run_program(
        *("rw_eval.py", "--model_name_or_path", folder / "model", *data, tmp_path / "two"),
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 rows, 20 scored") == 1
    one, two = (read_lines(tmp_path / name / "scores.jsonl") for name in ("one", "two"))
    for line, other in zip(one, two, strict=True):
        assert other.pop("scores") == pytest.approx(line.pop("scores"), abs=1e-6)
        assert other == line


def test_a_model_in_parts_gives_the_same_scores(folder, tmp_path, evaluate, monkeypatch):
    """accelerate's device map, with layers in files; a GPU is not needed for that."""
    data = ("--data_path", folder / "ranked.jsonl", "--output_dir")
    evaluate(*data, tmp_path / "whole")
    evaluate(*data, tmp_path / "auto", "--device_map", "auto")
    places = dict.fromkeys(("model.decoder.layers.1", "score"), "cpu") | {
        f"model.decoder.{name}": "disk"
        for name in ("embed_tokens", "embed_positions", "layers.0", "project_in", "project_out")
    }
    load_model = pretrained.load_model
    monkeypatch.setattr(
        pretrained,
        "load_model",
        lambda *args, **named: load_model(*args, **{**named, "device_map": places}),
    )
    evaluate(*data, tmp_path / "disk", "--device_map", "auto")
    whole = read_lines(tmp_path / "whole" / "scores.jsonl")
    for name in ("auto", "disk"):
        for line, other in zip(whole, read_lines(tmp_path / name / "scores.jsonl"), strict=True):
            assert other["scores"] == pytest.approx(line["scores"], abs=1e-6)


@pytest.mark.parametrize("form", ["best_of_n", "as_pairs", "as_scores"])
def test_a_pipeline(folder, tmp_path, form):
    """Rows in, nothing but rows out; main.py's readers take pairs and scores."""
    rows = [{"prompt": f"Q{i}", "responses": [f"a {i}", "b", "c c"]} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(
        [sys.executable, "rw_eval.py", "--model_name_or_path", folder / "model", "--data_path", "-"]
        + [f"--{form}"],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
    )
    assert done.returncode == 0, done.stderr
    assert "5 rows, 5 scored, 5 lines written" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["index"], line["prompt"]) for line in lines] == [(i, f"Q{i}") for i in range(5)]
    if form != "best_of_n":
        comparison = find_reader(list(lines[0]), "piped")(lines[0], "piped")
        assert len(set(comparison.ranks)) == len(comparison.responses)


@pytest.mark.parametrize("words", [["--interactive"], ["--data_path", "-"]])
def test_processes_do_not_share_standard_input(evaluate, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes cannot share standard input"):
        evaluate(*words)


def test_a_cut_pipeline_goes_on(folder, tmp_path, evaluate):
    data = ("--data_path", folder / "ranked.jsonl", "--as_pairs", "--output_dir", tmp_path)
    evaluate(*data)
    path = tmp_path / "as_pairs.jsonl"
    whole = path.read_bytes()
    assert whole.count(b"\n") == 20
    path.write_bytes(whole[: len(whole) // 2])
    said = evaluate(*data, "--resume").out
    assert path.read_bytes() == whole
    assert f"lines written to {path}" in said


def test_best_answers_are_those_of_the_scores(folder, tmp_path, evaluate):
    evaluate("--data_path", folder / "ranked.jsonl", "--output_dir", tmp_path / "scores")
    evaluate("--data_path", folder / "ranked.jsonl", "--best_of_n", "--output_dir", tmp_path)
    rows = read_lines(folder / "ranked.jsonl")
    scored = read_lines(tmp_path / "scores" / "scores.jsonl")
    for row, line, best in zip(rows, scored, read_lines(tmp_path / "best_of_n.jsonl"), strict=True):
        place = row["responses"].index(best["response"])
        assert line["scores"][place] == max(line["scores"]) == best["score"]


def test_interactive(folder, evaluate, monkeypatch):
    typed = "Human: What is a lighthouse? Assistant:\nA tower.\nNo idea.\n\nNew?\n" + "x " * 99
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    said = evaluate("--interactive").out
    words = ("--prompt", "Human: What is a lighthouse? Assistant:", "--response", "A tower.")
    table = evaluate(*words, "--response", "No idea.").out
    assert table.strip() in said
    assert said.count("prompt> ") == 3
    assert "not scored: it has more than 96 tokens" in said


def test_built_in_prompts(evaluate):
    said = evaluate("--max_seq_len", 256).out
    scores = re.findall(r"^ (?:good|bad) .* (\S+\.\d{4}) *$", said, re.M)
    pairs = [(float(good), float(bad)) for good, bad in (scores[:2], scores[2:])]
    expected = ["above" if good > bad else "NOT above" for good, bad in pairs]
    assert re.findall(r"^good answer (.*) the bad one$", said, re.M) == expected


@pytest.mark.parametrize("answer", ["", " ", "word " * 99])
def test_a_given_answer_without_a_score_is_an_error(evaluate, answer):
    with pytest.raises(InputError, match="is empty or has more than 96 tokens: .*--response"):
        evaluate("--prompt", "Q", "--response", "fine", "--response", answer)


def test_a_benchmark(folder, tmp_path, evaluate):
    rows = [
        {"input": "Q", "output_1": "one", "output_2": f"two {i}", "label": 1 + i % 2}
        for i in range(6)
    ]
    for place in ("Natural", "Adversarial/Neighbor"):
        (tmp_path / "LLMBar" / place).mkdir(parents=True)
        (tmp_path / "LLMBar" / place / "dataset.json").write_text(json.dumps(rows))
        (tmp_path / "LLMBar" / place / "result.json").write_text(json.dumps(rows))
    words = ("--benchmark", "llmbar", "--data_path", tmp_path / "LLMBar")
    said = evaluate(*words, "--output_dir", tmp_path / "out").out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    lines = read_lines(tmp_path / "out" / "scores.jsonl")
    assert len(lines) == 12
    right = sum(line["scores"][0] > line["scores"][1] for line in lines[6:])
    assert report["benchmark"]["sections"]["Natural"] == right / 6
    assert "Natural" in said
    with pytest.raises(InputError, match=r"llmbar is not on the hub.*download.*--data_path"):
        evaluate("--benchmark", "llmbar")


def test_two_models_side_by_side(folder, tmp_path, evaluate, capsys):
    data = ("--data_path", folder / "pairs.jsonl", "--output_dir")
    evaluate(*data, tmp_path / "a")
    evaluate(*data, tmp_path / "b", "--score_position", "mean")
    words = ["--compare", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path / "c"]
    rw_eval.main(parse_evaluation_arguments([str(word) for word in words]))  # without a model
    assert "McNemar" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"compare.json", "compare.md"}
    with pytest.raises(InputError, match="holds a comparison already"):
        rw_eval.main(parse_evaluation_arguments([str(word) for word in words]))


def test_normalising_needs_statistics(folder, tmp_path, evaluate):
    config = pretrained.load_config(str(folder / "model"))
    del config.score_statistics
    config.save_pretrained(tmp_path)
    for path in (folder / "model").iterdir():
        if path.name != "config.json" and path.is_file():
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="has no score_statistics.*--normalize"):
        evaluate(
            "--normalize", "--prompt", "Q", "--response", "a", "--model_name_or_path", tmp_path
        )


def test_nothing_to_score_is_an_error(tmp_path, evaluate):
    path = write_jsonl(tmp_path / "empty.jsonl", [{"prompt": "Q", "responses": [" ", ""]}])
    with pytest.raises(InputError, match=r"empty\.jsonl: no row has an answer to score"):
        evaluate("--data_path", path)
