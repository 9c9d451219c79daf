"""LoRA (arXiv 2106.09685) through peft: adapters in place, and weights with them merged."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from utils.arguments import InputError
from utils.model.reward_model import RewardModel

SCALE = 2  # alpha / rank


def add_lora(model: RewardModel, rank: int, module_name: str, only_lora: bool) -> int:
    """Give every linear layer whose name contains `module_name` an adapter, in place.

    Args:
        model: the reward model.
        rank: rank of the adapters.
        module_name: part of the names of the layers to adapt.
        only_lora: whether all other weights but the head's are frozen.

    Returns:
        The number of layers adapted.

    Raises:
        InputError: no layer has such a name.
    """
    targets = [
        name
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear) and module_name in name
    ]
    if not targets:
        raise InputError(
            f"--lora_module_name is {module_name!r}, but no linear layer's name contains it; "
            f"the layers' names look like {_example(model.backbone)}"
        )
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=targets)
    inject_adapter_in_model(config, model.backbone)
    for name, parameter in model.named_parameters():
        is_base = "lora_" not in name and not name.startswith("model.score")
        parameter.requires_grad = not (only_lora and is_base)
    return len(targets)


def merge_lora(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fold adapters into the weights they adapt: W + scale * B A (arXiv 2106.09685, eq. 3).

    Args:
        state_dict: weights of a model that `add_lora` adapted, or of any other.

    Returns:
        Weights under the names that they had before `add_lora`.
    """
    merged = {n.replace(".base_layer.", "."): w for n, w in state_dict.items() if "lora_" not in n}
    for name, a in state_dict.items():
        if name.endswith(".lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            b = state_dict[f"{layer}.lora_B.default.weight"]
            weight = merged[f"{layer}.weight"]
            delta = SCALE * b.float() @ a.float()
            merged[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    return merged


def _example(backbone: nn.Module) -> str:
    linear = [n for n, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else "(there are none)"
