"""The training loop: steps, evaluations, training states, and when to stop."""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from utils import distributed
from utils.data.batch import Batch
from utils.evaluation.metrics import SUMS, comparison_sums
from utils.evaluation.scoring import Sources, evaluate_batches
from utils.training.checkpoint import NO_MODEL, Progress, save_checkpoint
from utils.training.engine import step_engine
from utils.training.log import RunLog
from utils.training.loss import training_loss
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
        batches: Iterable[Batch],
        eval_batches: Iterable[Batch],
        sources: Sources | None = None,
    ) -> None:
        """Run the steps, with evaluations between.

        Args:
            batches: the micro-batches of this rank from here to the end, or more of them.
            eval_batches: of one evaluation.
            sources: of the comparisons of `eval_batches`.

        Raises:
            SystemExit: a signal came; the training state is saved.
            FloatingPointError: the loss is not finite.
        """
        batches = iter(batches)
        self.engine.train()  # a loaded model has its dropout off
        if self.args.save_best and self.args.save_interval:
            self._save_state()  # where a model stands that may still change, `latest` finds a state

        while True:
            if self._evaluation_is_due():
                self._evaluate(eval_batches, sources)
            if self._is_finished():
                return

            self._step(batches)
            interval, code = self.args.save_interval, self.stop.agreed()
            if code:
                self._leave(code)
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

    def _step(self, batches: Iterator[Batch]) -> None:
        started, learning_rate = time.perf_counter(), self.engine.get_lr()[0]
        sums, norm = run_step(self.args, self.engine, batches, self.device, self.progress.step + 1)
        self.progress.advance(round(float(sums[len(SUMS)])), self.epoch_size)
        seconds = time.perf_counter() - started

        values = {"lr": learning_rate, "grad_norm": norm}
        if self.args.dtype == "fp16":
            values["skipped_steps"] = self.engine.skipped_steps
        self.log.step(self.progress.step, self._epoch(), sums, seconds, **values)

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


def run_step(
    args: TrainingSettings,
    engine: "DeepSpeedEngine",
    batches: Iterator[Batch],
    device: torch.device,
    step: int,
) -> tuple[torch.Tensor, float]:
    """Forward and backward over the micro-batches of one step, then the optimiser.

    Args:
        args: seed, gradient_accumulation_steps, dtype and the flags of the loss count.
        engine: runs the model.
        batches: the next micro-batches of this rank.
        device: of this rank.
        step: number of the step. Dropout depends on it, the seed and the rank alone, so that a
            run that was cut goes on with the same random numbers.

    Returns:
        Sums over all ranks for RunLog.step, and the norm of the gradient.

    Raises:
        FloatingPointError: the loss is not finite; in fp16, the loss scaler skips such a step.
    """
    seeds = np.random.SeedSequence([args.seed, step, distributed.rank()])
    torch.manual_seed(int(seeds.generate_state(1)[0]))

    metrics = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    seen, total = torch.zeros(2, dtype=torch.float64, device=device)
    work = torch.zeros(4, dtype=torch.float64)

    for micro_step in range(args.gradient_accumulation_steps):
        batch = next(batches)
        work += batch.work()
        batch = batch.to(device)

        output = engine(batch)
        scores, values = (output, None) if batch.token_pairs is None else output
        loss = training_loss(args, scores, values, batch)
        engine.backward(loss)

        metrics += comparison_sums(scores.detach(), batch).sum(dim=0)
        seen += batch.counted.sum()
        total += loss.detach()
        if micro_step < args.gradient_accumulation_steps - 1:
            engine.step()  # only counts the micro-batch

    sums = torch.cat([metrics, torch.stack([seen, total]), work.to(device)])
    distributed.sum_over_ranks(sums)
    # Micro-batches add up to their number times the mean over comparisons (sampling.MicroBatch).
    micro_batches = args.gradient_accumulation_steps * distributed.world_size()
    sums[len(SUMS) + 1] *= sums[len(SUMS)] / micro_batches

    if not sums.isfinite().all() and args.dtype != "fp16":
        raise FloatingPointError(
            f"the loss is not finite at step {step}: lower --learning_rate, or check the data; "
            "nothing was saved over what --output_dir held before"
        )
    return sums, step_engine(engine)
