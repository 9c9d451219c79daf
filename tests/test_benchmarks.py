"""The benchmarks run; what they measure is for people to read."""

import json
import os
import shutil
import sys
import time

import psutil
import pytest
import torch

from benchmarks import consumers, quality, servers
from benchmarks.accuracy_over_time import accuracy_at, tabulate
from benchmarks.contestants import Contestant
from tests.conftest import flags, run_command, save_language_model
from tests.forking import run_program
from utils.model import pretrained


def test_throughput_runs_the_layouts_on_the_same_comparisons(tmp_path):
    output = tmp_path / "figures.json"
    shape = ("--hidden_size", 64, "--num_layers", 1, "--batch_size", 3, "--max_seq_len", 256)
    done = run_command(
        *("python", "benchmarks/throughput.py", *shape, "--rounds", 2, "--output", output)
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    for number, results in enumerate(figures["rounds"]):
        maximum, longest, kept, unshared, packed = results.values()
        assert {result["comparisons"] for result in results.values()} == {3}
        assert maximum["tokens"] == 2 * 3 * 256
        assert maximum["tokens"] > longest["tokens"] > packed["tokens"] > 0, number
        assert kept["tokens"] == longest["tokens"] > unshared["tokens"] > packed["tokens"]
        assert maximum["model_flops"] > packed["model_flops"] > 0
    for name, line in figures["summary"].items():
        assert f"| {name} | {line['seconds_per_step']:.2f} |" in done.stdout
        assert line["peak_gib"] > line["step_gib"] > 0
    packed = figures["summary"]["packed"]
    assert packed["packed_is_faster_by"] == 1
    seconds = [results["packed"]["seconds"] for results in figures["rounds"]]
    assert packed["seconds_per_step"] == pytest.approx(sum(seconds) / 2)
    assert all(share > 0 for share in figures["packed"].values())


def answer_and_die(pipe):
    pipe.send("ready")
    pipe.send(2 * pipe.recv())
    pipe.recv()
    os._exit(3)


def test_a_contestant_that_dies_is_named():
    contestant = Contestant("packed", answer_and_die)
    assert contestant.answer() == "ready"
    assert contestant.ask(21) == 42

    death = r"^packed: ended with exit code 3 "
    for message in ("the one it dies of", "one that nobody hears"):
        with pytest.raises(SystemExit, match=death):
            contestant.ask(message)
    with pytest.raises(SystemExit, match=death):
        contestant.answer()


def test_scoring_times_contestants_whose_scores_agree(tmp_path):
    output = tmp_path / "figures.json"
    shape = ("--hidden_size", 64, "--num_layers", 1, "--comparisons", 3, "--rounds", 1)
    sizes = ("--pipeline_batch_sizes", 1, 2)
    done = run_command("python", "benchmarks/scoring.py", *shape, *sizes, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr

    summary = json.loads(output.read_text())["summary"]
    assert list(summary) == ["rw_eval.py", "pipeline, batches of 1", "pipeline, batches of 2"]
    for name, line in summary.items():
        assert f"| {name} | {line['answers_per_second']:.1f} |" in done.stdout


def test_accuracy_at_a_time_is_that_of_the_evaluation_before():
    curve = [{"seconds": 0.0, "accuracy": 0.5}, {"seconds": 2.0, "accuracy": 0.6}]
    assert [accuracy_at(curve, seconds) for seconds in (0, 1.9, 2, 99)] == [0.5, 0.5, 0.6, 0.6]


def test_table_of_accuracies_has_means_and_intervals():
    results = [
        {"trainer": trainer, "seed": seed, "step": i, "seconds": seconds * i, "accuracy": accuracy}
        for trainer, seconds, last in (("packed", 10.0, 0.8), ("TRL", 90.0, 0.7))
        for seed in (1, 2, 3)
        for i, accuracy in enumerate((0.5, last + seed / 100))
    ]
    lines = tabulate(results).splitlines()
    # Seeds at 0.81, 0.82, 0.83: mean 0.82, half an interval 4.30 * 0.01 / sqrt(3).
    end = "| packed, after one epoch | 10 | 0.8200 ± 0.0248 | 0.8100, 0.8200, 0.8300 |"
    assert lines[2] == end
    assert lines[3].startswith("| TRL, after one epoch | 90 | 0.7200 ± 0.0248 |")
    assert "| TRL, after 100% of packed's time | 10 | 0.5000 ± 0.0000 |" in tabulate(results)
    assert lines[-1] == "TRL's best evaluation, mean of the seeds: 0.7200"


def test_quality_trains_each_seed_once_and_tabulates_the_seeds(workspace, tmp_path):
    output = tmp_path / "quality.jsonl"
    words = (
        *("--model", workspace / "model", "--name", "tiny", "--batch_size", 8, "--seeds", 1, 2),
        *("--data_path", workspace / "train.jsonl", "--eval_data_path", workspace / "eval.jsonl"),
        *("--flags=--max_steps 2", "--max_seq_len", 256),
        *("--folder", tmp_path / "runs", "--output", output),
    )
    done = run_command("python", "benchmarks/quality.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr

    lines = quality.read_lines(output)
    assert [line["seed"] for line in lines] == [1, 2]
    for line in lines:
        (_, first, _), (seconds, accuracy, loss) = line["curve"]
        assert (accuracy, loss) == pytest.approx((line["accuracy"], line["loss"]), abs=1e-6)
        assert 0 < first < 1 and seconds == line["seconds"] > 0
    assert lines[0]["loss"] != lines[1]["loss"]
    mean = sum(line["accuracy"] for line in lines) / 2
    flags_ = "--per_device_train_batch_size 8 --max_steps 2"
    assert f"| tiny | main.py | 2e-05 | {flags_} | 2 | {mean:.3f} ± " in done.stdout

    # Other comparisons are evaluated with the models that are there.
    shutil.copy(workspace / "eval.jsonl", tmp_path / "again.jsonl")
    words += ("--more", tmp_path / "again.jsonl")
    done = run_command("python", "benchmarks/quality.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    more = quality.read_lines(output)[2:]
    assert [line.pop("data") for line in more] == 2 * ["tiny, on again"]
    for line, run in zip(more, lines, strict=True):
        assert line == {name: run[name] for name in line} | {"curve": []}

    shutil.rmtree(tmp_path / "runs")
    done = run_command("python", "benchmarks/quality.py", *words)
    assert done.returncode == 0 and not (tmp_path / "runs").exists()
    assert done.stdout == (tmp_path / "quality.md").read_text() + "\n"


def test_table_of_quality_has_a_row_for_runs_that_differ_in_the_seed_alone():
    common = {"data": "d", "flags": "", "accuracy_low": 0.5, "accuracy_high": 0.9, "loss": 0.6}
    common |= {"ece": 0.1, "seconds": 1200.0, "peak_gib": 8.0}
    common |= {"longer_accuracy": 0.8, "shorter_accuracy": 0.4}
    lines = [
        {**common, "trainer": trainer, "learning_rate": 1e-5, "seed": seed, "accuracy": accuracy}
        for trainer, accuracies in (("main.py", (0.6, 0.7, 0.8)), ("TRL", (0.5,)))
        for seed, accuracy in enumerate(accuracies)
    ]
    trl, ours = quality.tabulate(lines).splitlines()[2:]
    # Student's t with 2 degrees of freedom: 4.303 * 0.1 / sqrt(3).
    end = "| 0.500 to 0.900 | 0.800 | 0.400 | 0.600 | 0.100 | 1,200 | 8.0 |"
    assert ours == f"| d | main.py | 1e-05 |  | 3 | 0.700 ± 0.248 {end}"
    assert trl == f"| d | TRL | 1e-05 |  | 1 | 0.500 {end}"


@pytest.fixture
def saved_model(tmp_path, opt_tokenizer):
    """A reward model whose chat template goes on behind the scored token."""
    opt_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token + '\\n' }}{% endfor %}"
    )
    base = str(save_language_model(tmp_path / "base", opt_tokenizer, max_position_embeddings=1024))
    config = pretrained.load_config(base)
    model, _ = pretrained.load_model(base, config, opt_tokenizer, new_head=True)
    with torch.no_grad():
        model.model.score.weight.mul_(10)
    text, folder = {"end_token": "</s>", "max_seq_len": 1024}, tmp_path / "model"
    pretrained.save_model(model, model.model.state_dict(), opt_tokenizer, text, str(folder))
    return folder


def test_a_consumer_that_scores_otherwise_is_found(tmp_path, monkeypatch, saved_model):
    """In the environment of the tests, so that nothing is installed."""
    monkeypatch.setattr(consumers, "make_environment", lambda *_: sys.executable)
    words = ["--model_name_or_path", saved_model, "--output", tmp_path / "table.md"]
    words += ["--consumers", "transformers", "transformers-pipeline"]
    monkeypatch.setattr(sys, "argv", ["consumers.py", *map(str, words)])
    consumers.main()

    lines = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    rounding, model, pipeline = lines[2:]
    assert 0 < float(rounding[2]) < 0.1
    assert float(model[2]) <= 1e-5 < 1e-2 < float(model[3])
    assert model[-1] == "differs |"
    assert float(pipeline[2]) <= 1e-5 and pipeline[3] == "-"
    assert pipeline[-1] == "ok (fp32) |"


def test_an_error_of_a_consumer_is_one_line():
    text = "Traceback:\n  File x\nRuntimeError: a | b\nmore\n" + "word " * 99
    line = consumers.last_error(text)
    assert line.startswith("RuntimeError: a / b more word") and len(line) <= consumers.WIDTH


def test_a_server_that_cannot_start_leaves_no_children(tmp_path):
    script = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '900']).pid, flush=True); "
        "sys.exit(3)"
    )
    contestant = servers.Contestant("dead", None, ["-c", script], "/", dict, list)
    with (tmp_path / "log").open("w+") as log:
        with pytest.raises(RuntimeError, match="dead ended with code 3"):
            servers.Server(contestant, tmp_path, log)
        log.seek(0)
        child = int(log.read())

    deadline = time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(number):
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_serving_asks_our_server_in_turns(workspace, tmp_path):
    done = run_program("main.py", *flags(workspace, "served", 8, 1), "--max_steps", 2)
    assert done.returncode == 0, done.stderr

    output = tmp_path / "figures.json"
    source = ("--model_name_or_path", workspace / "served", "--data_path", workspace / "eval.jsonl")
    lengths = ("--prompt_tokens", 1, 99, "--answer_tokens", 1, 99)
    work = ("--answers", 1, 2, "--requests", 3, 1, "--clients", 2, "--rounds", 2, "--peers")
    done = run_command(
        *("python", "benchmarks/serving.py", *source, *lengths, *work, "--output", output)
    )
    assert done.returncode == 0, done.stderr

    figures = json.loads(output.read_text())
    shapes = [(turn["answers"], len(turn["latencies"])) for turn in figures["turns"]]
    assert shapes == [(1, 3), (2, 1)] * 2
    scores = [tuple(one) for turn in figures["turns"] for one in turn["scores"]]
    assert len(set(scores)) == 8  # no question comes twice
    for line in figures["summary"]:
        assert line["ours_is_faster_by"] == 1
        assert line["scores_differ_by"] == 0
        assert f"| {line['answers']} | {line['answers_per_second']:.1f} (" in done.stdout
