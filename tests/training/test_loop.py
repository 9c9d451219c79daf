"""The loop around a small model; the fake engine does what DeepSpeed does in stage 0."""

import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, OPTConfig, set_seed

from tests.killing import is_killed
from utils.data.packing import PaddedCollator
from utils.data.sampling import Grouping, Mixture, TrainingPlan, evaluation_plan
from utils.data.token_rows import empty_row
from utils.evaluation.scoring import Sources
from utils.model.reward_model import RewardModel
from utils.training.checkpoint import NO_MODEL, forget_saved_model
from utils.training.log import RunLog
from utils.training.loop import Trainer
from utils.training.loss import loss_inputs
from utils.training.plan import PlannedBatches
from utils.training.resume import Resume
from utils.training.settings import parse_training_arguments
from utils.training.throughput import Throughput

CPU = torch.device("cpu")
ACCUMULATION = 2
MEASURED = {"seconds", "comparisons_per_second", "tokens_per_second", "peak_memory_gib"}


class Crash(Exception):
    pass


class Engine(RewardModel):
    """Trains a tiny OPT with dropout.

    Args:
        fail_at: number of the forward pass that does `fail`; 0: none.
        fail: gets a signal's number, or raises.
        script: the number of pairs that it pretends to get right in each evaluation.

    Attributes:
        saves: tags of the states that it has saved.
        models: step and accuracy of each model that was saved.
    """

    device = torch.device("cpu")

    def __init__(self, fail_at=0, fail=signal.SIGTERM, script=()):
        set_seed(0)
        config = OPTConfig(
            vocab_size=50,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            num_labels=1,
            pad_token_id=1,
        )
        super().__init__(AutoModelForSequenceClassification.from_config(config))
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.forwards, self.saves, self.models = 0, [], []
        self.fail_at, self.fail, self.script = fail_at, fail, iter(script)

    @property
    def module(self):
        return self

    def forward(self, batch):
        self.forwards += 1
        if self.forwards == self.fail_at:
            if self.fail is Crash:
                raise Crash
            os.kill(os.getpid(), self.fail)
        right = None if self.training else next(self.script, None)
        if right is None:
            return super().forward(batch)
        winners = torch.cat([batch.pairs[:right, 0], batch.pairs[right:, 1]])
        return torch.zeros(len(batch.end_index)).index_fill(0, winners, 1.0)

    def set_gradient_accumulation_boundary(self, is_boundary):
        self.is_boundary = is_boundary

    def backward(self, loss, scale_wrt_gas):
        assert not scale_wrt_gas
        loss.backward()

    def step(self):
        assert self.is_boundary
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def get_lr(self):
        return self.scheduler.get_last_lr()

    def get_global_grad_norm(self):
        return None

    def zero_optimization_stage(self):
        return 0

    def parts(self):
        return {"model": self, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def save_checkpoint(self, root, tag, save_latest):
        self.saves.append(tag)
        folder = Path(root) / tag
        folder.mkdir(parents=True)
        torch.save({n: part.state_dict() for n, part in self.parts().items()}, folder / "all.pt")

    def load(self, folder):
        states = torch.load(folder / "all.pt")
        for name, part in self.parts().items():
            part.load_state_dict(states[name])


def make_rows(number):
    chance = np.random.default_rng(number)
    rows = []
    for _ in range(number):
        ids = [chance.integers(2, 50, length).tolist() for length in chance.integers(3, 9, 2)]
        counts = {"tokens": sum(map(len, ids)), "length": max(map(len, ids))}
        others = {"answers": [0, 1], "ranks": [0, 1], "answer_starts": [0, 0], "shared": 0}
        others |= {"grades": [1.0, 0.0], "votes": [], "weight": float(len(rows) % 3)}
        rows.append({**empty_row(""), "input_ids": ids, **others, **counts})
    return Dataset.from_list(rows)


TRAIN, EVAL = make_rows(10), make_rows(4)  # 3 steps a pass, over 4, 4 and 2 comparisons
SOURCES = ["b", "a", "b", "b"]  # of EVAL
AGAIN = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(autouse=True)
def signal_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(folder, engine, *words, eval_batch=4, mixture=None):
    """Train two passes as main.py does, or what is left of them."""
    common = ["--model_name_or_path", "m", "--output_dir", str(folder), "--num_train_epochs", "2"]
    args = parse_training_arguments([*common, *map(str, words)])
    args = replace(args, dtype="fp32", gradient_accumulation_steps=ACCUMULATION)
    resume = Resume(args, CPU)
    progress = resume.progress
    if resume.checkpoint:
        engine.load(resume.checkpoint.folder)
    folder.mkdir(exist_ok=True)
    group = Grouping.of(TRAIN, "padded", 2, accumulation=ACCUMULATION)
    plan = TrainingPlan(
        group, 0, args.seed, range(progress.epoch, 2), progress.seen, mixture=mixture
    )
    total_steps = progress.step + len(plan)
    eval_plan = evaluation_plan(Grouping.of(EVAL, "padded", eval_batch))
    log = RunLog(
        args,
        min(total_steps, args.max_steps or total_steps),
        SimpleNamespace(write_events=lambda events: None, comet_monitor=None),
        Throughput(engine, CPU, "fp32", 1),
        step=resume.progress.step,
        before=resume.log,
    )

    def save_model(result):
        engine.models.append((progress.step, result["accuracy"]))
        (folder / "config.json").touch()

    run = {"run": {}, "batch": 4}
    trainer = Trainer(
        args=args,
        engine=engine,
        device=CPU,
        log=log,
        progress=progress,
        epoch_size=plan.epoch_size,
        run=run,
        save_model=save_model,
        best=resume.best_model(),
    )
    collate = PaddedCollator(1, inputs=loss_inputs(args))
    batches = PlannedBatches(TRAIN, plan, collate)
    eval_batches = PlannedBatches(EVAL, eval_plan, PaddedCollator(1))
    trainer.train(batches, eval_batches, Sources.of(eval_plan, SOURCES))
    return trainer


def read_lines(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in ln.items() if name not in MEASURED} for ln in lines]


def evaluations(folder):
    return [line["step"] for line in read_lines(folder) if "eval_loss" in line]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], [0, 3, 6]),
        (["--eval_interval", 3], [0, 3, 6]),
        (["--eval_interval", 2], [0, 2, 3, 4, 6]),
        (["--eval_interval", 1], [0, 1, 2, 3, 4, 5, 6]),
        (["--max_steps", 4], [0, 3, 4]),
        (["--max_steps", 5, "--eval_interval", 4], [0, 3, 4, 5]),
    ],
)
def test_evaluations_at_the_start_each_interval_and_the_end_of_passes_and_run(
    tmp_path, words, steps
):
    engine = Engine()
    trainer = train(tmp_path, engine, *words)
    assert evaluations(tmp_path) == steps
    lines = read_lines(tmp_path)
    assert trainer.result["loss"] == lines[-1]["eval_loss"]
    assert trainer.result["sources"] == lines[-1]["eval_sources"]
    counts = {name: part["comparisons"] for name, part in lines[-1]["eval_sources"].items()}
    assert counts == {"a": 1, "b": 3}
    assert [(ln["step"], ln["epoch"]) for ln in lines if "loss" in ln] == [
        (step, [0.4, 0.8, 1, 1.4, 1.8, 2][step - 1]) for step in range(1, steps[-1] + 1)
    ]
    assert engine.models == []  # without --save_best that is main.py's business


@pytest.mark.parametrize(
    ("script", "patience", "last"),
    [
        ([1, 2, 3, 2, 3, 1, 0], 0, 6),
        ([1, 2, 3, 2, 3, 1, 0], 4, 6),
        ([1, 2, 3, 2, 3, 1, 0], 2, 4),  # the same accuracy is not better
        ([1, 0, 3, 2, 4, 1, 0], 1, 1),
        ([1, 0, 3, 2, 4, 1, 0], 2, 6),
        ([4, 3, 2, 4, 4, 4, 4], 3, 3),
    ],
)
def test_early_stopping_and_the_best_model(tmp_path, capsys, script, patience, last):
    words = ["--eval_interval", 1, "--early_stopping_patience", patience, "--save_best"]
    engine = Engine(script=script)
    trainer = train(tmp_path, engine, *words)
    assert evaluations(tmp_path) == [*range(last + 1)]
    assert ("stopped early" in capsys.readouterr().out) is (last < 6)
    assert trainer.result["accuracy"] == script[last] / 4
    shown = range(last + 1)
    better = [step for step in shown if script[step] > max(script[:step], default=-1)]
    assert engine.models == [(step, script[step] / 4) for step in better]
    assert trainer.best == (script[better[-1]] / 4, better[-1])


def test_states_are_saved_every_interval_and_not_twice(tmp_path):
    engine = Engine(fail_at=10)  # in the fourth step, which saves anyway
    with pytest.raises(SystemExit):
        train(tmp_path, engine, "--save_interval", 2)
    assert engine.saves == ["step_2.partial", "step_4.partial"]
    assert evaluations(tmp_path) == [0, 3]


@pytest.mark.parametrize("fail", [signal.SIGTERM, signal.SIGINT, Crash])
def test_a_resumed_run_writes_the_same_metrics(tmp_path, fail):
    """Cut at the forward passes in turn: at every one, or with two signals at every other one."""
    words = ["--eval_interval", 2, "--logging_steps", 3, "--save_interval", 4]
    whole = Engine()
    train(tmp_path / "whole", whole, *words, eval_batch=2)
    expected = read_lines(tmp_path / "whole")
    assert [ln["step"] for ln in expected] == [0, 2, 3, 3, 4, 6, 6]
    first, stride = {signal.SIGTERM: (1, 2), signal.SIGINT: (2, 2), Crash: (1, 1)}[fail]
    for number in range(first, whole.forwards + 1, stride):
        folder, engine = tmp_path / str(number), Engine(number, fail)
        with pytest.raises(Crash if fail is Crash else SystemExit) as stop:
            train(folder, engine, *words, eval_batch=2)
        if fail is not Crash:
            assert stop.value.code == 128 + fail
            assert engine.forwards <= number + 1  # the step ends, but no evaluation
        resumed = Engine()
        train(folder, resumed, *words, "--resume_from_checkpoint", "latest", eval_batch=2)
        assert read_lines(folder) == expected
        weights = zip(whole.parameters(), resumed.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("fail_at", [3, 6, 8, 11])
def test_a_run_over_mixed_sources_goes_on_exactly(tmp_path, fail_at):
    mixture = Mixture([np.arange(3), np.arange(3, 10)], [0.5, 0.5])  # 6 rows, 2 steps a pass
    train(tmp_path / "whole", Engine(), mixture=mixture)
    expected = read_lines(tmp_path / "whole")
    assert [ln["epoch"] for ln in expected if "loss" in ln] == pytest.approx([2 / 3, 1, 5 / 3, 2])
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", Engine(fail_at), mixture=mixture)
    train(tmp_path / "cut", Engine(), *AGAIN, mixture=mixture)
    assert read_lines(tmp_path / "cut") == expected


def test_a_run_cut_twice_keeps_its_best_model(tmp_path):
    script = [1, 3, 2, 4, 3, 4, 0]
    words = ["--eval_interval", 1, "--save_best"]
    whole = Engine(script=script)
    train(tmp_path / "whole", whole, *words)
    models = []
    # In the second step; in the second evaluation; never. An evaluation is 1 pass, a step 2.
    for fail_at, begins in ((5, 0), (4, 2), (0, 3)):
        engine = Engine(fail_at, script=script[begins:])
        try:
            train(tmp_path / "cut", engine, *words, "--resume_from_checkpoint", "latest")
        except SystemExit:
            assert fail_at
        models += engine.models
    assert read_lines(tmp_path / "cut") == read_lines(tmp_path / "whole")
    assert [step for step, _ in models] == [0, 1, 3]
    assert models == whole.models


def test_the_best_model_counts_only_where_it_is(tmp_path):
    """Here a better accuracy than all that follow was reached before the run was cut."""
    words = ["--eval_interval", 1, "--save_best"]
    for elsewhere in (False, True):
        first = tmp_path / f"first{elsewhere}"
        with pytest.raises(SystemExit):
            train(first, Engine(5, script=[4, 4]), *words)
        engine = Engine(script=[2, 3, 1, 1, 1, 1])
        folder = tmp_path / "elsewhere" if elsewhere else first
        state = first / "checkpoints" / "step_2"
        trainer = train(folder, engine, *words, "--resume_from_checkpoint", state)
        assert [step for step, _ in engine.models] == ([2, 3] if elsewhere else [])
        assert trainer.best == ((3 / 4, 3) if elsewhere else (1, 0))


@pytest.mark.parametrize("older", [False, True])
def test_a_model_that_save_best_did_not_choose_is_not_the_best(tmp_path, capsys, older):
    """The run began without --save_best; its last model stands in the folder."""
    words = ["--eval_interval", 1, "--save_interval", 1]
    train(tmp_path, Engine(script=[4, 4, 2, 2]), *words, "--max_steps", 3)
    (tmp_path / "config.json").touch()  # main.py saves the last one, of 2 right pairs
    if older:
        for path in tmp_path.glob("checkpoints/*/state.json"):
            state = json.loads(path.read_text())
            del state["saved_model"]
            path.write_text(json.dumps(state))
    capsys.readouterr()
    engine = Engine(script=[2, 1, 3, 0])
    trainer = train(tmp_path, engine, *words, "--save_best", *AGAIN)
    assert f"{tmp_path}, so it counts as none" in capsys.readouterr().out
    assert [step for step, _ in engine.models] == [3, 5]
    assert trainer.best == (3 / 4, 5)

    # The other way round: where the last model replaces the best one, no later run counts that.
    where = ["--model_name_or_path", "m", "--output_dir", str(tmp_path)]
    args = parse_training_arguments([*where, "--save_best", *AGAIN])
    assert Resume(args, CPU).best_model() == (3 / 4, 5)
    forget_saved_model(args)
    assert Resume(args, CPU).best_model() == NO_MODEL


def test_a_signal_before_the_first_step_and_a_kill_keep_the_state(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit):
        train(folder, Engine(7), *AGAIN)  # in the third step, which ends a pass
    shutil.copytree(folder, tmp_path / "before")

    def stop_in_the_first_evaluation():
        with pytest.raises(SystemExit):
            train(folder, Engine(1), *AGAIN)

    for number in itertools.count(1):
        if not is_killed(monkeypatch, number, stop_in_the_first_evaluation):
            break
        train(folder, Engine(), *AGAIN, "--max_steps", 3)
        assert evaluations(folder) == [0, 3] and len(read_lines(folder)) == 5
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
    assert number > 1


def test_a_run_that_stops_at_once_after_a_resume_has_a_result_to_save(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Engine(5, script=[4, 3]), "--eval_interval", 1)
    assert train(tmp_path, Engine(), *AGAIN, "--early_stopping_patience", 1).result  # run out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--output_dir", "a b"], "--output_dir 'a b'"),
        (["--local_rank=0", "--seed", "1"], "--seed 1"),
        (["--local_rank", "0", "--seed", "1"], "--seed 1"),
        ([*AGAIN, "--seed", "1"], "--seed 1"),
    ],
)
def test_the_command_to_go_on_is_printed(tmp_path, monkeypatch, capsys, words, shown):
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit):
        train(tmp_path, Engine(4))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("stopped by a signal after step 2 of 6; to go on: ")
    assert line.endswith(f": python main.py {shown} --resume_from_checkpoint latest")
