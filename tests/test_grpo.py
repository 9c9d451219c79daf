"""A served reward model in use: TRL's GRPO trains a tiny policy with it."""

import importlib.util
import json
import math
import random
import re
import signal
from statistics import mean

import pytest

from tests.conftest import (
    finish,
    flags,
    read_metrics,
    run_command,
    save_language_model,
    start_command,
    train_opt_tokenizer,
    write_jsonl,
)
from tests.forking import run_program
from tests.policy import ANSWERS, KIND, LENGTH, RUDE, kind_share

SEEDS = [0, 1, 2]
EDGE = 5  # steps at the beginning and at the end that are compared

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="trl is not installed")


def make_answer(generator: random.Random) -> str:
    """Kind and rude words, mixed in any proportion."""
    kindness = generator.random()
    length = generator.randint(1, LENGTH)
    lists = [KIND if generator.random() < kindness else RUDE for _ in range(length)]
    return " ".join(generator.choice(words) for words in lists)


def share(answer: str) -> float:
    """Of kind words."""
    return kind_share([answer])[0]


def make_pairs(number: int, seed: int) -> list[dict]:
    """Comparisons in which the answer with the larger share of kind words is the better one."""
    generator = random.Random(seed)
    pairs = []
    while len(pairs) < number:
        worse, better = sorted((make_answer(generator) for _ in range(2)), key=share)
        if share(worse) < share(better):
            prompt = " ".join(generator.choices(KIND + RUDE, k=4))
            pairs.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a reward model that has learnt to tell kind answers from rude ones."""
    workspace = tmp_path_factory.mktemp("kindness")
    save_language_model(workspace / "model", train_opt_tokenizer())
    write_jsonl(workspace / "train.jsonl", make_pairs(1000, seed=0))
    write_jsonl(workspace / "eval.jsonl", make_pairs(100, seed=1))

    words = ("--num_train_epochs", 1, "--learning_rate", 5e-3, "--eval_interval", 1000)
    done = run_program("main.py", *flags(workspace, "reward", 16, 1), *words)
    assert done.returncode == 0, done.stderr
    assert read_metrics(workspace / "reward")[-1]["eval_accuracy"] > 0.8
    return workspace / "reward"


@pytest.fixture
def address(model):
    """Where the model is served."""
    server = start_command("python", "rw_eval.py", "--model_name_or_path", model, "--serve", 0)
    try:
        found = (re.search(r"^serving .* at (http://\S+)", line) for line in server.stdout)
        serving = next(filter(None, found), None)
        assert serving, server.stderr.read()
        yield serving[1]
    finally:
        server.send_signal(signal.SIGTERM)
        done = finish(server)
    assert done.returncode == 0, done.stderr


def test_the_reward_of_a_policy_rises(address, tmp_path):
    """And with it what the reward model has learnt to prefer, counted apart from the model."""
    done = run_command("python", "-m", "tests.policy", address, tmp_path, *SEEDS)
    assert done.returncode == 0, done.stderr

    runs = json.loads(done.stdout.splitlines()[-1])
    assert len(runs) == len(SEEDS)
    for run in runs:
        rewards, deviations = run["rewards"], run["deviations"]
        rise = mean(rewards[-EDGE:]) - mean(rewards[:EDGE])
        error = math.hypot(mean_error(deviations[:EDGE]), mean_error(deviations[-EDGE:]))
        assert rise > 8 * error

        assert run["shares"][0] < 0.7
        assert min(run["shares"][-EDGE:]) > 0.9


def mean_error(deviations: list[float]) -> float:
    """Standard error of the mean reward of some steps, given the deviation within each."""
    variances = [deviation**2 / ANSWERS for deviation in deviations]
    return math.sqrt(sum(variances)) / len(variances)
