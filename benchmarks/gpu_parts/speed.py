"""The part of gpu_check.py that times training steps in each layout."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import pad_to, peak, reset_peak, synchronize
from benchmarks.gpu_parts.common import (
    LEFT_OUT,
    MAX_LENGTH,
    PAD,
    Figures,
    Findings,
    Machine,
    free_memory,
    make_config,
    make_model,
    make_rows,
    matmul_rate,
)
from utils import distributed
from utils.data.batch import Batch
from utils.data.packing import PackedCollator, PaddedCollator
from utils.evaluation.metrics import SUMS
from utils.model.shared_prefix import SHARED_PREFIX
from utils.training.engine import build_engine, deepspeed_config
from utils.training.loop import run_step
from utils.training.micro_batches import FILLING
from utils.training.settings import TrainingSettings, parse_training_arguments
from utils.training.throughput import Throughput

LAYOUTS = (
    "packed",
    "packed, nothing shared",
    "padded to the longest",
    f"padded to {MAX_LENGTH}",
)


def collate(layout: str, rows: Sequence[dict], weights: Sequence[float]) -> Batch:
    """A batch in one of LAYOUTS."""
    if layout == "packed, nothing shared":  # each answer has a prompt of its own
        rows = [{**row, "shared": 0} for row in rows]
    if is_packed(layout):
        return PackedCollator(PAD)(rows, weights)

    batch = PaddedCollator(PAD)(rows, weights)
    return batch if layout == "padded to the longest" else pad_to(batch, MAX_LENGTH, PAD)


def is_packed(layout: str) -> bool:
    """Whether a layout is one row without padding."""
    return layout.startswith("packed")


def speed(machine: Machine) -> Findings:
    """Steps of main.py's own loop in each layout, all on the same comparisons."""
    distributed.initialize()
    for shape in ("OPT-350m", "Llama-1B"):
        if machine.seconds_left() < machine.choose(45, 5):
            yield shape, LEFT_OUT
            continue

        try:
            yield from speed_of(machine, shape)
        except torch.OutOfMemoryError:
            note = "out of memory: what follows of this model is left out"
            yield shape, {"passed": None, "note": note}
        free_memory()


def speed_of(machine: Machine, shape: str) -> Findings:
    """The layouts of one model.

    Raises:
        torch.OutOfMemoryError: a GPU is too small for the model or a layout.
    """
    on_gpu = machine.device.type == "cuda"
    args = replace(
        parse_training_arguments(["--model_name_or_path", "random"]),
        dtype=machine.dtypes[0] if on_gpu else "fp32",
        zero_stage=int(on_gpu),
        max_tokens_per_micro_batch=0,
    )
    rate = matmul_rate(machine, args.dtype)
    network = make_model(machine, make_config(machine, shape), SHARED_PREFIX)
    engine = build_engine(network, deepspeed_config(args, 1), args, total_steps=1000)
    engine.train()

    reference = None
    try:
        for layout in LAYOUTS:
            figures = time_layout(machine, args, engine, layout)
            reference = reference or figures["comparisons_per_second"]
            figures["packed_is_faster_by"] = reference / figures["comparisons_per_second"]
            figures["of_matmul"] = figures["flops_per_second"] / rate
            yield f"{shape}, {layout}", figures
    finally:
        engine.destroy()


def time_layout(machine: Machine, args: TrainingSettings, engine, layout: str) -> Figures:
    """What steps in a layout take, after some to warm up."""
    engine.module.model.set_attn_implementation(SHARED_PREFIX if is_packed(layout) else "sdpa")
    steps = step_batches(machine, layout)
    warm_up, rounds = machine.choose(4, 1), machine.choose(8, 2)
    run_steps(machine, args, engine, steps, warm_up)

    reset_peak(machine.device)
    started = time.perf_counter()
    sums = run_steps(machine, args, engine, steps, rounds)
    synchronize(machine.device)
    seconds = time.perf_counter() - started

    ends_only = is_packed(layout)
    throughput = Throughput(engine.module, machine.device, args.dtype, 1, ends_only=ends_only)
    answers, work = float(sums[SUMS.index("answers")]), sums[-4:]
    figures = throughput.rates(float(sums[len(SUMS)]), answers, work, seconds)
    figures |= {
        "ms_a_step": 1e3 * seconds / rounds,
        "micro_batches": len(steps[0]),
        "flops_per_second": throughput.flops(work, answers) / seconds,
        "peak_gib": peak(machine.device) / 2**30,
    }
    if layout == "packed" and machine.device.type == "cuda":
        figures |= profile_step(lambda: run_steps(machine, args, engine, steps, 1))
    return figures


def step_batches(machine: Machine, layout: str) -> list[list[Batch]]:
    """The micro-batches of four steps, the same comparisons in each layout."""
    size = machine.choose(76, 8)  # in full FILLING tokens, packed
    rows = make_rows(4 * size)
    return [micro_batches(machine, layout, rows[i::4]) for i in range(4)]


def micro_batches(machine: Machine, layout: str, rows: Sequence[dict]) -> list[Batch]:
    """The comparisons of a step, in micro-batches of about FILLING tokens, padding included.

    So no layout needs much more memory than the packed one.
    """
    weights = [1 / len(rows)] * len(rows)
    number = max(1, round(collate(layout, rows, weights).input_ids.numel() / FILLING))
    parts = [rows[i::number] for i in range(number)]
    batches = [collate(layout, part, weights[: len(part)]) for part in parts]
    return [b.pin_memory() for b in batches] if machine.device.type == "cuda" else batches


def run_steps(
    machine: Machine, args: TrainingSettings, engine, steps: list[list[Batch]], number: int
) -> torch.Tensor:
    """Take so many steps, and add up the sums that run_step returns."""
    total = torch.zeros((), dtype=torch.float64)
    for step in range(number):
        batches = steps[step % len(steps)]
        total = total + run_step(args, engine, batches, machine.device, step).sums
    return total


def profile_step(step: Callable[[], object]) -> Figures:
    """How many kernels a step has, and the share of its time in which the GPU is busy."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started

    kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e6 / seconds
    note = f"{len(kernels):,} kernels a step; the GPU is busy for {busy:.1%} of it"
    return {"kernels": len(kernels), "gpu_busy": busy, "note": note}
