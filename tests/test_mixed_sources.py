"""Sources with weights, drawn by them: one process, or two that go on with its state."""

import json

import pytest

from tests.conftest import flags, make_pairs, read_metrics, write_jsonl
from tests.forking import run_program

STEPS = 8


def write_sources(workspace, folder):
    """Two files with prompts that the evaluation does not have; the flags that mix them."""
    paths = []
    for number, name in ((40, "small"), (90, "large")):
        rows = [{**row, "prompt": f"{row['prompt']} ({name})"} for row in make_pairs(number)]
        paths.append(write_jsonl(folder / f"{name}.jsonl", rows))
    words = flags(workspace, "unused", 4, 1)
    place = words.index("--data_path")
    words[place : place + 2] = ["--data_path", f"{paths[0]}:0.4", f"{paths[1]}:0.6"]
    return [*words, "--max_steps", STEPS, "--save_interval", 3]


def test_two_processes_go_on_as_one_would(workspace, tmp_path):
    words = write_sources(workspace, tmp_path)
    words[words.index("--per_device_train_batch_size") + 1] = 8
    done = run_program("main.py", *words, "--output_dir", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    words[words.index("--per_device_train_batch_size") + 1] = 4
    state = tmp_path / "one" / "checkpoints" / "step_3"
    done = run_program(
        *("main.py", *words, "--output_dir", tmp_path / "two"),
        *("--resume_from_checkpoint", state),
        processes=2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, other in zip(one, two, strict=True):
        for name in ("epoch", "loss", "accuracy", "margin", "eval_loss", "eval_accuracy"):
            if name in line:
                assert other[name] == pytest.approx(line[name], abs=1e-5), (line["step"], name)
    counts = json.loads((tmp_path / "two" / "training_args.json").read_text())["data"]
    # 0.4 of an epoch are all 40 rows of the small source, and 60 of the large one.
    assert counts["comparisons_per_epoch"] == 100
