"""Decay groups, the optimiser and its schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from utils.training.settings import OptimizerSettings, TrainingSettings

BETAS = (0.9, 0.95)  # DeepSpeed-Chat's


def parameter_groups(model: nn.Module, args: TrainingSettings) -> list[dict]:
    """Group what trains: decayed or not (biases and norms), adapters or not.

    Args:
        model: whose parameters are grouped.
        args: weight_decay, learning_rate and lora_learning_rate count.
    """
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 hides the shape of a parameter that is spread over ranks.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            groups.setdefault((is_matrix, "lora_" in name), []).append(parameter)
    return [
        {
            "params": groups[is_matrix, is_lora],
            "weight_decay": args.weight_decay if is_matrix else 0.0,
            "lr": args.lora_learning_rate if is_lora else args.learning_rate,
        }
        for is_matrix, is_lora in sorted(groups)
    ]


def build_optimizer(groups: list[dict], offload: bool) -> torch.optim.Optimizer:
    """AdamW: torch's fused one, or DeepSpeed's for states in CPU memory beside a GPU."""
    if offload and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, betas=BETAS)
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: OptimizerSettings, total_steps: int
) -> LRScheduler:
    """The learning-rate schedule over `total_steps` optimiser steps, warm-up included."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.num_warmup_steps or round(args.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )
