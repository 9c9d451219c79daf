"""What a run still has to compute: its micro-batches, counted and shown before the first runs."""

import json
from argparse import Namespace
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from utils import distributed
from utils.data.batching import Batch, Collate, load_batches
from utils.data.cache import Encoder
from utils.data.files import Rows
from utils.data.sampling import Grouping, TrainingPlan, evaluation_plan, padded_tokens
from utils.data.tokenization import ComparisonTokenizer
from utils.data.training_data import TrainingData
from utils.data.training_stream import TrainingStream
from utils.evaluation.scoring import Sources
from utils.training.checkpoint import Progress

# What a run must share with the training state that it goes on from.
IDENTITY = (
    *("only_optimize_lora", "center_rewards_coefficient"),
    *("seed", "dtype", "zero_stage", "learning_rate", "weight_decay", "score_position"),
    *("lora_dim", "lora_alpha", "lora_module_name", "lora_learning_rate"),
    *("loss", "margin", "label", "label_smoothing", "tie_threshold", "sample_weights"),
    *("streaming", "chat_template_date"),
)


class RunPlan(NamedTuple):
    """The rest of a run on this rank.

    Attributes:
        batches: micro-batches, `gradient_accumulation_steps` of them a step.
        total_steps: steps of the whole run, with those that are done.
        epoch_size: comparisons of an epoch; of a stream those of the whole run.
        batch_size: comparisons of a step over all ranks; their mean where they differ.
        run: what a training state must share with the run, by the names users know.
        step_size: comparisons of a step, or with a limit in tokens those.
        tokens: of an epoch, packed and padded; None of a stream.
    """

    batches: Iterable[Batch]
    total_steps: int
    epoch_size: int
    batch_size: float
    run: dict
    step_size: int
    tokens: dict[str, int] | None


def plan_run(
    args: Namespace, data: TrainingData, collate: Collate, progress: Progress, device: torch.device
) -> RunPlan:
    """Plan what is left of the epochs over data that are not a stream."""
    assert data.train is not None and data.train_sizes is not None
    grouping = _grouping(args, data.train_sizes, args.per_device_train_batch_size)
    plan = partial(TrainingPlan, grouping, distributed.rank(), args.seed, mixture=data.mixture)
    left = plan(range(progress.epoch, args.num_train_epochs), progress.seen)
    total_steps = progress.step + left.steps
    if args.max_steps:
        total_steps = min(total_steps, max(args.max_steps, progress.step))
    epoch = plan(range(1))
    tokens = _count_tokens(data.train_sizes, epoch, device)
    batch_size: float = _step_size(args)
    if args.max_tokens_per_micro_batch:
        batch_size = round(epoch.epoch_size / epoch.steps, 1)
    run = _identity(args) | {"training comparisons": len(data.train)}
    run["tokens in an epoch"] = tokens["packed"]
    if data.mixture:
        run["weights"] = list(data.mixture.weights)
    batches = load_batches(data.train, left, collate)
    sizes = epoch.epoch_size, batch_size, run, _step_size(args), tokens
    _check_warmup(args, total_steps)
    return RunPlan(batches, total_steps, *sizes)


def plan_stream(
    args: Namespace,
    sources: Sequence[tuple[Rows, Encoder]],
    weights: Sequence[float] | None,
    collate: Collate,
    progress: Progress,
) -> RunPlan:
    """Plan a run over rows that nobody has seen; its whole length is its one epoch.

    Args:
        args, collate, progress: as in `plan_run`.
        sources, weights: of a TrainingStream.
    """
    total_steps, size = max(args.max_steps, progress.step), _step_size(args)
    stream = TrainingStream(
        sources,
        weights,
        partial(_grouping, args, batch_size=args.per_device_train_batch_size),
        collate,
        total_steps - progress.step,
        args.seed,
        progress,
        ties=args.tie_threshold > 0,
        max_bad_rows=args.max_bad_rows,
    )
    _check_warmup(args, total_steps)
    run = _identity(args)
    run |= {f"--{name}": getattr(args, name) for name in ("data_path", "format", "columns")}
    return RunPlan(stream, total_steps, args.max_steps * size, size, run, size, None)


def plan_evaluation(
    args: Namespace, data: TrainingData, collate: Collate
) -> tuple[Iterable[Batch], Sources]:
    """This rank's batches of an evaluation, and where their comparisons come from."""
    size = args.per_device_eval_batch_size
    grouping = _grouping(args, data.evaluation_sizes, size, accumulation=1)
    plan = evaluation_plan(grouping, distributed.rank(), args.eval_iters)
    sources = Sources.of(plan, data.evaluation["source"][:])
    return load_batches(data.evaluation, plan, collate), sources


def show_plan(
    args: Namespace,
    ds_config: dict,
    encoder: ComparisonTokenizer,
    data: TrainingData,
    plan: RunPlan,
    collate: Collate,
) -> None:
    """Print what a run would do, for --dry_run; of a stream the batch is one to evaluate."""
    distributed.log(f"global batch: {plan.batch_size:g} comparisons, {plan.total_steps} steps")
    parts = {"arguments": vars(args), "DeepSpeed": ds_config, "data": data.counts}
    for title, part in parts.items():
        distributed.log(f"{title}: {json.dumps(part, indent=2)}")
    table = data.train or data.evaluation
    rows = table.select(range(min(2, len(table)))).to_list()
    batch = collate(rows, [1.0] * len(rows))
    distributed.log(
        f"one batch, {args.batch_layout}, {batch.attention_mask.sum()} tokens, pairs (better, "
        f"worse) {batch.pairs.tolist()}:"
    )
    ends = encoder.tokenizer.batch_decode(batch.input_ids.flatten()[batch.end_index][:, None])
    sequences = [ids for row in rows for ids in row["input_ids"]]
    for number, (ids, end) in enumerate(zip(sequences, ends, strict=True)):
        text = encoder.tokenizer.decode(ids)
        distributed.log(f"[{number}] {len(ids)} tokens, scored at {end}: {text!r}")


def _grouping(args, sizes, batch_size: int, accumulation: int | None = None) -> Grouping:
    return Grouping.of(
        sizes,
        layout=args.batch_layout,
        batch_size=batch_size,
        accumulation=accumulation or args.gradient_accumulation_steps,
        world_size=distributed.world_size(),
        max_tokens=args.max_tokens_per_micro_batch,
    )


def _step_size(args) -> int:
    size = args.max_tokens_per_micro_batch or args.per_device_train_batch_size
    return size * args.gradient_accumulation_steps * distributed.world_size()


def _check_warmup(args, total_steps: int) -> None:
    if args.num_warmup_steps >= total_steps:
        distributed.log(
            f"!! --num_warmup_steps is {args.num_warmup_steps}, but the run has {total_steps} "
            "steps: the learning rate never comes to --learning_rate"
        )


def _identity(args) -> dict:
    run = {f"--{name}": getattr(args, name) for name in IDENTITY}
    return run | {"--offload nvme": args.offload == "nvme"}


def _count_tokens(sizes: dict, epoch: TrainingPlan, device) -> dict[str, int]:
    """Tokens of the first epoch over all ranks, packed and with the same micro-batches padded."""
    padded = padded_tokens(epoch, sizes["answers"], sizes["length"])
    padded = int(distributed.sum_over_ranks(torch.tensor([padded], device=device)))
    packed = int(sizes["tokens"][epoch.order(0)].sum())
    distributed.log(
        f"an epoch has {packed:,} tokens packed; padded to the longest answer of each micro-batch "
        f"{padded:,}, {padded / packed:.1f} times as many"
    )
    return {"packed": packed, "padded": padded}
