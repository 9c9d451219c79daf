"""Whether the weights of a checkpoint are those of its model, told by names and shapes alone."""

import copy
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import get_hf_quantizer

from utils.model import deepspeed_chat
from utils.model.checkpoint_files import not_a_model, read_weights, reason
from utils.model.deepspeed_chat import HEAD
from utils.settings import InputError


class Checked(NamedTuple):
    """What `check_headers` found.

    Attributes:
        is_deepspeed_chat: whether the weights have the names of DeepSpeed-Chat.
        notes: sentences about what will be made or left behind.
    """

    is_deepspeed_chat: bool
    notes: list[str]


def check_headers(path: str, empty: PreTrainedModel, new_head: bool) -> Checked:
    """Check by the headers of a model's files that it will load; no weight is read.

    Args:
        path: folder or hub name.
        empty: the model on the meta device, with its scalar head.
        new_head: whether a language model without a head gets a new one.

    Raises:
        InputError: files are missing or damaged, or weights are missing, left over or misshapen.
    """
    if _is_quantized(path, empty.config, new_head):
        return Checked(False, [])  # its weights have other names in the files

    weights = read_weights(path, "meta")
    renamed = deepspeed_chat.rename_weights(weights, prefix_of(empty))
    if renamed:
        weights, new_head = renamed, False  # it has a head, or a part of it is lost

    old = old_buffers(weights, empty)
    weights = {name: weight for name, weight in weights.items() if name not in old}

    try:
        model, info = type(empty).from_pretrained(
            None,
            state_dict=dict(weights),
            config=empty.config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the information has them, too
        )
    except Exception as error:
        raise InputError(not_a_model(path, "model.safetensors", error)) from error

    notes = check_names(path, model, info, new_head, _passed_over(model, weights))
    if old:
        notes.append(f"buffers that Transformers makes anew are left behind: {_shown(old)}")
    return Checked(renamed is not None, notes)


def check_names(
    path: str,
    model: PreTrainedModel,
    info: dict,
    new_head: bool,
    passed_over: set[str],
) -> list[str]:
    """Judge what loading found of names and shapes.

    Args:
        path, new_head: as for `check_headers`.
        model: that was loaded.
        info: what Transformers tells of loading it.
        passed_over: weights of the checkpoint that Transformers does not mention.

    Returns:
        Sentences about what was made or left behind.

    Raises:
        InputError: weights are missing, left over or misshapen.
    """
    missing = sorted(info["missing_keys"])
    unexpected = {*info["unexpected_keys"], *passed_over}
    notes = []

    if new_head and not hasattr(model, "score"):
        raise InputError(
            f"{path}: {type(model).__name__} has no linear head `score`; expected a causal "
            "language model"
        )

    if HEAD in missing and not new_head:
        raise InputError(f"{path}: the scalar head {HEAD} is missing: {_other_head(unexpected)}")
    if HEAD in missing:
        missing.remove(HEAD)
        notes.append("the model has no scalar head: a new one is drawn")

    # Another head may stay behind, but no weight of the model below it, with the prefix or without;
    # nor what has a buffer's name, but not its shape.
    below = (prefix_of(model), *(f"{name}." for name, _ in model.base_model.named_children()))
    behind = {name for name in passed_over if not _has_buffer_name(name)}
    if new_head:
        behind |= {name for name in unexpected if not name.startswith(below)}
    behind |= {name for name in unexpected if name.startswith(WORD_HEADS)}
    if behind:
        notes.append(f"not needed for scores and left behind: {_shown(behind)}")

    for name, has, wanted in info["mismatched_keys"]:
        if name == HEAD and has[1:] == wanted[1:]:
            raise InputError(
                f"{path}: its head gives {has[0]} values, not one score ({HEAD} {list(has)}); "
                "expected a reward model with num_labels 1, or a language model to train"
            )
    misshapen = [f"{name} {list(has)} for {list(w)}" for name, has, w in info["mismatched_keys"]]
    faults = {"missing": missing, "left over": unexpected - behind, "misshapen": misshapen}
    for kind, names in faults.items():
        if names:
            raise InputError(
                f"{path}: {len(names)} weights are {kind} ({', '.join(sorted(names)[:3])}); "
                f"expected a complete checkpoint of {type(model).__name__}"
            )
    return notes


def _other_head(unexpected: set[str]) -> str:
    """What a checkpoint without the scalar head is, told by its weights that have no place."""
    others = {name for name in unexpected if re.search(r"head|score|classifier|reward", name)}
    others = {name for name in others if not name.startswith(WORD_HEADS)}
    if others:
        return (
            f"its head has another name ({_shown(others)}). If it is one linear layer without a "
            f"bias, name its weight {HEAD} in the file"
        )
    return "this is a language model, not a reward model. Train it with main.py first"


def prefix_of(model: PreTrainedModel) -> str:
    """What the names of the weights without the head begin with."""
    return f"{model.base_model_prefix}."


def old_buffers(weights: dict[str, torch.Tensor], empty: PreTrainedModel) -> set[str]:
    """The names of what an older Transformers saved, but makes itself now, and so is no weight.

    A name alone proves nothing: `attention.bias` is a causal mask in old files of GPT-NeoX, and
    could be a bias elsewhere. It takes the shape, too.

    Args:
        weights: names and tensors of a checkpoint, also on the meta device.
        empty: the model on the meta device; its own buffers that it does not load count, too.
    """
    model_names, prefix = set(empty.state_dict()), prefix_of(empty)
    made = {n: b.shape for n, b in empty.named_buffers() if n not in model_names}
    made |= {name.removeprefix(prefix): shape for name, shape in made.items()}
    return {
        name
        for name, tensor in weights.items()
        if made.get(name) == tensor.shape
        or any(re.search(ending, name) and fits(tensor) for ending, fits in OLD_BUFFERS)
        and not _is_wanted(name, model_names)
    }


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether it is [n, n] or [1, 1, n, n], as causal masks are, and no bias."""
    shape = tensor.shape
    return len(shape) > 1 and set(shape[:-2]) <= {1} and shape[-2] == shape[-1]


# Heads that predict tokens, which change no score.
WORD_HEADS = ("lm_head.", "embed_out.")

OLD_BUFFERS: tuple[tuple[str, Callable[[torch.Tensor], bool]], ...] = (
    # The causal mask of GPT-2, GPT-Neo, GPT-J, GPT-NeoX and others, and what it puts in the place
    # of a logit.
    (r"(^|\.)(attn|attention|self_attn|self_attention|crossattention)\.bias$", _is_mask),
    (r"(^|\.)(causal_mask|attn_mask|attention_mask)$", _is_mask),
    (r"(^|\.)masked_bias$", lambda tensor: tensor.numel() == 1),
    # fairseq's, in OPT, BART and others.
    (r"(^|\.)(version|_float_tensor)$", lambda tensor: tensor.numel() == 1),
    # Positions, rotary and learned.
    (r"(^|[._])inv_freq$", lambda tensor: tensor.ndim == 1),
    (r"(^|\.)(cos|sin)_cached$", lambda tensor: tensor.ndim in (2, 4)),
    (r"(^|\.)(position|token_type)_ids$", lambda tensor: not tensor.is_floating_point()),
)


def _has_buffer_name(name: str) -> bool:
    return any(re.search(ending, name) for ending, _ in OLD_BUFFERS)


def _is_wanted(name: str, model_names: set[str]) -> bool:
    """Whether a model loads the weight, be it with a prefix more, or one less."""
    return any(
        f".{longer}".endswith(f".{shorter}")
        for wanted in model_names
        for longer, shorter in ((wanted, name), (name, wanted))
    )


def _passed_over(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> set[str]:
    """Weights that the family ignores without a word, such as heads for further tokens."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), "inv_freq$", "position_ids$"]
    ignored = {name for name in weights if any(re.search(p, name) for p in patterns)}
    model_names = set(model.state_dict())
    return {name for name in ignored if not _is_wanted(name, model_names)}


def _is_quantized(path: str, config: PreTrainedConfig, new_head: bool) -> bool:
    """Whether a checkpoint is quantised; InputError where it cannot be used so."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return False
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = settings.get("quant_method", "by an unknown method")
    if new_head:
        raise InputError(
            f"{path}: the weights are quantised ({method}), and cannot be trained so; expected "
            "the model in 16 or 32 bits that it was made from"
        )
    try:
        return get_hf_quantizer(copy.deepcopy(config), None, None, True, {})[0] is not None
    except Exception as error:
        raise InputError(
            f"{path}: the weights are quantised ({method}), and this machine cannot read them "
            f"({reason(error)}); install what is missing, or give the model in 16 or 32 bits"
        ) from error


def _shown(names: set[str]) -> str:
    """Names in one line; those of one layer stand for all layers."""
    return ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names}))
