"""The parts of gpu_check.py: each yields names with figures, one by one as they are measured.

Figures have `passed` where something can be wrong, and `note` where there is something to say.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import pad_to, peak, reset_peak, synchronize
from utils import distributed
from utils.data.batch import Batch
from utils.data.packing import PackedCollator, PaddedCollator
from utils.data.tokenization import common_prefix_length
from utils.evaluation.metrics import SUMS
from utils.model import shared_prefix
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX, RowKeys, shared_prefix_attention
from utils.training.engine import build_engine, deepspeed_config
from utils.training.loop import run_step
from utils.training.loss import pairwise_loss
from utils.training.settings import TrainingSettings, parse_training_arguments
from utils.training.throughput import Throughput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAD, END, VOCABULARY = 1, 2, 50_272
MAX_LENGTH = 512  # tokens of prompt and answer
FILLING = 16_384  # tokens of a micro-batch

LEFT_OUT = {"passed": None, "note": "left out: too little time"}

Figures = dict
Findings = Iterator[tuple[str, Figures]]


@dataclass(frozen=True)
class Machine:
    """Where the parts run, and until when.

    Attributes:
        device: the first GPU, or the CPU.
        tiny: whether models are small and steps few.
        deadline: on the clock of time.monotonic().
    """

    device: torch.device
    tiny: bool
    deadline: float

    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def choose(self, full, tiny):
        """What the form of the check asks for."""
        return tiny if self.tiny else full

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The 16-bit precisions to check."""
        if self.tiny:
            return ("bf16",)
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "fp16") if has_bf16 else ("fp16",)


# The machine


def median_seconds(machine: Machine, run: Callable[[], object]) -> float:
    """Median time of ten calls, after three to warm up."""
    times = []
    for _ in range(13):
        started = time.perf_counter()
        run()
        synchronize(machine.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def matmul_rate(machine: Machine, dtype: str) -> float:
    """FLOP/s of a large square product."""
    size = machine.choose(8192, 512)
    left, right = torch.randn(2, size, size, device=machine.device).to(DTYPES[dtype])
    return 2 * size**3 / median_seconds(machine, lambda: left @ right)


def has_kernel(machine: Machine) -> bool:
    """Whether packed attention is fused here, which the parts could not tell."""
    part = torch.zeros(1, 1, 1, 64, dtype=DTYPES[machine.dtypes[0]], device=machine.device)
    return shared_prefix._has_varlen_kernel(part, part, dropout=0.0)


def copy_rate(machine: Machine) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(machine.choose(2**30, 2**24), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(machine, lambda: target.copy_(source))


# Rows and models that all parts share


def make_rows(number: int, answers: int = 2, shrink: int = 1) -> list[dict]:
    """Random comparisons with about the lengths of HH: 122 tokens shared, 47 an answer.

    Args:
        number: of comparisons.
        answers: of each.
        shrink: divides the lengths.
    """
    draw = random.Random(0)

    def draw_tokens(mean: int, most: int) -> list[int]:
        length = min(max(int(draw.gammavariate(2, mean / 2)), 8), most) // shrink
        return [draw.randrange(4, VOCABULARY) for _ in range(length)]

    rows = []
    for _ in range(number):
        prompt = draw_tokens(122, most=384)
        sequences = [[*prompt, *draw_tokens(46, most=120), END] for _ in range(answers)]
        row = {"input_ids": sequences, "shared": common_prefix_length(sequences)}
        rows.append({**row, "answers": range(answers), "ranks": range(answers)})
    return rows


# Kinds of Transformers, and the sizes in which they differ from its defaults.
SHAPES = {
    "OPT-350m": (
        "opt",
        {"hidden_size": 1024, "word_embed_proj_dim": 512, "ffn_dim": 4096}
        | {"num_hidden_layers": 24, "num_attention_heads": 16, "do_layer_norm_before": False},
    ),
    "Llama-1B": (
        "llama",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    ),
    "Mistral": (
        "mistral",
        {"hidden_size": 4096, "intermediate_size": 14336, "sliding_window": 64}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "Qwen3": (
        "qwen3",
        {"hidden_size": 1024, "intermediate_size": 3072}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    ),
}
TINY_OPT = {"hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 128, "num_attention_heads": 4}
TINY_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TINY_LLAMA |= {"num_key_value_heads": 2, "head_dim": 16}


def make_config(
    machine: Machine, shape: str, layers: int | None = None, **more: int
) -> transformers.PreTrainedConfig:
    """The config of a shape, with fewer layers if that is said; narrow in the tiny form."""
    kind, sizes = SHAPES[shape]
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": PAD, **sizes}
    if machine.tiny:
        sizes |= {**(TINY_OPT if kind == "opt" else TINY_LLAMA), "num_hidden_layers": 2}
    elif layers:
        sizes["num_hidden_layers"] = layers
    if kind == "opt":
        sizes["dropout"] = 0.0
    return transformers.AutoConfig.for_model(kind, num_labels=1, **{**sizes, **more})


def make_model(
    machine: Machine, config: transformers.PreTrainedConfig, attention: str
) -> RewardModel:
    """A reward model in fp32; equal configs get equal random weights."""
    transformers.set_seed(0)
    with machine.device:
        model = transformers.AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention
        )
    return RewardModel(model)


def relative_error(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, as a share of the norm."""
    difference = size = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach().double(), theirs.detach().double()
        difference += float((ours - theirs).square().sum())
        size += float(theirs.square().sum())
    return math.sqrt(difference / size)


def largest(values: Iterable[float]) -> float:
    """The largest number; NaN if there is one, which max would pass over."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


# Attention


class AttentionCase(NamedTuple):
    """A form of attention.

    Attributes:
        heads: of queries.
        key_heads: of keys and values.
        width: of a head.
        window: keys that a query sees at most; None: all.
        ends_only: whether the last tokens alone are queries, as in the last layer.
    """

    heads: int
    key_heads: int
    width: int
    window: int | None
    ends_only: bool = False

    def __str__(self) -> str:
        name = f"heads {self.heads}/{self.key_heads}, width {self.width}"
        name += f", window {self.window}" if self.window else ""
        return name + (", ends only" if self.ends_only else "")


ATTENTION_CASES = (
    AttentionCase(16, 16, 64, None),
    AttentionCase(32, 8, 64, None),
    AttentionCase(32, 8, 128, 37),
    AttentionCase(8, 8, 80, None),
    AttentionCase(8, 2, 256, 64),
)
ATTENTION_LIMITS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 4e-3}


def attention(machine: Machine) -> Findings:
    """Attention over a packed row in each precision, against fp32 over padded rows."""
    rows = make_rows(4, answers=3, shrink=machine.choose(1, 6))
    for plain in ATTENTION_CASES:
        for case in (plain, plain._replace(ends_only=True)):
            errors = {
                dtype: attention_errors(machine, case, dtype, rows)
                for dtype in ("fp32", *machine.dtypes)
            }
            worst = {dtype: largest(parts.values()) for dtype, parts in errors.items()}
            passed = all(worst[dtype] <= ATTENTION_LIMITS[dtype] for dtype in worst)
            yield str(case), {**worst, "errors": errors, "passed": passed}


def attention_errors(
    machine: Machine, case: AttentionCase, dtype: str, rows: Sequence[dict]
) -> dict[str, float]:
    """Relative errors of the output and of the gradients of query, key and value."""
    batch = PackedCollator(PAD)(rows, [1.0] * len(rows)).to(machine.device)
    sequences = [part.to(machine.device) for part in sequences_in_row(rows)]

    torch.manual_seed(0)
    tokens = batch.input_ids.numel()
    parts = [
        torch.randn(1, tokens, heads, case.width, device=machine.device).to(DTYPES[dtype])
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]

    found = with_gradients(parts, packed_attention, case, batch)
    wide = [part.float() for part in parts]
    expected = with_gradients(wide, padded_attention, case, sequences)
    return {what: relative_error([found[what]], [expected[what]]) for what in expected}


def sequences_in_row(rows: Sequence[dict]) -> list[torch.Tensor]:
    """Where the tokens of each prompt with its answer stand in the packed row, int64 [length]."""
    sequences, start = [], 0
    for row in rows:
        prompt = torch.arange(start, start + row["shared"])
        start += row["shared"]
        for ids in row["input_ids"]:
            end = start + len(ids) - row["shared"]
            sequences.append(torch.cat([prompt, torch.arange(start, end)]))
            start = end
    return sequences


def with_gradients(
    parts: Sequence[torch.Tensor], attend: Callable[..., torch.Tensor], *options: object
) -> dict[str, torch.Tensor]:
    """The output of an attention, and the gradients of query, key and value.

    Args:
        parts: query, key and value as projections lay them out, [1, tokens, heads, width].
        attend: takes them as [1, heads, tokens, width], and the options.
        options: of `attend`.
    """
    leaves = [part.clone().requires_grad_() for part in parts]
    output = attend(*(leaf.transpose(1, 2) for leaf in leaves), *options)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device)
    (output.float().flatten() * weight).sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    return dict(zip(("output", "query", "key", "value"), [output, *gradients], strict=True))


def packed_attention(query, key, value, case: AttentionCase, batch: Batch) -> torch.Tensor:
    """The project's own, [1, queries, heads, width]; on a GPU the fused kernel in 16 bits."""
    layer = torch.nn.Identity()
    options = {"sliding_window": case.window, "segments": batch.segments}
    if case.ends_only:
        kept = RowKeys()
        shared_prefix_attention(layer, query, key, value, None, row_keys=kept, **options)
        options |= {"segments": batch.end_segments, "row_keys": kept}
        query = query[:, :, batch.end_index]
    return shared_prefix_attention(layer, query, key, value, None, **options)[0]


def padded_attention(
    query, key, value, case: AttentionCase, sequences: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Each sequence as a padded row of its own; the output in the order of the packed row."""
    index = pad_sequence(list(sequences), batch_first=True)
    rows = [part[0][:, index].transpose(0, 1) for part in (query, key, value)]

    length = index.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if case.window:
        mask = mask.triu(1 - case.window)
    output = torch.nn.functional.scaled_dot_product_attention(
        *rows, attn_mask=mask, enable_gqa=True
    )

    sequence, column = torch.tensor(places(sequences, case.ends_only)).T
    return output.transpose(1, 2)[sequence, column][None]


def places(sequences: Sequence[torch.Tensor], ends_only: bool) -> list[tuple[int, int]]:
    """The padded row and the column of each token of the packed row, or of the ends alone."""
    if ends_only:
        return [(number, len(tokens) - 1) for number, tokens in enumerate(sequences)]

    first: dict[int, tuple[int, int]] = {}
    for number, tokens in enumerate(sequences):
        for column, token in enumerate(tokens.tolist()):
            first.setdefault(token, (number, column))
    return [first[token] for token in sorted(first)]


# Models

LAYERS = {"OPT-350m": 6, "Llama-1B": 4, "Mistral": 2, "Qwen3": 3}  # so that seconds are enough
FP32_LIMITS = {"scores": 1e-4, "gradients": 1e-3}


def model(machine: Machine) -> Findings:
    """Packed scores and gradients in each precision, against the padded layout in fp32."""
    rows = make_rows(machine.choose(8, 2), answers=3)
    collators = {SHARED_PREFIX: PackedCollator(PAD), "sdpa": PaddedCollator(PAD)}
    batches = {
        kind: collate(rows, [1.0] * len(rows)).to(machine.device)
        for kind, collate in collators.items()
    }

    for shape, layers in LAYERS.items():
        config = make_config(machine, shape, layers)
        expected = scores_and_gradients(machine, config, "sdpa", "fp32", batches)

        for dtype in ("fp32", *machine.dtypes):
            limits = FP32_LIMITS
            if dtype != "fp32":
                padded = scores_and_gradients(machine, config, "sdpa", dtype, batches)
                limits = {k: 2 * relative_error(padded[k], expected[k]) + 1e-3 for k in expected}

            found = scores_and_gradients(machine, config, SHARED_PREFIX, dtype, batches)
            errors = {what: relative_error(found[what], expected[what]) for what in expected}
            passed = all(errors[what] <= limits[what] for what in errors)
            yield f"{shape}, {dtype}", {**errors, "limits": limits, "passed": passed}
        del expected
        free_memory()


def scores_and_gradients(
    machine: Machine,
    config: transformers.PreTrainedConfig,
    attention: str,
    dtype: str,
    batches: dict[str, Batch],
) -> dict[str, list[torch.Tensor]]:
    """The scores of the batch that belongs to the attention, and the gradients of all weights."""
    network = make_model(machine, config, attention).to(DTYPES[dtype])
    batch = batches[attention]
    scores = network(batch)
    pairwise_loss(scores, batch.pairs, batch.weight).backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    return {"scores": [scores.detach()], "gradients": gradients}


def free_memory() -> None:
    """Give the GPU back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Speed


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
