"""From the command line to a DeepSpeed engine."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.model.pretrained import gpu_has_bf16
from utils.settings import InputError
from utils.training.optimizer import build_optimizer, build_scheduler, parameter_groups
from utils.training.settings import TrainingSettings
from utils.training.throughput import count_weights

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def resolve_precision(
    args: TrainingSettings, device: torch.device
) -> tuple[TrainingSettings, list[str]]:
    """The settings with --dtype, and the ZeRO stage that 16 bits need; and sentences that say so.

    Raises:
        InputError: fp16 was asked for on a CPU.
    """
    notes = []
    if args.dtype is None:
        dtype = "fp32"
        if device.type != "cpu":
            dtype = "bf16" if gpu_has_bf16() else "fp16"
        args = replace(args, dtype=dtype)
        notes.append(f"--dtype is not given: {args.dtype} on this {device.type.upper()}")

    if args.dtype == "fp16" and device.type == "cpu":
        raise InputError("--dtype fp16 needs a GPU: on a CPU give fp32 (the default) or bf16")
    if args.dtype != "fp32" and args.zero_stage == 0:
        # There DeepSpeed starts bf16 with an optimiser step on zero gradients, and divides those of
        # fp16 by a loss scale that the loss never had.
        args = replace(args, zero_stage=1)
        notes.append(f"{args.dtype} runs with --zero_stage 1: DeepSpeed's stage 0 is inexact")
    return args, notes


def deepspeed_config(args: TrainingSettings, world_size: int) -> dict:
    """The DeepSpeed configuration that the arguments mean; a pure function.

    --deepspeed_config is merged over it, entry by entry.

    Raises:
        InputError: the file cannot be read or contradicts the flags for batch sizes.
    """
    zero: dict = {"stage": args.zero_stage}
    if args.offload:
        place = {"device": args.offload}
        zero["offload_optimizer"] = place
        if args.zero_stage == 3:
            zero["offload_param"] = dict(place)
    if args.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True

    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
    config = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": bool(args.offload) and torch.cuda.is_available(),
        # It has fp32's range: the norm of the gradient tells what is wrong, without a look at each.
        "bf16": {"enabled": args.dtype == "bf16", "check_grad_overflow": False},
        "fp16": {"enabled": args.dtype == "fp16"},
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # each would wait for the GPU
        "checkpoint": {"use_node_local_storage": args.use_node_local_storage},
        **_monitors(args),
    }

    if args.deepspeed_config:
        _merge(config, _read_config(args.deepspeed_config, config))
    return config


def _monitors(args: TrainingSettings) -> dict[str, dict]:
    """The entries of DeepSpeed's monitors for --monitor."""
    tensorboard = args.tensorboard_path or str(Path(args.output_dir) / "tensorboard")
    entries: dict[str, dict] = {
        "tensorboard": {"output_path": tensorboard, "job_name": "reward_model"},
        "wandb": {"project": "reward_model"},
        "comet": {"project": "reward_model", "samples_log_interval": 1},
        "csv_monitor": {"output_path": args.output_dir, "job_name": "csv"},
    }
    return {
        name: {"enabled": name.removesuffix("_monitor") in args.monitor, **entry}
        for name, entry in entries.items()
    }


def build_engine(
    model: torch.nn.Module, config: dict, args: TrainingSettings, total_steps: int
) -> "DeepSpeedEngine":
    """Hand the model to DeepSpeed; an optimizer or scheduler in `config` takes precedence."""
    import deepspeed

    groups = parameter_groups(model, args)
    config = _with_buffers(config, count_weights(model.parameters()).trained)
    optimizer = None if "optimizer" in config else build_optimizer(groups, bool(args.offload))
    scheduler = partial(build_scheduler, args=args, total_steps=total_steps)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups,
        optimizer=optimizer,
        lr_scheduler=None if "scheduler" in config else scheduler,
        config=config,
    )

    # DeepSpeed's own events count samples, not steps: W&B would drop ours between them.
    engine.monitor.enabled = False

    if engine.world_size == 1 and engine.zero_optimization_stage() == 0:
        # There is nothing to reduce; DeepSpeed would copy all gradients to a buffer and back.
        engine.enable_backward_allreduce = False
    return engine


def _with_buffers(config: dict, trained: int) -> dict:
    """The configuration with buffers for gradients as large as what trains, 500 million at most.

    That is what DeepSpeed allots by itself: 1 GB, also for the few weights of LoRA.
    """
    zero = {"reduce_bucket_size": min(trained, 500_000_000), **config["zero_optimization"]}
    return {**config, "zero_optimization": zero}


def gather_weights(engine: "DeepSpeedEngine") -> dict[str, torch.Tensor]:
    """All weights by the names of the Transformers model; every rank calls it.

    In stage 3 the first rank alone gets them, the others an empty dict.
    """
    if engine.zero_optimization_partition_weights():
        state = engine._zero3_consolidated_16bit_state_dict() or {}
    else:
        state = engine.module.state_dict()
    return {name.removeprefix("model."): weight for name, weight in state.items()}


def step_engine(engine: "DeepSpeedEngine", step: int) -> torch.Tensor:
    """Let the optimiser step, and return the norm of all gradients before clipping, float [1].

    Raises:
        FloatingPointError: the loss scale of fp16 is at its minimum, and gradients still overflow.
    """
    norm: torch.Tensor | float | None = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed tells the norm in the other stages
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)

    try:
        engine.step()
    except Exception as error:  # DeepSpeed has no class for it
        if "minimum" not in str(error):
            raise
        raise FloatingPointError(
            f"gradients overflow in fp16 at step {step}, also with the loss scale at its minimum: "
            "give --dtype bf16 or fp32, or a lower --learning_rate; no model of this step was saved"
        ) from error

    told = engine.get_global_grad_norm()
    norm = norm if told is None else told
    assert norm is not None, "DeepSpeed gave no norm of the gradient"
    return torch.as_tensor(norm).reshape(1)


def _read_config(path: str, config: dict) -> dict:
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--deepspeed_config {path}: cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"--deepspeed_config {path}: expected a JSON object")

    for key in ("optimizer", "scheduler"):
        if '"auto"' in json.dumps(given.get(key)):
            raise InputError(
                f"--deepspeed_config {path}: {key} has the value auto: give numbers there, or "
                "leave the entry out, so that the flags decide"
            )

    for key in BATCH_KEYS:
        if given.get(key, "auto") not in ("auto", config[key]):
            raise InputError(
                f"--deepspeed_config {path}: {key} is {given[key]}, but the flags make it "
                f"{config[key]}: change --per_device_train_batch_size or "
                "--gradient_accumulation_steps, or leave the entry out"
            )
    return given


def _merge(config: dict, given: dict) -> None:
    """Write the entries of `given` over those of `config`; "auto" keeps what stands there."""
    for key, value in given.items():
        if isinstance(value, dict):
            _merge(config.setdefault(key, {}), value)
        elif value != "auto":
            config[key] = value
