"""The loop with other losses than the default one, around the engine of test_loop.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_loop import (
    ACCUMULATION,
    AGAIN,
    CPU,
    EVAL,
    TRAIN,
    Engine,
    read_lines,
    signal_handlers,  # noqa: F401, a fixture
    train,
)
from utils.data.packing import PaddedCollator
from utils.evaluation.metrics import SUMS
from utils.model.reward_model import RewardModel
from utils.training.loop import run_step
from utils.training.loss import loss_inputs
from utils.training.settings import parse_training_arguments

LOSSES = {
    "": lambda gap, margin: -math.log(sigmoid(gap)),
    "--margin": lambda gap, margin: -math.log(sigmoid(gap - margin)),
    "--label_smoothing 0.2": lambda gap, margin: (
        -0.8 * math.log(sigmoid(gap)) - 0.2 * math.log(sigmoid(-gap))
    ),
    "--loss token_pairwise": None,
}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("words", LOSSES)
def test_training_lines_have_the_loss_that_trains_and_evaluations_that_of_bradley_and_terry(
    tmp_path, words
):
    """Without steps that change the model: the rate is 0, and nothing is dropped."""
    engine = Engine()
    engine.model.eval()
    engine.train = lambda mode=True: engine
    for group in engine.optimizer.param_groups:
        group.update(lr=0.0)
    train(tmp_path, engine, "--logging_steps", 3, *words.split())
    with torch.no_grad():
        means = {}
        for name, rows in (("loss", TRAIN), ("eval_loss", EVAL)):
            gaps = [float(better - worse) for better, worse in map(engine_scores(engine), rows)]
            slow = LOSSES[words] if name == "loss" else LOSSES[""]
            means[name] = slow and np.mean([slow(gap, 1.0) for gap in gaps])
    lines = read_lines(tmp_path)
    for name, mean in means.items():
        found = [line[name] for line in lines if name in line]
        if mean is None:  # another loss than that of the scores
            mean = found[0]
            assert abs(mean - lines[0]["eval_loss"]) > 1e-4
        assert found == [pytest.approx(mean, abs=1e-6)] * len(found) and len(found) > 1


def engine_scores(engine):
    return lambda row: RewardModel.forward(engine, PaddedCollator(1)([row], [1.0]))


def test_comparisons_of_weight_0_are_passed_over_but_counted(tmp_path):
    """So that a resumed run goes on at the right row."""
    whole = train(tmp_path / "whole", Engine(), "--sample_weights")
    assert (whole.progress.epoch, whole.progress.seen) == (2, 0)
    engine = Engine(6)
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", engine, "--sample_weights")
    train(tmp_path / "cut", Engine(), "--sample_weights", *AGAIN)
    assert read_lines(tmp_path / "cut") == read_lines(tmp_path / "whole")
    plain = train(tmp_path / "plain", Engine())
    assert plain.result["loss"] != whole.result["loss"]


@pytest.mark.parametrize("words", ["--loss plackett_luce", "--loss token_pairwise", "--margin"])
def test_a_run_with_another_loss_resumes_and_learns(tmp_path, words):
    train(tmp_path / "whole", Engine(), *words.split())
    lines = read_lines(tmp_path / "whole")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[3:]) < sum(losses[:3])
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", Engine(6), *words.split())
    train(tmp_path / "cut", Engine(), *words.split(), *AGAIN)
    assert read_lines(tmp_path / "cut") == lines


def test_an_all_tied_step_counts_its_comparisons():
    row = {**TRAIN[0], "ranks": [0, 0]}
    args = parse_training_arguments(["--model_name_or_path", "m", "--tie_threshold", "1"])
    args = replace(args, dtype="fp32", gradient_accumulation_steps=ACCUMULATION)
    collate = PaddedCollator(1, inputs=loss_inputs(args))
    batches = [collate([row, row], [1.0, 1.0]), collate([row], [0.0])]
    sums, *_ = run_step(args, Engine(), batches, CPU, 1)
    assert sums[len(SUMS)] == 2 and sums[: len(SUMS)].sum() == 0
    assert sums[len(SUMS) + 1] > 0
