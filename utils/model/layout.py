"""Whether a model family can be scored at all, and in packed batches or padded ones."""

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from utils.arguments import InputError
from utils.model.trial import Trial, small_model

FAMILIES = AutoModelForSequenceClassification._model_mapping

# How many keys each token picks by their products. The last of them may be as good as others (a
# ReLU makes many 0), and then the width of the batch or rounding decides.
PICKED_KEYS = ("index_topk", "keep_window_size")


def choose_layout(
    config: PreTrainedConfig,
    wanted: str | None,
    max_seq_len: int | None = None,
    new_head: bool = False,
) -> tuple[str, list[str]]:
    """The layout of batches for a model: packed where it can be.

    A small model of the same kind is tried (trial.py), so that nothing rests on what a family
    says of itself.

    Args:
        config: of the model, its positions fixed (positions.py).
        wanted: --batch_layout; None: the best.
        max_seq_len: tokens of the longest row; None: any number.
        new_head: whether it will train, which takes a linear head `score`.

    Returns:
        "packed" or "padded", and sentences that say why, where that is not plain.

    Raises:
        InputError: the model cannot score text, its scores depend on what else is in the batch,
            or it cannot do what is wanted.
    """
    family = config.model_type
    if type(config) not in FAMILIES and not _has_own_code(config):
        raise InputError(
            f"{family} is not a family that Transformers scores text with "
            "(AutoModelForSequenceClassification): give another --model_name_or_path"
        )
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
        _check_scores(family, trial, new_head)
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
    """Whether the checkpoint brings the code of its model (--trust_remote_code)."""
    return "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})


def _why_not_packed(config: PreTrainedConfig) -> str:
    """What a family says of itself that keeps its answers from sharing their prompt; "" if none."""
    family = config.model_type
    if type(config) not in FAMILIES:
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
        InputError: the model itself cannot be built either, or it cannot score text.
    """
    family, own_code = config.model_type, type(config) not in FAMILIES
    try:
        small_model(config, max_seq_len)
    except Exception as error:  # noqa: BLE001  # any code of a family or a checkpoint runs here
        reason = f"no small {family} could be tried ({_short(error)})"
        if own_code:
            return reason
        try:
            with torch.device("meta"):
                FAMILIES[type(config)](config)
        except Exception as error:
            raise InputError(
                f"{family}: no model can be built from config.json ({_short(error)}): give another "
                "--model_name_or_path"
            ) from error
        return reason
    try:
        return Trial(config, max_seq_len, packed)
    except Exception as error:
        # Random weights may overflow, and code of checkpoints may need a GPU.
        if own_code or isinstance(error, FloatingPointError):
            return f"no small {family} could be tried ({_short(error)})"
        raise InputError(
            f"{family} does not score text alone ({_short(error)}): give another "
            "--model_name_or_path"
        ) from error


def _check_scores(family: str, trial: Trial, new_head: bool) -> None:
    """Raise the InputError of `choose_layout` for what a trial has found."""
    if new_head and trial.pools_itself:
        raise InputError(
            f"{family} has no linear head `score`; expected a causal language model "
            "(--model_name_or_path)"
        )
    if fault := trial.faults["padded"]:
        raise InputError(
            f"the scores of {family} depend on what else is in the batch ({fault}), so they would "
            "mean nothing: give another --model_name_or_path"
        )


def _short(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
