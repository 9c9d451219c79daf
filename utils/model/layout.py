"""Whether a model's scores are the same in any batch, and in packed ones too."""

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from utils.model.trial import Trial, small_model
from utils.settings import InputError

FAMILIES = AutoModelForSequenceClassification._model_mapping

# How many keys each token picks by their products. The last of them may be as good as others (a
# ReLU makes many 0), and then the width of the batch or rounding decides.
PICKED_KEYS = ("index_topk", "keep_window_size")


def choose_layout(
    config: PreTrainedConfig,
    wanted: str | None,
    max_seq_len: int | None = None,
) -> tuple[str, list[str]]:
    """The layout of batches for a model: packed where it can be.

    A small model of the same kind is tried (trial.py), so that nothing rests on what a family
    says of itself.

    Args:
        config: of the model, its positions fixed (positions.py).
        wanted: --batch_layout; None: the best.
        max_seq_len: tokens of the longest row; None: any number.

    Returns:
        "packed" or "padded", and sentences that say why, where that is not plain.

    Raises:
        InputError: the model needs more than text, its scores depend on what else is in the batch,
            or it cannot do what is wanted.
    """
    family = config.model_type
    for name in PICKED_KEYS:
        if (picked := getattr(config, name, None)) and (max_seq_len or picked + 1) > picked:
            raise InputError(
                f"in {family} a token attends to the {picked} keys that it picks ({name}), which "
                f"can depend on what else is in the batch: give --max_seq_len {picked} at most"
            )

    reason = _why_not_packed(config)

    trial = _try(config, max_seq_len, packed=wanted != "padded" and not reason)
    if isinstance(trial, str):
        reason = reason or trial
    else:
        if fault := trial.faults["padded"]:
            raise InputError(
                f"the scores of {family} depend on what else is in the batch ({fault}), so they "
                "would mean nothing: give another --model_name_or_path"
            )
        reason = reason or trial.faults.get("packed", "")

    if wanted == "padded":
        return wanted, []
    if reason:
        if wanted == "packed":
            raise InputError(f"--batch_layout packed: {reason}; give --batch_layout padded")
        return "padded", [f"batches are padded: {reason}"]

    dropout = getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None)
    if dropout and torch.cuda.is_available():
        note = f"the model drops attention weights (p = {dropout}), which the fused kernel cannot: "
        return "packed", [note + "--dropout 0 is faster"]
    return "packed", []


def _has_own_code(config: PreTrainedConfig) -> bool:
    """Whether the model is of a checkpoint's own code, which FAMILIES has too once it is loaded."""
    kind = FAMILIES.get(type(config), None)
    return kind is None or not kind.__module__.startswith("transformers.")


def _why_not_packed(config: PreTrainedConfig) -> str:
    """What a family says of itself that keeps its answers from sharing their prompt; "" if none."""
    family = config.model_type
    if _has_own_code(config):
        return f"{family} is not a family of Transformers' own"
    kind = FAMILIES[type(config)]
    # Both kernels know causal masks and windows alone, so who supports them needs no more.
    kernels = kind._supports_flash_attn and kind._supports_sdpa
    if not (kind._supports_attention_backend and kernels) or kind._is_stateful:
        return f"{family} does not let its attention be exchanged"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"not all layers of {family} are attention"
    return ""


def _try(config: PreTrainedConfig, max_seq_len: int | None, packed: bool) -> Trial | str:
    """Try a small model; where none can be made of the config, say why.

    Raises:
        InputError: the family needs more than text.
    """
    family = config.model_type
    try:
        small_model(config, max_seq_len)
    except Exception as error:  # noqa: BLE001  # any code of a family or a checkpoint runs here
        return f"no small {family} could be tried ({_short(error)})"
    try:
        return Trial(config, max_seq_len, packed)
    except Exception as error:
        # Random weights may overflow, and code of checkpoints may need a GPU.
        if _has_own_code(config) or isinstance(error, FloatingPointError):
            return f"no small {family} could be tried ({_short(error)})"
        raise InputError(
            f"{family} does not score text alone ({_short(error)}): give another "
            "--model_name_or_path"
        ) from error


def _short(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
