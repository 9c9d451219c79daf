"""The training loop: steps, evaluations, training states, and when to stop."""

import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
import torch

from utils import distributed
from utils.data.batch import Batch
from utils.evaluation.metrics import SUMS, comparison_sums
from utils.evaluation.scoring import Sources, evaluate_batches
from utils.training.checkpoint import NO_MODEL, Progress, save_checkpoint
from utils.training.engine import step_engine
from utils.training.log import RunLog
from utils.training.loss import model_loss
from utils.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(kw_only=True)
class Trainer:
    """Runs steps from where `progress` stands to the end of `log.total_steps`.

    Attributes:
        args: the command line.
        engine: runs the model.
        device: of this rank.
        log: where metrics go.
        progress: how far the run is; kept up to date.
        epoch_size: comparisons of an epoch.
        run: what training states are saved with: run, batch and flags of a Checkpoint.
        save_model: saves the model, given the result of its evaluation; for --save_best.
        best: accuracy and step of the model that --save_best has saved so far.
        result: of the last evaluation (scoring.evaluate_batches).
    """

    args: TrainingSettings
    engine: "DeepSpeedEngine"
    device: torch.device
    log: RunLog
    progress: Progress
    epoch_size: int
    run: dict
    save_model: Callable[[dict], None]
    best: tuple[float, int] = NO_MODEL
    result: dict = field(default_factory=dict)

    def __post_init__(self):
        self.stop = distributed.StopSignal(self.device)

    def train(
        self,
        batches: Iterable[Sequence[Batch]],
        eval_batches: Iterable[Batch],
        sources: Sources | None = None,
    ) -> None:
        """Run the steps, with evaluations between.

        Args:
            batches: the micro-batches of this rank, those of a step together, from here to the end
                or further.
            eval_batches: of one evaluation.
            sources: of the comparisons of `eval_batches`.

        Raises:
            SystemExit: a signal came; the training state is saved.
            FloatingPointError: the loss is not finite.
        """
        steps = iter(batches)
        self.engine.train()  # a loaded model has its dropout off
        if self.args.save_best and self.args.save_interval:
            self._save_state()  # where a model stands that may still change, `latest` finds a state

        while True:
            if self._evaluation_is_due():
                self._evaluate(eval_batches, sources)
            if self._is_finished():
                return

            if self._step(steps):
                self._leave(self.stop.agreed())
            interval = self.args.save_interval
            if interval and self.progress.step % interval == 0:
                self._save_state()

    def _evaluation_is_due(self) -> bool:
        step, interval = self.progress.step, self.args.eval_interval
        at_end = self.progress.seen == 0 or step == self.log.total_steps  # of a pass, or the run
        return at_end or (interval > 0 and step % interval == 0)

    def _evaluate(self, eval_batches: Iterable[Batch], sources: Sources | None) -> None:
        result = evaluate_batches(self.engine, eval_batches, self.device, self.stop.agreed, sources)
        if result is None:
            self._leave(self.stop.agreed())

        self.log.evaluation(self.progress.step, self._epoch(), result)
        self.result = result

        if self.args.save_best and result["accuracy"] > self.best[0]:
            self.save_model(result)
            self.best = result["accuracy"], self.progress.step

    def _is_finished(self) -> bool:
        if self.progress.step >= self.log.total_steps:
            return True

        patience, accuracies = self.args.early_stopping_patience, self.log.accuracies()
        if not patience or not self.result:  # stop after an evaluation alone
            return False
        if len(accuracies) - 1 - int(np.argmax(accuracies)) < patience:
            return False

        distributed.log(
            f"stopped early after step {self.progress.step}: {patience} evaluations without a "
            f"better accuracy than {max(accuracies):.4f}"
        )
        return True

    def _step(self, steps: Iterator[Sequence[Batch]]) -> bool:
        """Run a step and log it; return whether a rank has got a signal."""
        started, learning_rate = time.perf_counter(), self.engine.get_lr()[0]
        step = self.progress.step + 1
        sums, norm, signalled = run_step(
            self.args, self.engine, next(steps), self.device, step, lambda: self.stop.code
        )
        self.progress.advance(round(float(sums[len(SUMS)])), self.epoch_size)
        seconds = time.perf_counter() - started

        values = {"lr": learning_rate, "grad_norm": norm}
        if self.args.dtype == "fp16":
            values["skipped_steps"] = self.engine.skipped_steps
        self.log.step(step, self._epoch(), sums, seconds, **values)
        return signalled

    def _epoch(self) -> float:
        return self.progress.epoch + self.progress.seen / self.epoch_size

    def _save_state(self) -> None:
        # Without --save_best the last model will stand in the folder, whatever stood there before.
        best = self.best if self.args.save_best else NO_MODEL
        state = {"log": self.log.state(), "saved_model": best, **self.run}
        folder = save_checkpoint(self.engine, self.args, self.progress, **state)
        distributed.log(f"step {self.progress.step}: training state saved in {folder}")

    def _leave(self, code: int) -> NoReturn:
        """Save the training state after a signal, say how to go on, and end the process."""
        self._save_state()
        self.log.close()

        words = re.sub(r" --(local_rank|resume_from_checkpoint)[= ]\S+", "", shlex.join(sys.argv))
        launcher = "python" if distributed.world_size() == 1 else "(launcher and its flags)"
        distributed.log(
            f"stopped by a signal after step {self.progress.step} of {self.log.total_steps}; to go "
            f"on: {launcher} {words} --resume_from_checkpoint latest"
        )
        raise SystemExit(code)


class StepResult(NamedTuple):
    """What a step gives, the same on every rank.

    Attributes:
        sums: float64 [17] over all ranks, for RunLog.step.
        norm: of the gradient, before clipping.
        signalled: whether a rank had got a signal.
    """

    sums: torch.Tensor
    norm: float
    signalled: bool


def run_step(
    args: TrainingSettings,
    engine: "DeepSpeedEngine",
    batches: Sequence[Batch],
    device: torch.device,
    step: int,
    signal: Callable[[], int] = int,
) -> StepResult:
    """Forward and backward over the micro-batches of one step, then the optimiser.

    The host runs ahead of a GPU and waits for it once, at the end.

    Args:
        args: seed, dtype and the flags of the loss count.
        engine: runs the model.
        batches: the micro-batches of this rank; other ranks have as many.
        device: of this rank.
        step: number of the step. Dropout depends on it, the seed and the rank alone, so that a
            run that was cut goes on with the same random numbers in the same micro-batches.
        signal: tells which one this rank has got; 0: none.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; in fp16, the loss scaler skips
            such a step, until it can scale no lower.
    """
    seeds = np.random.SeedSequence([args.seed, step, distributed.rank()])
    torch.manual_seed(int(seeds.generate_state(1)[0]))

    metrics = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    seen, total = torch.zeros(2, dtype=torch.float64, device=device)
    work = torch.zeros(4, dtype=torch.float64)

    for number, batch in enumerate(batches):
        work += batch.work()
        batch = batch.to(device)
        engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
        loss, scores = model_loss(args, engine, batch)
        engine.backward(loss, scale_wrt_gas=False)  # the weights add up (sampling.TrainingPlan)

        metrics += comparison_sums(scores.detach(), batch).sum(dim=0)
        seen += batch.counted.sum()
        total += loss.detach()

    norm = step_engine(engine, step)
    counts = torch.cat([work, torch.tensor([signal()])]).to(device, non_blocking=True)
    found = torch.cat([metrics, torch.stack([seen, total]), counts])
    distributed.sum_over_ranks(found)
    *values, signals, norm = torch.cat([found, norm.to(found)]).tolist()  # waits for the GPU

    sums = torch.tensor(values, dtype=torch.float64)
    # What the ranks add up to is their number times the mean over the comparisons.
    sums[len(SUMS) + 1] *= sums[len(SUMS)] / distributed.world_size()

    if args.dtype != "fp16" and not (sums.isfinite().all() and 0 <= norm < math.inf):
        raise FloatingPointError(
            f"the loss or its gradient is not finite at step {step}: lower --learning_rate, or "
            "check the data; no model of this step was saved"
        )
    return StepResult(sums, norm, signals > 0)
