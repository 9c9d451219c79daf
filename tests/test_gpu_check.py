"""The first check of a GPU machine, in the form that a CPU takes."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_parts.common import LEFT_OUT, Machine
from benchmarks.gpu_parts.training import REFERENCE, RUNS, STEPS, Run, is_wanted, judge
from tests.conftest import run_command


def test_the_tiny_form_finds_nothing_wrong(tmp_path):
    output = tmp_path / "gpu_check.json"
    # So many minutes that nothing is left out, however busy the machine is.
    words = ("benchmarks/gpu_check.py", "--tiny", "--minutes", 60, "--output", output)
    done = run_command("python", *words)
    assert done.returncode == 0, done.stdout + done.stderr

    found = json.loads(output.read_text())
    assert found["wrong"] == []
    assert set(gpu_check.PARTS) < set(found)
    assert len(found["attention"]) == 10
    assert len(found["model"]) == 8
    assert len(found["speed"]) == 8

    assert set(found["training"]) == {
        name for name, flags in RUNS.items() if "fp16" not in flags and "--offload" not in flags
    }
    for line in found["training"].values():
        assert len(line["losses"]) == line["steps"] == STEPS
        assert line["checks_passed"] >= 2
    assert found["training"][REFERENCE]["differs_by"] == 0

    document = done.stdout[done.stdout.index("# GPU check") :]
    assert f"| torch | {torch.__version__} |" in document
    for part, lines in found.items():
        if part in gpu_check.PARTS:
            assert f"\n## {gpu_check.TABLES[part].title}\n" in document
            for name, figures in lines.items():
                assert f"| `{name}` |" in document
                assert figures.get("passed", True) is True
    assert "Nothing is wrong." in document


def finding(**figures):
    """A part that finds one thing."""
    return lambda machine: iter([("a case", figures)])


def broken(machine):
    """A part that a driver ends after its first line."""
    yield "a case", {"passed": True}
    raise RuntimeError("no kernel image\nis available")


@pytest.mark.parametrize(
    ("part", "minutes", "wrong"),
    [
        (finding(passed=True), 60, []),
        (finding(passed=None, note="out of memory"), 60, []),
        (finding(packed_is_faster_by=2.0), 60, []),
        (finding(passed=False), 60, ["model: a case"]),
        (finding(passed=False), 0, []),
        (broken, 60, ["model: ended with an error"]),
    ],
    ids=["right", "out of memory", "not judged", "wrong", "no time", "broken"],
)
def test_something_wrong_gives_exit_code_1(tmp_path, monkeypatch, capsys, part, minutes, wrong):
    right = finding(passed=True)
    parts = {name: (part if name == "model" else right, 1) for name in gpu_check.PARTS}
    monkeypatch.setattr(gpu_check, "PARTS", parts)

    output = tmp_path / "found.json"
    arguments = Namespace(output=output, minutes=minutes, tiny=True)
    assert gpu_check.main(arguments) == len(wrong)

    found = json.loads(output.read_text())
    assert found["wrong"] == wrong
    document = capsys.readouterr().out
    for line in wrong:
        assert f"\n- {line}\n" in document
    assert ("Nothing is wrong." in document) is not wrong
    if part is broken:
        assert "| WRONG | RuntimeError: no kernel image is available |" in document
    if not minutes:
        assert all(lines == {"all": LEFT_OUT} for lines in map(found.get, parts))


FALLING = [1.0 - step / 100 for step in range(STEPS)]
CHECKS = [{"name": "reload", "passed": True}, {"name": "layout", "passed": True}]


def make_run(losses=FALLING, **changes):
    """A run in which nothing is wrong, but for the changes."""
    steps = [{"loss": loss, "peak_memory_gib": 1.0, "skipped_steps": 0} for loss in losses]
    return replace(Run(code=0, seconds=9.0, steps=steps, checks=CHECKS), **changes)


def skipping(losses):
    """A run whose second step was skipped."""
    steps = make_run(losses).steps
    return make_run(steps=[{**step, "skipped_steps": min(i, 1)} for i, step in enumerate(steps)])


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (make_run(), ""),
        (make_run([loss + 0.009 for loss in FALLING]), ""),
        (make_run([loss + 0.011 for loss in FALLING]), "the losses differ too much"),
        (make_run([*FALLING[:-1], None]), "the losses differ too much"),
        (make_run(FALLING[:-1]), "29 steps of 30"),
        (make_run([]), "0 steps of 30"),
        (make_run(checks=[]), "checks failed: there are none"),
        (make_run(checks=[*CHECKS, {"name": "batch", "passed": False}]), "checks failed: batch"),
        (make_run(code=1, last_words="error: no"), "exit code 1: error: no"),
        (skipping([loss + 1 for loss in FALLING]), ""),
        (skipping(FALLING[::-1]), "the losses do not fall"),
    ],
)
def test_a_run_is_judged_by_its_end_its_steps_its_losses_and_its_checks(run, fault):
    figures = judge(run, FALLING, limit=0.01)
    assert figures["passed"] is not bool(fault)
    assert figures["note"] == fault


def test_a_run_that_was_left_out_or_ended_for_want_of_time_is_not_wrong():
    assert judge(None, FALLING, 0.01)["passed"] is None
    ended = judge(make_run(FALLING[:9], code=None), FALLING, 0.01)
    assert ended["passed"] is None and ended["note"] == "ended: too little time"


def test_a_run_with_nothing_to_compare_with_is_judged_by_the_rest():
    assert judge(make_run(), [], 0.01)["passed"] is True
    assert judge(make_run(FALLING[:9]), [], 0.01)["passed"] is False


def test_a_gpu_gets_every_run(monkeypatch):

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    machine = Machine(torch.device("cpu"), tiny=False, deadline=0.0)
    assert all(is_wanted(machine, flags) for flags in RUNS.values())

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    wanted = {flags.split()[1] for flags in RUNS.values() if is_wanted(machine, flags)}
    assert wanted == {"fp32", "fp16"}
