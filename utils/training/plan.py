"""What a run still has to compute: its micro-batches, counted before the first one runs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch

from utils import distributed
from utils.data.batching import Batch, load_batches
from utils.data.sampling import Grouping, TrainingPlan, evaluation_plan, padded_tokens
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
    "streaming",
)


class RunPlan(NamedTuple):
    """The rest of a run on this rank.

    Attributes:
        batches: micro-batches, `gradient_accumulation_steps` of them a step.
        steps: number of steps.
        epoch_size: comparisons of an epoch; of a stream those of the whole run.
        batch_size: comparisons of a step over all ranks; their mean where they differ.
        run: what a training state must share with the run, by the names users know.
        step_size: comparisons of a step, or with a limit in tokens those.
        tokens: of an epoch, packed and padded; None of a stream.
    """

    batches: Iterable[Batch]
    steps: int
    epoch_size: int
    batch_size: float
    run: dict
    step_size: int
    tokens: dict[str, int] | None


def plan_run(args, data: TrainingData, collate: Callable, progress: Progress, device) -> RunPlan:
    """Plan what is left of the epochs.

    Args:
        args: the command line.
        data: what trains.
        collate: makes a batch of tokenised comparisons and weights.
        progress: how far the run is.
        device: for sums over the ranks.
    """
    grouping = _grouping(args, data.train_sizes, args.per_device_train_batch_size)
    plan = partial(TrainingPlan, grouping, distributed.rank(), args.seed, mixture=data.mixture)
    left = plan(range(progress.epoch, args.num_train_epochs), progress.seen)
    steps = left.steps
    if args.max_steps:
        steps = min(steps, max(args.max_steps - progress.step, 0))
    epoch = plan(range(1))
    tokens = _count_tokens(data.train_sizes, epoch, device)
    step_size = _step_size(args)
    fixed = not args.max_tokens_per_micro_batch
    sources = {"training comparisons": len(data.train), "tokens in an epoch": tokens["packed"]}
    if data.mixture:
        sources["weights"] = list(data.mixture.weights)
    return RunPlan(
        load_batches(data.train, left, collate),
        steps,
        epoch.epoch_size,
        step_size if fixed else round(epoch.epoch_size / epoch.steps, 1),
        _identity(args) | sources,
        step_size,
        tokens,
    )


def plan_stream(args, sources, weights, collate: Callable, progress: Progress) -> RunPlan:
    """Plan a run over rows that nobody has seen; its whole length is its one epoch.

    Args:
        args: the command line.
        sources, weights: of a TrainingStream.
        collate, progress: as in `plan_run`.
    """
    steps, size = max(args.max_steps - progress.step, 0), _step_size(args)
    stream = TrainingStream(
        sources,
        weights,
        partial(_grouping, args, batch_size=args.per_device_train_batch_size),
        collate,
        steps,
        args.seed,
        progress,
        ties=args.tie_threshold > 0,
        max_bad_rows=args.max_bad_rows,
    )
    run = _identity(args) | {"--data_path": args.data_path}
    return RunPlan(stream, steps, args.max_steps * size, size, run, size, None)


def plan_evaluation(args, data: TrainingData, collate: Callable) -> tuple[Iterable, Sources]:
    """This rank's batches of an evaluation, and where their comparisons come from."""
    size = args.per_device_eval_batch_size
    grouping = _grouping(args, data.evaluation_sizes, size, accumulation=1)
    plan = evaluation_plan(grouping, distributed.rank(), args.eval_iters)
    sources = Sources.of(plan, data.evaluation["source"][:])
    return load_batches(data.evaluation, plan, collate), sources


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
