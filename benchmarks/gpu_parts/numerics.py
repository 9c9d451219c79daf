"""The parts of gpu_check.py that compare numbers: attention and models in 16 bits, against fp32."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers

from benchmarks.gpu_parts.common import (
    PAD,
    Findings,
    Machine,
    free_memory,
    largest,
    make_config,
    make_model,
    make_rows,
    relative_error,
)
from utils.data.batch import Batch
from utils.data.packing import PackedCollator, PaddedCollator
from utils.model.pretrained import DTYPES
from utils.model.shared_prefix import SHARED_PREFIX, RowKeys, shared_prefix_attention
from utils.training.loss import pairwise_loss


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
ATTENTION_LIMITS = {"bf16": 2e-2, "fp16": 4e-3}


def attention(machine: Machine) -> Findings:
    """Attention over a packed row in 16 bits, against the same in fp32, which runs in pieces."""
    rows = make_rows(machine.choose(4, 2), answers=3)
    batch = PackedCollator(PAD)(rows, [1.0] * len(rows)).to(machine.device)

    for plain in ATTENTION_CASES:
        for case in (plain, plain._replace(ends_only=True)):
            errors = {dtype: attention_errors(case, batch, dtype) for dtype in machine.dtypes}
            worst = {dtype: largest(parts.values()) for dtype, parts in errors.items()}
            passed = all(worst[dtype] <= ATTENTION_LIMITS[dtype] for dtype in worst)
            yield str(case), {**worst, "errors": errors, "passed": passed}


def attention_errors(case: AttentionCase, batch: Batch, dtype: str) -> dict[str, float]:
    """Relative errors of the output and of the gradients of query, key and value."""
    torch.manual_seed(0)
    device, tokens = batch.input_ids.device, batch.input_ids.numel()
    parts = [
        torch.randn(1, tokens, heads, case.width, device=device).to(DTYPES[dtype])
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]
    found = output_and_gradients(case, batch, parts)
    expected = output_and_gradients(case, batch, [part.float() for part in parts])
    return {what: relative_error([found[what]], [expected[what]]) for what in expected}


def output_and_gradients(
    case: AttentionCase, batch: Batch, parts: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the project's attention gives, and the gradients of query, key and value.

    Args:
        case: a form of attention.
        batch: says who attends to whom.
        parts: query, key and value as projections lay them out, [1, tokens, heads, width].
    """
    leaves = [part.clone().requires_grad_() for part in parts]
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    layer, options = torch.nn.Identity(), {"sliding_window": case.window}
    options["segments"] = batch.segments
    if case.ends_only:
        kept = RowKeys()
        shared_prefix_attention(layer, query, key, value, None, row_keys=kept, **options)
        options |= {"segments": batch.end_segments, "row_keys": kept}
        query = query[:, :, batch.end_index]

    output, _ = shared_prefix_attention(layer, query, key, value, None, **options)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device)
    (output.float().flatten() * weight).sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    return dict(zip(("output", "query", "key", "value"), [output, *gradients], strict=True))


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
