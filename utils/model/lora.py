"""LoRA (arXiv 2106.09685) through peft: adapters in place, and weights with them merged."""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from utils.model.reward_model import RewardModel
from utils.settings import InputError

A, B = "lora_A.default.weight", "lora_B.default.weight"


def add_lora(model: RewardModel, rank: int, alpha: float, module_name: str, only_lora: bool) -> int:
    """Give every linear layer whose name contains `module_name` an adapter, in place.

    The weights that adapters stand beside are frozen.

    Args:
        model: the reward model.
        rank: rank of the adapters.
        alpha: their scale is alpha / rank.
        module_name: part of the names of the layers to adapt.
        only_lora: whether everything but the adapters and the head is frozen.

    Returns:
        The number of layers adapted.

    Raises:
        InputError: no layer has such a name.
    """
    targets = find_layers(model.backbone, module_name)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    inject_adapter_in_model(config, model.backbone)
    for name, parameter in model.named_parameters():
        is_adapter_or_head = "lora_" in name or name.startswith("model.score")
        others_train = not only_lora and not name.endswith(".base_layer.weight")
        parameter.requires_grad = is_adapter_or_head or others_train
    return len(targets)


def find_layers(backbone: nn.Module, module_name: str) -> list[str]:
    """The names of the linear layers that contain `module_name`; InputError if there are none."""
    modules = backbone.named_modules()
    layers = [name for name, module in modules if isinstance(module, nn.Linear)]
    found = [name for name in layers if module_name in name]
    if not found:
        raise InputError(
            f"--lora_module_name is {module_name!r}, but no linear layer's name contains it; "
            f"the layers' names look like {layers[-1] if layers else '(there are none)'}"
        )
    return found


def merge_lora(state_dict: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Fold adapters into the weights they adapt: W + scale * B A (arXiv 2106.09685, eq. 3).

    Args:
        state_dict: weights of a model that `add_lora` adapted, or of any other.
        scale: alpha / rank.

    Returns:
        Weights under the names that they had before `add_lora`.
    """
    merged = {n.replace(".base_layer.", "."): w for n, w in state_dict.items() if "lora_" not in n}
    for name, a in state_dict.items():
        if name.endswith("." + A):
            layer = name.removesuffix(A)
            weight = merged[f"{layer}weight"]
            delta = scale * state_dict[layer + B].float() @ a.float()
            merged[f"{layer}weight"] = (weight.float() + delta).to(weight.dtype)
    return merged


def save_adapter(
    state_dict: dict[str, torch.Tensor], rank: int, alpha: float, base: str, folder: Path
) -> None:
    """Write adapters and head as `PeftModel.from_pretrained` loads them.

    Args:
        state_dict, rank, alpha: of a model that `add_lora` adapted.
        base: name or folder of the model that was adapted.
        folder: where they go.
    """
    layers = sorted(name.removesuffix("." + A) for name in state_dict if name.endswith("." + A))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=layers,
        modules_to_save=["score"],
        task_type="SEQ_CLS",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": weight.contiguous()
        for name, weight in state_dict.items()
        if "lora_" in name or name.startswith("score.")
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
