"""Other losses through the real launchers: the engine returns what they need."""

import pytest

from tests.conftest import flags, read_metrics
from tests.forking import run_program

FLAGS = {
    "token_pairwise": ("--loss", "token_pairwise"),
    "ties": ("--tie_threshold", "0.5", "--center_rewards_coefficient", "0.01"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_two_processes_in_stage_3_give_the_losses_of_one_and_keep_their_loss(workspace, name):
    words = (*FLAGS[name], "--max_steps", 4)
    one, two = f"{name}-1", f"{name}-2"
    padded = (*flags(workspace, one, 8, 1), *words, "--batch_layout", "padded")
    done = run_program("main.py", *padded, "--save_interval", 4)
    assert done.returncode == 0, done.stderr
    packed = (*flags(workspace, two, 2, 2), *words, "--zero_stage", 3)
    done = run_program("main.py", *packed, processes=2)
    assert done.returncode == 0, done.stderr
    pair = [read_metrics(workspace / folder) for folder in (one, two)]
    for alone, together in zip(*pair, strict=True):
        for key in ("loss", "grad_norm", "accuracy", "eval_loss", "eval_accuracy"):
            assert together.get(key) == pytest.approx(alone.get(key), abs=1e-4)
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in pair]
    assert len(losses[0]) == 4
    again = (*flags(workspace, one, 8, 1), "--max_steps", 4, "--batch_layout", "padded")
    done = run_program("main.py", *again, "--resume_from_checkpoint", "latest")
    assert done.returncode == 2
    assert FLAGS[name][0] in done.stderr and "begin anew in another --output_dir" in done.stderr
