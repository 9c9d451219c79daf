"""What --offload nvme needs beyond DeepSpeed's configuration."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.settings import InputError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def check_nvme() -> None:
    """Make sure that DeepSpeed can build its asynchronous file access.

    Raises:
        InputError: libaio is missing.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise InputError(
            "--offload nvme: DeepSpeed cannot build its async_io operator; install libaio with its "
            "headers (Debian: libaio-dev) and a C++ compiler, or give --offload cpu"
        )


def fit_buffers(config: dict, model: nn.Module, world_size: int) -> None:
    """Make the buffers for parameters as large as the largest one, unless the file gives a size.

    DeepSpeed's default is 100 million values for each of 5 buffers, whatever the model is.

    Args:
        config: the DeepSpeed configuration; changed in place.
        model: on any device, also meta.
        world_size: number of ranks, which share each parameter.
    """
    largest = max(parameter.numel() for parameter in model.parameters())
    place = config["zero_optimization"]["offload_param"]
    place.setdefault("buffer_size", -(-largest // world_size))


def load_optimizer(engine: "DeepSpeedEngine", folder: Path) -> None:
    """Load the optimiser's states, which DeepSpeed 0.19 only half does where they are in files.

    `engine.load_checkpoint` copies the files back, but neither tells the optimiser of them nor
    loads what is too small for a file (under 1 MiB), nor the number of the step.
    """
    zero = engine.optimizer
    path = engine._get_zero_ckpt_name(str(folder.parent), folder.name)
    saved = torch.load(path, weights_only=False, map_location="cpu")["optimizer_state_dict"]
    zero.checkpoint_event_prologue()
    zero._set_fp32_optimizer_param_groups()
    zero.optimizer.load_state_dict(saved["optimizer_state_dict"])
    zero._clear_fp32_optimizer_param_groups()
    for number, weight in enumerate(zero.fp32_partitioned_groups_flat):
        if not zero._swappable_optimizer_subgroup(number):
            weight.data.copy_(saved["fp32_flat_groups"][number])
            continue
        states = zero.optimizer.state[weight]
        moments = [name for name in states if name != "step" and torch.is_tensor(states[name])]
        for name in moments:
            states[name].ds_id = f"{name}-{weight.ds_id}"
        swapped = zero.optimizer_swapper.swap_params_info[weight.ds_id]
        swapped.add_state_tensors([states[name] for name in moments])
    zero.reset_swap_buffers()
    zero.checkpoint_event_epilogue()
