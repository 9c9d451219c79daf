"""The part of gpu_check.py that trains: main.py as users start it, in each precision and stage."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.consumer_scripts.serving import end_group
from benchmarks.gpu_parts.common import (
    LEFT_OUT,
    MAX_LENGTH,
    Findings,
    Machine,
    largest,
    make_config,
)
from utils.demo import write_demo

ROOT = Path(__file__).parents[2]
STEPS, EPOCHS = 30, 6  # so few comparisons that the losses of every run fall
LIMITS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-3}  # of a loss, against that of fp32

REFERENCE = "fp32, stage 0"
RUNS = {
    REFERENCE: "--dtype fp32 --zero_stage 0",
    "bf16, stage 1": "--dtype bf16 --zero_stage 1",
    "bf16, stage 2": "--dtype bf16 --zero_stage 2",
    "bf16, stage 3": "--dtype bf16 --zero_stage 3",
    "fp16, stage 1": "--dtype fp16 --zero_stage 1",
    "fp16, stage 2": "--dtype fp16 --zero_stage 2",
    "fp16, stage 3": "--dtype fp16 --zero_stage 3",
    "bf16, stage 2, offload": "--dtype bf16 --zero_stage 2 --offload",
    "fp16, stage 3, offload": "--dtype fp16 --zero_stage 3 --offload",
    "bf16, stage 1, gradient checkpointing": "--dtype bf16 --zero_stage 1 --gradient_checkpointing",
    "bf16, stage 1, padded": "--dtype bf16 --zero_stage 1 --batch_layout padded",
}
# At its full width, rounding to bf16 alone moves losses of random weights by more than LIMITS.
HALF_AS_WIDE = {"hidden_size": 512, "word_embed_proj_dim": 256, "ffn_dim": 2048}
HALF_AS_WIDE |= {"num_attention_heads": 8, "num_hidden_layers": 6}

ON_ALL_GPUS = {"bf16, stage 2", "bf16, stage 3"}

# What a process group of this process would tell its children.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Run:
    """What a run of main.py has left.

    Attributes:
        code: its exit code; None if it was ended, since its time was over.
        seconds: it took.
        steps: the lines of metrics.jsonl that are steps.
        checks: of the saved model, as in checks.json.
        last_words: the last line that it printed.
    """

    code: int | None
    seconds: float
    steps: list[dict]
    checks: list[dict]
    last_words: str = ""

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [math.nan if step["loss"] is None else step["loss"] for step in self.steps]

    @property
    def skipped(self) -> int:
        """Steps that the loss scaler of fp16 has skipped."""
        return self.steps[-1].get("skipped_steps", 0) if self.steps else 0

    def difference(self, expected: list[float]) -> float | None:
        """The largest one to the losses that are expected; None where none are."""
        pairs = list(zip(self.losses, expected, strict=False))
        return largest([abs(ours - theirs) for ours, theirs in pairs]) if pairs else None


def training(machine: Machine) -> Findings:
    """Train the same model on the same data in each way; losses must be those of the reference."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model_and_data(machine, folder)
        losses: dict[str, list[float]] = {}

        for name, run in run_all(machine, folder):
            losses[name] = run.losses if run else []
            yield name, judge(run, losses[REFERENCE], limit_of(name))

        gpus = torch.cuda.device_count()
        for name in sorted(ON_ALL_GPUS & losses.keys()) if gpus > 1 else ():
            run = run_main(machine, folder, name, gpus)
            yield f"{name}, {gpus} GPUs", judge(run, losses[name], limit_of(name))


def limit_of(name: str) -> float:
    """By how much the losses of a run may differ."""
    return LIMITS[name.split(",")[0]]


def write_model_and_data(machine: Machine, folder: Path) -> None:
    """Write a model like a small OPT-350m, with the demo's tokenizer, and some of its data."""
    write_demo(folder / "demo")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "demo" / "model")
    sizes = {"vocab_size": len(tokenizer), **machine.choose(HALF_AS_WIDE, {})}
    sizes |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = make_config(machine, "OPT-350m", **sizes)

    transformers.set_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    (folder / "data").mkdir()
    numbers = {"train": batch_size(machine) * STEPS // EPOCHS, "test": 32}
    for name, number in numbers.items():
        lines = read(folder / "demo" / "data" / f"{name}.jsonl").splitlines(keepends=True)
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines[:number]), encoding="utf-8")


def batch_size(machine: Machine) -> int:
    """Comparisons of a step: the same on one GPU and on all."""
    gpus = max(1, torch.cuda.device_count())
    return gpus * max(1, machine.choose(16, 8) // gpus)


def run_all(machine: Machine, folder: Path) -> Iterator[tuple[str, Run | None]]:
    """The runs on one device, in their order; on a GPU four at a time."""
    names = [name for name, flags in RUNS.items() if is_wanted(machine, flags)]
    at_once = 4 if machine.device.type == "cuda" else 1
    with ThreadPoolExecutor(at_once) as pool:
        yield from zip(
            names, pool.map(lambda name: run_main(machine, folder, name), names), strict=True
        )


def is_wanted(machine: Machine, flags: str) -> bool:
    """Whether a run belongs to this form of the check."""
    dtype = flags.split()[1]
    return dtype in ("fp32", *machine.dtypes) and not (machine.tiny and "--offload" in flags)


def run_main(machine: Machine, folder: Path, name: str, gpus: int = 1) -> Run | None:
    """Train in one of RUNS; None if there is too little time for it."""
    seconds = machine.seconds_left() - machine.choose(60, 5)  # the rest is for the speed
    if seconds < machine.choose(45, 15):
        return None

    output = folder / f"{name}, {gpus}"
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(gpus)] if gpus > 1 else []
    words = [sys.executable, *launcher, "main.py", *flags_of(machine, folder, gpus)]
    words += [*RUNS[name].split(), "--output_dir", str(output)]

    log = folder / f"{output.name}.log"
    started = time.monotonic()
    code = run_process(words, log, seconds)
    seconds = time.monotonic() - started

    lines = map(json.loads, read(output / "metrics.jsonl").splitlines())
    checks = json.loads(read(output / "checks.json") or "[]")
    steps = [line for line in lines if "loss" in line]
    return Run(code, seconds, steps, checks, last_words=last_line(read(log)))


def flags_of(machine: Machine, folder: Path, gpus: int) -> list[str]:
    """What all runs are told."""
    flags = {
        "model_name_or_path": folder / "model",
        "data_path": folder / "data",
        "data_output_path": folder / "cache",
        "per_device_train_batch_size": batch_size(machine) // gpus,
        "max_seq_len": MAX_LENGTH,
        "num_train_epochs": EPOCHS,
        "max_steps": STEPS,
        "eval_iters": 2,
        "learning_rate": machine.choose(5e-5, 1e-3),
        "dropout": 0,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run_process(words: list[str], log: Path, seconds: float) -> int | None:
    """Run a command to its end and return its exit code; None if it had to be ended."""
    environment = {key: value for key, value in os.environ.items() if key not in OF_A_RANK}
    options = {"cwd": ROOT, "env": environment, "start_new_session": True}
    with (
        log.open("w") as file,
        subprocess.Popen(words, stdout=file, stderr=file, **options) as process,
    ):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)  # with what a launcher has left


def read(path: Path) -> str:
    """The text of a file; "" if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def last_line(text: str) -> str:
    """The last one that is not empty; of a progress bar, what it showed last."""
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1] if lines else ""


def judge(run: Run | None, expected: list[float], limit: float) -> dict:
    """The figures of a run, and whether it is as it should be.

    Args:
        run: None if it was left out.
        expected: the losses of the run that it is compared with; empty if that has none.
        limit: by how much losses may differ.
    """
    if run is None:
        return LEFT_OUT

    faults = faults_of(run, expected, limit)
    figures = {
        "steps": len(run.steps),
        "last_loss": run.losses[-1] if run.losses else None,
        "differs_by": run.difference(expected),
        "limit": limit,
        "skipped": run.skipped,
        "checks_passed": sum(check["passed"] for check in run.checks),
        "seconds": run.seconds,
        "peak_gib": max((step["peak_memory_gib"] for step in run.steps), default=None),
        "losses": run.losses,
        "passed": not faults,
        "note": "; ".join(faults),
    }
    if run.code is None:
        figures |= {"passed": None, "note": "ended: too little time"}
    return figures


def faults_of(run: Run, expected: list[float], limit: float) -> list[str]:
    """What is wrong with a run that has ended by itself."""
    faults = []
    if run.code != 0:
        faults.append(f"exit code {run.code}: {run.last_words[:200]}")
    if len(run.steps) != STEPS:
        faults.append(f"{len(run.steps)} steps of {STEPS}")

    failed = [check["name"] for check in run.checks if not check["passed"]]
    if failed or not run.checks:
        faults.append(f"checks failed: {', '.join(failed) or 'there are none'}")

    if run.skipped:  # from there on, it is another step's
        if not falls(run.losses):
            faults.append("the losses do not fall")
    elif expected and not (run.difference(expected) or 0) <= limit:
        faults.append("the losses differ too much")
    return faults


def falls(losses: list[float]) -> bool:
    """Whether the losses of the last third are lower than those of the first."""
    third = max(1, len(losses) // 3)
    return statistics.mean(losses[-third:]) < statistics.mean(losses[:third])
