"""Two nodes, in network namespaces joined by a virtual cable, against one process."""

import re

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, read_metrics, run_command
from tests.forking import run_program

STEPS = 6
COMPARED = ("loss", "accuracy", "eval_loss", "eval_accuracy", "eval_pairs")


def flags(workspace, name, micro_batch) -> list:
    """Without a folder for the cache: each node has its own."""
    return [
        *("--model_name_or_path", workspace / "model"),
        *("--data_path", workspace / "train.jsonl"),
        *("--eval_data_path", workspace / "eval.jsonl"),
        *("--output_dir", workspace / name),
        *("--per_device_train_batch_size", micro_batch),
        *("--per_device_eval_batch_size", 4),
        *("--num_train_epochs", 2),
        *("--max_steps", STEPS),
        *("--eval_interval", 2),
        *("--learning_rate", 1e-3),
        *("--dropout", 0),
        *("--max_seq_len", 256),
    ]


@pytest.fixture(scope="module")
def one_process(workspace):
    """`python main.py` in one process, stage 0."""
    words = flags(workspace, "nodes-one", 8)
    done = run_program("main.py", *words, "--data_output_path", workspace / "cache")
    assert done.returncode == 0, done.stderr
    return workspace / "nodes-one"


def read_compared(folder) -> list[dict]:
    return [{key: line[key] for key in COMPARED if key in line} for line in read_metrics(folder)]


def run_two_nodes(*words):
    done = run_command("bash", ROOT / "tests" / "two_nodes.sh", *words)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    return done


@pytest.mark.skipif(torch.cuda.is_available(), reason="the nodes would share a GPU")
def test_two_nodes_give_the_losses_of_one_process(workspace, one_process):
    name = "nodes-two"
    done = run_two_nodes(*flags(workspace, name, 4), "--zero_stage", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, expected = read_compared(workspace / name), read_compared(one_process)
    assert sum("loss" in line for line in ours) == STEPS
    assert sum("eval_loss" in line for line in ours) == 5  # at 0, 2, 4, 5 (an epoch's end) and 6
    for line, wanted in zip(ours, expected, strict=True):
        assert line == pytest.approx(wanted, abs=1e-5)

    ours, expected = (
        load_file(folder / "model.safetensors") for folder in (workspace / name, one_process)
    )
    assert ours.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], atol=2e-4, rtol=1e-3)

    # In every step each of the two sends its half of the gradients at least.
    sent = re.findall(r"node \d sent (\d+) bytes over the cable", done.stdout)
    gradients = sum(weight.nbytes for weight in expected.values())
    assert len(sent) == 2
    assert min(map(int, sent)) > STEPS * gradients / 2


def test_an_error_of_the_nodes_is_one_of_the_script(workspace):
    done = run_two_nodes(*flags(workspace, "nodes-wrong", 4), "--zero_stage", 9)
    assert done.returncode == 2
    assert "invalid choice: 9" in done.stderr
