"""The training loop: steps, evaluations, training states, and when to stop."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from utils import distributed
from utils.data.batching import Batch
from utils.evaluation.metrics import SUMS, comparison_sums
from utils.evaluation.scoring import evaluate
from utils.training.checkpoint import Progress, save_checkpoint
from utils.training.engine import step_engine
from utils.training.log import RunLog
from utils.training.loss import pairwise_loss


class Trainer:
    """Runs steps from where `progress` stands to the end of `log.total_steps`.

    Attributes:
        result: of the last evaluation (metrics.summarize).

    Args:
        args: the command line.
        engine: the DeepSpeed engine.
        device: of this rank.
        log: where metrics go.
        progress: how far the run is; kept up to date.
        comparisons: number of them in a pass over the training data.
        run: what training states are saved with: run and batch of a Checkpoint.
        save_model: saves the model, given the result of its evaluation; for --save_best.
    """

    def __init__(
        self,
        args,
        engine,
        device: torch.device,
        log: RunLog,
        progress: Progress,
        comparisons: int,
        run: dict,
        save_model: Callable[[dict], None],
    ):
        self.args, self.engine, self.device = args, engine, device
        self.log, self.progress, self.comparisons = log, progress, comparisons
        self.run, self.save_model = run, save_model
        self.stop = distributed.StopSignal(device)
        self.saved_step = -1
        self.result: dict = {}

    def train(self, batches: Iterable[Batch], eval_batches: Iterable[Batch]) -> None:
        """Run the steps, with evaluations between.

        Args:
            batches: the micro-batches of this rank from here to the end.
            eval_batches: of one evaluation.

        Raises:
            SystemExit: a signal came; the training state is saved.
            FloatingPointError: the loss is not finite.
        """
        batches = iter(batches)
        self.engine.train()  # a loaded model has its dropout off
        while True:
            if self._evaluation_is_due():
                self._evaluate(eval_batches)
            if self._is_finished():
                return
            self._step(batches)
            interval = self.args.save_interval
            if interval and self.progress.step % interval == 0:
                self._save_state()
            if code := self.stop.agreed():
                self._leave(code)

    def _evaluation_is_due(self) -> bool:
        step, interval = self.progress.step, self.args.eval_interval
        at_end = self.progress.seen == 0 or step == self.log.total_steps  # of a pass, or the run
        asked_for = at_end or (interval > 0 and step % interval == 0)
        return asked_for and step not in [step for step, _ in self.log.evaluations()[-1:]]

    def _evaluate(self, eval_batches: Iterable[Batch]) -> None:
        result = evaluate(self.engine, eval_batches, self.device, self.stop.agreed)
        if result is None:
            self._leave(self.stop.agreed())
        best = max((accuracy for _, accuracy in self.log.evaluations()), default=-1.0)
        self.log.evaluation(self.progress.step, self._epoch(), result)
        self.result = result
        if self.args.save_best and result["accuracy"] > best:
            self.save_model(result)

    def _is_finished(self) -> bool:
        if self.progress.step >= self.log.total_steps:
            return True
        patience = self.args.early_stopping_patience
        accuracies = [accuracy for _, accuracy in self.log.evaluations()]
        if not patience or len(accuracies) - 1 - int(np.argmax(accuracies)) < patience:
            return False
        distributed.log(
            f"stopped early after step {self.progress.step}: {patience} evaluations without a "
            f"better accuracy than {max(accuracies):.4f}"
        )
        return True

    def _step(self, batches: Iterator[Batch]) -> None:
        started, learning_rate = time.perf_counter(), self.engine.get_lr()[0]
        sums, norm = run_step(self.args, self.engine, batches, self.device, self.progress.step + 1)
        self.progress.advance(round(float(sums[0])), self.comparisons)
        seconds = time.perf_counter() - started
        values = {"lr": learning_rate, "grad_norm": norm}
        if self.args.dtype == "fp16":
            values["skipped_steps"] = self.engine.skipped_steps
        self.log.step(self.progress.step, self._epoch(), sums, seconds, **values)

    def _epoch(self) -> float:
        return self.progress.epoch + self.progress.seen / self.comparisons

    def _save_state(self):
        if self.saved_step != self.progress.step:
            state = {"log": self.log.state(), **self.run}
            folder = save_checkpoint(self.engine, self.args, self.progress, **state)
            distributed.log(f"step {self.progress.step}: training state saved in {folder}")
            self.saved_step = self.progress.step

    def _leave(self, code: int) -> None:
        """Save the training state after a signal, say how to go on, and end the process."""
        self._save_state()
        self.log.close()
        words = [word for word in sys.argv if not word.startswith("--local_rank")]
        words += ["--resume_from_checkpoint", "latest"]
        launcher = "python" if distributed.world_size() == 1 else "(launcher and its flags)"
        distributed.log(
            f"stopped by a signal after step {self.progress.step} of {self.log.total_steps}; to go "
            f"on: {launcher} {shlex.join(words)}"
        )
        raise SystemExit(code)


def run_step(
    args, engine, batches: Iterator[Batch], device: torch.device, step: int
) -> tuple[torch.Tensor, float]:
    """Forward and backward over the micro-batches of one step, then the optimiser.

    Args:
        args: seed, gradient_accumulation_steps and dtype count.
        engine: the DeepSpeed engine.
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
    sums = torch.zeros(len(SUMS) + 4, dtype=torch.float64, device=device)
    for micro_step in range(args.gradient_accumulation_steps):
        batch = next(batches)
        sums[len(SUMS) :] += batch.work().to(device)
        batch = batch.to(device)
        scores = engine(batch)
        engine.backward(pairwise_loss(scores, batch.pairs, batch.weight))
        sums[: len(SUMS)] += comparison_sums(scores.detach(), batch).sum(dim=0)
        if micro_step < args.gradient_accumulation_steps - 1:
            engine.step()  # only counts the micro-batch
    distributed.sum_over_ranks(sums)
    if not sums.isfinite().all() and args.dtype != "fp16":
        raise FloatingPointError(
            f"the loss is not finite at step {step}: lower --learning_rate, or check the data; "
            "nothing was saved over what --output_dir held before"
        )
    return sums, step_engine(engine)
