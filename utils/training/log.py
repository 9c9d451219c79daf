"""What a run tells: progress bar, metrics.jsonl, monitors, curves."""

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy  # loads its parts when they are first used
import torch

from utils import distributed
from utils.evaluation.metrics import SOURCE_METRICS, SUMS, summarize
from utils.output.pictures import ACCENT, DARK, LIGHT, picture
from utils.output.tables import TextTable, print_table
from utils.training.settings import OutputSettings, TrainingSettings
from utils.training.throughput import Throughput

if TYPE_CHECKING:
    from deepspeed.monitor.monitor import MonitorMaster

SHOWN_SOURCES = 20
PACKAGES = ("deepspeed", "transformers", "datasets", "accelerate", "peft")


def write_arguments(
    args: TrainingSettings, ds_config: dict, counts: dict, global_batch_size: float
) -> None:
    """Write training_args.json: arguments, versions, git commit, counts of the data."""
    if not distributed.is_main():
        return
    record = {
        "arguments": args.flags(),
        "world_size": distributed.world_size(),
        "global_batch_size": global_batch_size,
        "deepspeed_config": ds_config,
        "data": counts,
        "versions": _versions(),
        "git_commit": _git_commit(),
    }
    path = Path(args.output_dir) / "training_args.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class RunLog:
    """Writes a line of metrics.jsonl every so many steps and one an evaluation.

    Attributes:
        lines: those of metrics.jsonl so far.

    Args:
        args: output_dir and logging_steps count.
        total_steps: steps of the whole run.
        monitor: DeepSpeed's monitor, which sends lines to TensorBoard and others.
        throughput: turns counted work into rates.
        step: where the run begins.
        before: what `state` gave there, if not at the start.
    """

    def __init__(
        self,
        args: OutputSettings,
        total_steps: int,
        monitor: "MonitorMaster",
        throughput: Throughput,
        *,
        step: int = 0,
        before: dict | None = None,
    ):
        self.file = Path(args.output_dir) / "metrics.jsonl"
        self.logging_steps = args.logging_steps
        self.total_steps = total_steps
        self.monitor = monitor
        self.throughput = throughput
        before = before or {"lines": [], "sums": 0.0, "seconds": 0.0, "latest": None}
        self.lines: list[dict] = before["lines"]
        # Of the steps since the last line.
        self.sums = torch.tensor(before["sums"], dtype=torch.float64)
        self.seconds: float = before["seconds"]
        self.latest: Sequence[dict] = before["latest"]
        self.bar = distributed.progress(initial=step, total=total_steps, desc="Training")
        if distributed.is_main():
            self.file.write_text("".join(map(_json_line, self.lines)), encoding="utf-8")

    def state(self) -> dict:
        """What another RunLog needs to go on from here, ready for JSON."""
        return {
            "lines": self.lines,
            "sums": self.sums.tolist(),
            "seconds": self.seconds,
            "latest": self.latest,
        }

    def accuracies(self) -> list[float]:
        """Those of the evaluations so far."""
        return [line["eval_accuracy"] for line in self.lines if "eval_accuracy" in line]

    def step(
        self, step: int, epoch: float, sums: torch.Tensor, seconds: float, **values: float
    ) -> None:
        """Count a step; every `logging_steps` of them become a line.

        Args:
            step: number of the step, counted from 1.
            epoch: passes over the data so far.
            sums: float64 [17] over all ranks: metrics.SUMS, the comparisons that trained, the sum
                of their losses, then Batch.work.
            seconds: duration of the step.
            values: more entries of the line, such as lr.
        """
        self.bar.update()
        self.sums = self.sums + sums
        self.seconds += seconds
        self.latest = {"step": step, "epoch": epoch}, values
        if step % self.logging_steps == 0 or step == self.total_steps:
            self._write_steps()

    def _write_steps(self) -> None:
        place, values = self.latest
        result = summarize(self.sums[: len(SUMS)])
        seen, loss = self.sums[len(SUMS) : len(SUMS) + 2].tolist()
        answers, work = float(self.sums[SUMS.index("answers")]), self.sums[len(SUMS) + 2 :]
        rates = self.throughput.rates(seen, answers, work, self.seconds)
        earlier = (line["seconds"] for line in reversed(self.lines) if "seconds" in line)
        rates["seconds"] = next(earlier, 0.0) + self.seconds
        result["loss"] = loss / seen  # the one that trains; an evaluation's is Bradley-Terry's
        shown = {name: result[name] for name in ("loss", "accuracy", "margin")}
        self._write({**place, **shown, **values, **rates}, "train")
        self.bar.set_postfix(
            refresh=False,  # the bar keeps its own pace
            loss=f"{result['loss']:.3f}",
            accuracy=f"{result['accuracy']:.3f}",
            pairs_per_second=f"{result['pairs'] / self.seconds:.1f}",
        )
        self.sums, self.seconds = torch.zeros((), dtype=torch.float64), 0.0

    def evaluation(self, step: int, epoch: float, result: dict) -> None:
        """Write and print the result of an evaluation (scoring.evaluate_batches)."""
        values = {f"eval_{name}": value for name, value in result.items()}
        self._write({"step": step, "epoch": epoch, **values}, "eval")
        distributed.log(
            f"step {step}, epoch {epoch:.2f}: evaluation loss {result['loss']:.4f}, accuracy "
            f"{result['accuracy']:.4f} of {result['pairs']:,} pairs ({result['ties']:,} ties), "
            f"margin {result['margin']:.3f}, better {result['better_score']:.3f}, "
            f"worse {result['worse_score']:.3f}"
        )
        if "sources" in result and distributed.is_main():
            with self.bar.external_write_mode():  # the table does not tear the progress bar
                print_table(source_table(result["sources"]))

    def close(self) -> None:
        """Close the progress bar and what else waits for the end."""
        self.bar.close()
        comet = self.monitor.comet_monitor
        if comet is not None:
            comet.experiment.end()  # sends what it holds back

    def finish(self) -> None:
        """Write what is left after an early stop, close, and draw the curves."""
        if self.seconds:
            self._write_steps()
        self.close()
        if distributed.is_main():
            draw_curves(self.lines, self.file.with_name("training_curves.png"))

    def _write(self, line: dict, group: str) -> None:
        self.lines.append(line)
        if distributed.is_main():
            with self.file.open("a", encoding="utf-8") as file:
                file.write(_json_line(line))
        values = {name.removeprefix("eval_"): value for name, value in line.items()}
        step = values.pop("step")
        del values["epoch"]
        sources = values.pop("sources", {})
        values |= {f"{name}/accuracy": part["accuracy"] for name, part in sources.items()}
        self.monitor.write_events([(f"{group}/{name}", v, step) for name, v in values.items()])


def source_table(sources: dict[str, dict]) -> TextTable:
    """The metrics of each source (metrics.summarize_sources) as a table, the largest first."""
    largest = sorted(sources, key=lambda name: -sources[name]["comparisons"])
    rows = [
        (name, *(_figure(sources[name][metric]) for metric in SOURCE_METRICS))
        for name in largest[:SHOWN_SOURCES]
    ]
    more = len(largest) - SHOWN_SOURCES
    if more > 0:
        rows += [(f"and {more} more in metrics.jsonl", *[""] * len(SOURCE_METRICS))]
    return TextTable("By source", "", ("source", *SOURCE_METRICS), rows)


def draw_curves(lines: list[dict], path: Path) -> None:
    """Draw loss, accuracy, margin and learning rate against the step, as a PNG.

    Args:
        lines: the lines of metrics.jsonl.
        path: of the picture.
    """
    panels = {
        "loss": "loss (nats; evaluation:\nBradley-Terry, a pair)",
        "accuracy": "accuracy (share of pairs)",
        "margin": "margin (score difference)",
        "lr": "learning rate",
    }
    with picture(path, height=6.8) as figure:
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, label) in zip(grid.flat, panels.items(), strict=True):
            _draw_curve(axes, lines, name)
            axes.set_ylabel(label)
        for axes in grid[1]:
            axes.set_xlabel("step")
        grid[1, 1].yaxis.set_major_formatter("{x:g}")
        labelled = grid[0, 0].get_legend_handles_labels()
        figure.legend(*labelled, loc="outside upper right", ncols=3)


def _draw_curve(axes, lines: list[dict], name: str) -> None:
    """A value of training lines, as it is and smoothed, and of evaluations."""
    train = [(line["step"], line[name]) for line in lines if name in line]
    evaluation = [(ln["step"], ln[f"eval_{name}"]) for ln in lines if f"eval_{name}" in ln]
    if train and name == "lr":
        axes.plot(*zip(*train, strict=True), color=DARK)
    elif train:
        steps, values = zip(*train, strict=True)
        axes.plot(steps, values, color=LIGHT, linewidth=1.2, label="training")
        axes.plot(steps, _smooth(values), color=DARK, label="training, smoothed")
    if evaluation:
        steps, values = zip(*evaluation, strict=True)
        axes.plot(steps, values, color=ACCENT, linestyle="--", marker="o", label="evaluation")


def _versions() -> dict[str, str]:
    """Of Python and the packages; torch names its build, as +cpu or +cu130, in its own alone."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in PACKAGES}


def _git_commit() -> str | None:
    """The commit of this checkout; None outside of one."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def _json_line(line: dict) -> str:
    """A line of metrics.jsonl."""
    return json.dumps(_finite(line)) + "\n"


def _finite(value):
    """JSON has no NaN and no infinity: None instead."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return value if math.isfinite(value) else None


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _smooth(values: Sequence[float], keep: float = 0.9) -> np.ndarray:
    """Exponential moving average, corrected for its start."""
    mean = scipy.signal.lfilter([1 - keep], [1, -keep], values)
    return mean / (1 - keep ** np.arange(1, len(values) + 1))
