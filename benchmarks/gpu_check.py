"""The first program to run on a new GPU machine: is everything right there, and how fast is it?

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --output gpu_check.json --minutes 8

Checks attention, models and training in all precisions and ZeRO stages against fp32, then times the
layouts. What was measured stands in the JSON file after each line, in Markdown at the end. The exit
code is 1 if something is wrong. A CPU runs a tiny form in about a minute; nothing is downloaded.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.gpu_parts import common
from benchmarks.gpu_parts.common import LEFT_OUT, Findings, Machine
from benchmarks.gpu_parts.numerics import ATTENTION_LIMITS, attention, model
from benchmarks.gpu_parts.speed import speed
from benchmarks.gpu_parts.training import training
from utils import distributed
from utils.model.pretrained import quieten_libraries
from utils.output.files import write_whole
from utils.output.tables import TableTemplate, markdown_grid, markdown_table, number_at

# What runs in this order, and the seconds that it needs on a GPU.
PARTS = {
    "attention": (attention, 20),
    "model": (model, 40),
    "training": (training, 60),
    "speed": (speed, 45),
}


def result_text(figures: dict) -> str:
    """Whether a line of a table is as it should be; "-" where nobody can say."""
    return {True: "ok", False: "WRONG"}.get(figures.get("passed"), "-")


def note_text(figures: dict) -> str:
    """What there is to say on a line."""
    return figures.get("note", "").replace("|", "/")


JUDGED = {"result": result_text, "note": note_text}
TABLES = {
    "attention": TableTemplate(
        "Attention",
        "Packed attention in 16 bits against the same in fp32: the relative error of the output or "
        "of the gradient of query, key or value, whichever is largest. Allowed: "
        + ", ".join(f"{dtype} {limit:g}" for dtype, limit in ATTENTION_LIMITS.items())
        + ".",
        {dtype: number_at(dtype, form=".1e") for dtype in ATTENTION_LIMITS} | JUDGED,
    ),
    "model": TableTemplate(
        "Models",
        "Packed models with random weights against padded ones in fp32, as relative errors. In 16 "
        "bits twice the error of the padded layout is allowed.",
        {
            "scores": number_at("scores", form=".1e"),
            "scores allowed": number_at("limits", "scores", form=".1e"),
            "gradients": number_at("gradients", form=".1e"),
            "gradients allowed": number_at("limits", "gradients", form=".1e"),
            **JUDGED,
        },
    ),
    "training": TableTemplate(
        "Training",
        "Runs of main.py from the same model, on the same data. Differences are those of losses, "
        "in any step.",
        {
            "steps": number_at("steps", form="d"),
            "last loss": number_at("last_loss", form=".4f"),
            "differs by": number_at("differs_by", form=".1e"),
            "allowed": number_at("limit", form=".1e"),
            "skipped steps": number_at("skipped", form="d"),
            "checks passed": number_at("checks_passed", form="d"),
            "seconds": number_at("seconds", form=".0f"),
            "peak GiB": number_at("peak_gib", form=".2f"),
            **JUDGED,
        },
    ),
    "speed": TableTemplate(
        "Speed",
        "Training steps on the same random comparisons, about as long as those of HH. The share of "
        "matmul is that of the rate of a large product.",
        {
            "ms a step": number_at("ms_a_step", form=",.0f"),
            "comparisons/s": number_at("comparisons_per_second", form=",.1f"),
            "packed is faster by": number_at("packed_is_faster_by", form=".2f"),
            "tokens/s": number_at("tokens_per_second", form=",.0f"),
            "MFU": number_at("mfu", form=".1%"),
            "share of matmul": number_at("of_matmul", form=".1%"),
            "peak GiB": number_at("peak_gib", form=".2f"),
            "note": note_text,
        },
    ),
}


class Report:
    """What was found so far: printed line by line, and in a file.

    Attributes:
        machine: facts by name.
        parts: for each part, the figures of each of its lines by name.
    """

    def __init__(self, output: Path, machine: dict[str, str]):
        self.output, self.machine = output, machine
        self.parts: dict[str, dict[str, dict]] = {part: {} for part in PARTS}
        self.started = time.monotonic()

    def add(self, part: str, name: str, figures: dict) -> None:
        """Take in a line of a part."""
        self.parts[part][name] = figures
        words = [f"{part}: {name}", result_text(figures), note_text(figures)]
        line = ": ".join(word for word in words if word not in ("", "-"))
        print(f"[{time.monotonic() - self.started:4.0f} s] {line}", flush=True)
        self.save()

    def save(self) -> None:
        """Write everything to the file."""
        record = {"machine": self.machine, **self.parts, "wrong": self.wrong()}
        write_whole(self.output, json.dumps(record, indent=1) + "\n")

    def wrong(self) -> list[str]:
        """The lines that are not as they should be."""
        return [
            f"{part}: {name}"
            for part, lines in self.parts.items()
            for name, figures in lines.items()
            if figures.get("passed") is False
        ]

    def markdown(self) -> str:
        """All of it as a document."""
        facts = markdown_grid([("", ""), ("---", "---"), *self.machine.items()])
        tables = [
            markdown_table(TABLES[part].fill(lines, first=part))
            for part, lines in self.parts.items()
        ]
        wrong = "\n".join(f"- {line}" for line in self.wrong())
        verdict = f"Wrong:\n\n{wrong}" if wrong else "Nothing is wrong."
        return "\n\n".join(["# GPU check", facts, *tables, verdict])


def describe_machine(machine: Machine) -> dict[str, str]:
    """What the machine has, and how fast that is."""
    facts = {"GPU": "none", "GPUs": str(torch.cuda.device_count())}
    if machine.device.type == "cuda":
        memory = torch.cuda.get_device_properties(machine.device).total_memory
        facts |= {"GPU": torch.cuda.get_device_name(machine.device)}
        facts |= {"memory of a GPU": f"{memory / 2**30:.1f} GiB"}

    packages = ("torch", "transformers", "deepspeed")
    facts |= {"Python": platform.python_version(), **{name: version(name) for name in packages}}
    for dtype in ("bf16", "fp32"):
        rate = common.matmul_rate(machine, dtype)
        facts[f"{dtype} matmul"] = f"{rate / 1e12:.2f} TFLOP/s"
    facts["packed attention in 16 bits"] = "fused" if common.has_kernel(machine) else "in pieces"
    return {**facts, "copy": f"{common.copy_rate(machine) / 1e9:,.0f} GB/s"}


def check_part(machine: Machine, part: str) -> Findings:
    """The lines of a part; an error is one, too, so that the other parts still run."""
    run, seconds = PARTS[part]
    if machine.seconds_left() < machine.choose(seconds, 5):
        yield "all", LEFT_OUT
        return

    try:
        yield from run(machine)
    except Exception as error:  # noqa: BLE001  # whatever a GPU or a driver does
        note = " ".join(f"{type(error).__name__}: {error}".split())
        yield "ended with an error", {"passed": False, "note": note[:300]}


def main(args: argparse.Namespace) -> int:
    """Run all parts, print the document, and return the exit code."""
    quieten_libraries()
    distributed.keep_freed_memory()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    deadline = time.monotonic() + 60 * args.minutes
    machine = Machine(device, tiny=args.tiny or not on_gpu, deadline=deadline)

    report = Report(args.output, describe_machine(machine))
    for part in PARTS:
        for name, figures in check_part(machine, part):
            report.add(part, name, figures)

    print(f"\n{report.markdown()}\n\nAll figures are in {args.output}")
    return int(bool(report.wrong()))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Check attention, models and training on a GPU, and measure their speed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("gpu_check.json"), help="JSON file for all figures")
    add("--minutes", type=float, default=8, help="at most; parts without time are left out")
    add("--tiny", action="store_true", help="small models and few steps, as on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    distributed.leave(main(parse_arguments()))
