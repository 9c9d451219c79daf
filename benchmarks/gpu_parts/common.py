"""What the parts of gpu_check.py share: the machine, random comparisons, models of known shapes.

A part yields names with figures, one by one as they are measured. Figures have `passed` where
something can be wrong, and `note` where there is something to say.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import transformers

from benchmarks.contestants import synchronize
from utils.data.tokenization import common_prefix_length
from utils.model import shared_prefix
from utils.model.pretrained import DTYPES, gpu_has_bf16
from utils.model.reward_model import RewardModel

PAD, END, VOCABULARY = 1, 2, 50_272
MAX_LENGTH = 512  # tokens of prompt and answer

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
        return ("bf16", "fp16") if gpu_has_bf16() else ("fp16",)


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
    return shared_prefix.has_varlen_kernel(part, part, dropout=0.0)


def copy_rate(machine: Machine) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(machine.choose(2**30, 2**24), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(machine, lambda: target.copy_(source))


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


def free_memory() -> None:
    """Give the GPU back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
