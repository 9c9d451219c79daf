"""How many tokens a micro-batch has where nobody said so: what fills a GPU, if its memory does."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from utils import distributed
from utils.data.batch import Batch, Collate
from utils.data.row_selection import TrainingData
from utils.training.loss import model_loss
from utils.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FILLING = 16_384  # tokens; with fewer, a GPU spends its time on starting kernels


def choose_max_tokens(
    args: TrainingSettings, data: TrainingData, device: torch.device
) -> tuple[TrainingSettings, list[str]]:
    """The settings with --max_tokens_per_micro_batch, and a sentence if it was not given.

    In stage 3 micro-batches stay as they were asked for: ranks exchange weights in each layer, so
    that one whose memory is too small would let the others wait for ever.
    """
    if args.max_tokens_per_micro_batch is not None:
        return args, []
    if device.type == "cpu" or args.batch_layout == "padded" or args.zero_stage == 3:
        return replace(args, max_tokens_per_micro_batch=0), []

    tokens = max(FILLING, _longest(data))
    note = f"--max_tokens_per_micro_batch is not given: {tokens:,}, less if memory is too small"
    return replace(args, max_tokens_per_micro_batch=tokens), [note]


def fit_max_tokens(
    args: TrainingSettings,
    engine: "DeepSpeedEngine",
    data: TrainingData,
    collate: Collate,
    device: torch.device,
) -> TrainingSettings:
    """The settings with as many tokens a micro-batch as the memory of every rank has room for.

    The fullest micro-batch that can come runs forward and backward. If memory is too small for it,
    half as many tokens are tried; if it is for those, micro-batches have
    --per_device_train_batch_size comparisons, as without a limit.
    """
    tokens = args.max_tokens_per_micro_batch or 0
    for limit in dict.fromkeys((tokens, max(tokens // 2, _longest(data)))):
        batch = _fullest(args, data, collate, limit).to(device)
        if not distributed.max_over_ranks(int(not _fits(args, engine, batch)), device):
            return replace(args, max_tokens_per_micro_batch=limit)
        distributed.log(f"memory is too small for micro-batches of {limit:,} tokens")

    distributed.log(
        f"micro-batches have --per_device_train_batch_size {args.per_device_train_batch_size} "
        "comparisons"
    )
    return replace(args, max_tokens_per_micro_batch=0)


def _longest(data: TrainingData) -> int:
    """Tokens of the longest comparison."""
    return int(max(sizes["tokens"].max() for sizes in (data.train_sizes, data.evaluation_sizes)))


def _fullest(args: TrainingSettings, data: TrainingData, collate: Collate, limit: int) -> Batch:
    """Of as many comparisons as a step has, the longest that go together within the limit."""
    sizes = data.train_sizes["tokens"]
    most = args.per_device_train_batch_size * args.gradient_accumulation_steps
    rows: list[int] = []
    tokens = 0

    for row in np.argsort(sizes, kind="stable")[::-1].tolist():
        if len(rows) < most * distributed.world_size() and tokens + sizes[row] <= limit:
            rows.append(row)
            tokens += int(sizes[row])
    return collate(data.train.__getitems__(rows), [1.0] * len(rows))


def _fits(args: TrainingSettings, engine: "DeepSpeedEngine", batch: Batch) -> bool:
    """Whether memory is large enough for a micro-batch.

    `torch.autograd.grad` gives gradients to nobody, so that DeepSpeed's engine, which waits for
    them parameter by parameter, is afterwards as it was, also where memory ran out half-way.
    """
    engine.train()  # as loaded, it would not recompute activations
    weights = [weight for weight in engine.module.parameters() if weight.requires_grad]
    try:
        torch.autograd.grad(model_loss(args, engine.module, batch)[0], weights)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # The error is gone here, and with it what its frames still held.
    torch.cuda.empty_cache()
    return False
