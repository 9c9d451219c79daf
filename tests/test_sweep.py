"""The sweep: one real, and its order of events with a launcher that only pretends."""

import csv
import json
import signal
import statistics
import time

import pytest

from tests.conftest import (
    ROOT,
    TOO_LONG,
    finish,
    free_port,
    make_pairs,
    run_command,
    start_command,
    write_jsonl,
)
from training_scripts.opt.single_node.sweep import table

SWEEP = ROOT / "training_scripts" / "opt" / "single_node" / "sweep" / "run_sweep.sh"


def read_csv(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path, opt_model, monkeypatch):
    """The words that start a sweep of stage 2 into tmp_path/sweep."""
    monkeypatch.setenv("MODEL", str(opt_model))
    monkeypatch.setenv("DATA", str(write_jsonl(tmp_path / "pairs.jsonl", make_pairs(60))))
    monkeypatch.setenv("NUM_GPUS", "1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("OFFLOAD", "no")
    flags = ("--data_output_path", tmp_path / "cache", "--max_seq_len", 256)
    return ["bash", SWEEP, tmp_path / "sweep", "2", *flags]


def test_a_sweep_survives_a_failed_run_and_repeats_only_that(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("RATES", "fast 1e-3")
    done = run_command(*sweep)
    assert done.returncode == 1, done.stdout + done.stderr
    folder = tmp_path / "sweep"
    good, bad = folder / "stage2-offload_no-lr1e-3", folder / "stage2-offload_no-lrfast"
    assert (good / "exit_code").read_text() == "0\n"
    assert (bad / "exit_code").read_text() == "2\n"
    assert "invalid float value: 'fast'" in (bad / "training.log").read_text()

    lines = [json.loads(line) for line in (good / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line][-1]
    speeds = [line["comparisons_per_second"] for line in lines if "loss" in line]
    assert len(speeds) == 7  # the first of them is left out
    speed, memory = statistics.median(speeds[1:]), lines[-2]["peak_memory_gib"]
    first, second = read_csv(folder)
    assert (first["zero_stage"], first["offload"], first["learning_rate"]) == ("2", "no", "1e-3")
    assert float(first["eval_accuracy"]) == accuracy
    assert float(first["comparisons_per_second"]) == speed
    assert float(first["peak_memory_gib"]) == memory
    assert first["status"] == "finished"
    assert second["learning_rate"] == "fast"
    assert second["status"] == "failed, exit code 2"
    assert second["eval_accuracy"] == second["peak_memory_gib"] == ""
    markdown = (folder / "sweep.md").read_text()
    row = f"| 2 | no | 1e-3 | **{accuracy:.4f}** | {speed:.1f} | {memory:.2f} | finished |"
    assert markdown.splitlines()[2:] == [
        row,
        "| 2 | no | fast |  |  |  | failed, exit code 2 |",
    ]
    assert done.stdout.endswith(markdown)

    before = {path: path.stat().st_mtime_ns for path in good.rglob("*")}
    done = run_command(*sweep)
    assert done.returncode == 1
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == before
    assert (bad / "training.log").read_text().count("invalid float value") == 2
    assert (folder / "sweep.md").read_text() == markdown


# Writes down how it was called; then it does what $ACT says, or leaves a model and metrics.
LAUNCHER = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
while [ $# -gt 0 ]; do
    case "$1" in --output_dir) run="$2" ;; --zero_stage) stage="$2" ;; esac
    shift
done
eval "${ACT:-}"
echo '{"arguments": {"save_best": false}}' >"$run/training_args.json"
echo '{"step": 1, "eval_accuracy": 0.5}' >"$run/metrics.jsonl"
touch "$run/config.json" "$run/model.safetensors"
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """The words that start a sweep with that launcher, and a way to read how it was called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "deepspeed").write_text(LAUNCHER)
    (tmp_path / "bin" / "deepspeed").chmod(0o755)
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    path = f'PATH="{tmp_path / "bin"}:$PATH"'  # in front of what run_command puts there
    words = ["bash", "-c", f'{path} exec bash "$@"', "bash", SWEEP, tmp_path / "sweep"]

    def read_calls():
        found = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return found

    return words, read_calls


def test_a_sweep_runs_each_combination_once(pretended, tmp_path):
    words, read_calls = pretended
    done = run_command(*words, "--max_steps", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    places = [("0", "no"), *[(stage, where) for stage in "123" for where in ("no", "cpu")]]
    expected = [(stage, where, rate) for stage, where in places for rate in ("1e-5", "5e-5")]
    calls, rows = read_calls(), read_csv(tmp_path / "sweep")
    for (stage, where, rate), call, row in zip(expected, calls, rows, strict=True):
        assert f"--learning_rate {rate} " in call
        assert f"--zero_stage {stage} " in call
        assert ("--offload cpu " in call) == (where == "cpu")
        assert f"/stage{stage}-offload_{where}-lr{rate} " in call
        assert call.endswith("--resume_from_checkpoint latest --max_steps 5")
        assert list(row.values())[:3] == [stage, where, rate]
        assert row["status"] == "finished"
    assert run_command(*words).returncode == 0
    assert read_calls() == []


def test_a_sweep_of_another_script(pretended, monkeypatch):
    words, read_calls = pretended
    script = ROOT / "training_scripts" / "pythia" / "single_gpu" / "run_1b.sh"
    for name, value in {"SCRIPT": str(script), "OFFLOAD": "no", "RATES": "1e-6"}.items():
        monkeypatch.setenv(name, value)
    done = run_command(*words, "1")
    assert done.returncode == 0, done.stdout + done.stderr
    (call,) = read_calls()
    assert call.startswith("--num_gpus 1 ")
    assert "--model_name_or_path EleutherAI/pythia-1b-deduped " in call
    assert " --zero_stage 1 " in call
    assert " --learning_rate 1e-6 " in call.split("--learning_rate 3e-6")[1]


def test_a_stopped_run_ends_the_sweep_and_is_taken_up_first(pretended, tmp_path, monkeypatch):
    words, read_calls = pretended
    monkeypatch.setenv("OFFLOAD", "no")
    monkeypatch.setenv("RATES", "1e-5")
    monkeypatch.setenv("ACT", '[ "$stage" != 2 ] || exit 143')
    words.append("0 2 3")
    assert run_command(*words).returncode == 143
    assert len(read_calls()) == 2
    assert [row["status"] for row in read_csv(tmp_path / "sweep")] == ["finished", "stopped"]

    monkeypatch.setenv("ACT", "")
    assert run_command(*words).returncode == 0
    assert len(read_calls()) == 2
    assert [row["status"] for row in read_csv(tmp_path / "sweep")] == ["finished"] * 3


# As under deepspeed: the launcher ends at a signal at once, and its process when it has saved.
WORKER = """
import signal, time
def save(number, frame):
    time.sleep(1)
    print("saved")
    raise SystemExit
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
print("waiting", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_sweep_reaches_the_run(pretended, tmp_path, monkeypatch, number, code):
    words, read_calls = pretended
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("ACT", f"python {tmp_path / 'worker.py'} & wait")
    process = start_command(*words)
    log = tmp_path / "sweep" / "stage0-offload_no-lr1e-5" / "training.log"
    deadline = time.monotonic() + TOO_LONG
    while not (log.exists() and "waiting" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == code
    assert log.read_text() == "waiting\nsaved\n"
    assert len(read_calls()) == 1
    assert [row["status"] for row in read_csv(tmp_path / "sweep")] == ["stopped"]


def write_run(folder, name, lines, code=0, save_best=False, weights="model.safetensors"):
    run = folder / name
    run.mkdir()
    if code is not None:
        (run / "exit_code").write_text(f"{code}\n")
    (run / "training_args.json").write_text(json.dumps({"arguments": {"save_best": save_best}}))
    write_jsonl(run / "metrics.jsonl", lines)
    if weights:
        (run / "config.json").write_text("{}")
        (run / weights).write_text("")
    return run


def test_rows_are_sorted_and_tell_how_runs_ended(tmp_path):
    name = "stage{}-offload_{}-lr{}".format
    write_run(tmp_path, name(3, "cpu", "5e-5"), [], weights="model.safetensors.index.json")
    write_run(tmp_path, name(3, "no", "1e-4"), [], code=130)
    write_run(tmp_path, name(3, "no", "5e-5"), [], code=None)
    write_run(tmp_path, name(0, "no", "1e-5"), [], weights=None)
    write_run(tmp_path, name(1, "no", "1e-5"), [], code=247)
    (tmp_path / "cache").mkdir()
    rows = [list(row.values()) for row in table.read_rows(tmp_path)]
    assert rows == [
        ["0", "no", "1e-5", "no model"],
        ["1", "no", "1e-5", "failed, exit code 247"],
        ["3", "no", "5e-5", "unfinished"],
        ["3", "no", "1e-4", "stopped"],
        ["3", "cpu", "5e-5", "finished"],
    ]


def test_numbers_of_a_run(tmp_path):
    lines = [{"step": 0, "eval_accuracy": 0.4}]
    # The first two of twenty are slow and left out.
    for step in range(1, 21):
        speed = 1.0 if step < 3 else 10.0 * step
        lines.append({"comparisons_per_second": speed, "peak_memory_gib": min(step, 5) / 4})
        if step in (10, 20):
            lines.append({"step": step, "eval_accuracy": 0.9 - step / 100})
    last = write_run(tmp_path, "stage0-offload_no-lr1e-5", lines)
    best = write_run(tmp_path, "stage0-offload_no-lr2e-5", lines, save_best=True)
    expected = {"comparisons_per_second": 115.0, "peak_memory_gib": 1.25}
    assert table.measure(last) == {"eval_accuracy": 0.9 - 0.2, **expected}
    assert table.measure(best) == {"eval_accuracy": 0.9 - 0.1, **expected}
    older = write_run(tmp_path, "stage0-offload_no-lr3e-5", [{"comparisons_per_second": 7.0}] * 2)
    assert table.measure(older) == {"comparisons_per_second": 7.0}
    table.write_table(tmp_path)
    assert (tmp_path / "sweep.md").read_text().splitlines()[2:] == [
        "| 0 | no | 1e-5 | 0.7000 | 115.0 | 1.25 | finished |",
        "| 0 | no | 2e-5 | **0.8000** | 115.0 | 1.25 | finished |",
        "| 0 | no | 3e-5 |  | 7.0 |  | finished |",
    ]
