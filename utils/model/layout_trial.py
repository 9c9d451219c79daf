"""Whether a model's scores are the same in any batch, and in packed ones too."""

import random
from collections.abc import Iterator

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from utils.data.batch import Batch
from utils.data.packing import PackedCollator, PaddedCollator
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.model.small_model import small_model
from utils.settings import InputError

FAMILIES = AutoModelForSequenceClassification._model_mapping

TOLERANCE = 1e-3  # rounding makes 1e-6, and whatever sees neighbours more than 1e-2

# How many keys each token picks by their products. The last of them may be as good as others (a
# ReLU makes many 0), and then the width of the batch or rounding decides.
PICKED_KEYS = ("index_topk", "keep_window_size")


def choose_layout(
    config: PreTrainedConfig,
    wanted: str | None,
    max_seq_len: int | None = None,
) -> tuple[str, list[str]]:
    """The layout of batches for a model: packed where it can be.

    A small model of the same kind is tried, so that nothing rests on what a family says of itself.

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

    faults = _try(config, max_seq_len, packed=wanted != "padded" and not reason)
    if isinstance(faults, str):
        reason = reason or faults
    else:
        if fault := faults["padded"]:
            raise InputError(
                f"the scores of {family} depend on what else is in the batch ({fault}), so they "
                "would mean nothing: give another --model_name_or_path"
            )
        reason = reason or faults.get("packed", "")

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


def _try(config: PreTrainedConfig, max_seq_len: int | None, packed: bool) -> dict[str, str] | str:
    """What `_try_layouts` finds; where no small model can be made of the config, why.

    Raises:
        InputError: the family needs more than text.
    """
    family = config.model_type
    try:
        small_model(config, max_seq_len)
    except Exception as error:  # noqa: BLE001  # any code of a family or a checkpoint runs here
        return f"no small {family} could be tried ({_short(error)})"

    try:
        return _try_layouts(config, max_seq_len, packed)
    except Exception as error:
        # Random weights may overflow, and code of checkpoints may need a GPU.
        if _has_own_code(config) or isinstance(error, FloatingPointError):
            return f"no small {family} could be tried ({_short(error)})"
        raise InputError(
            f"{family} does not score text alone ({_short(error)}): give another "
            "--model_name_or_path"
        ) from error


def _try_layouts(config: PreTrainedConfig, max_seq_len: int | None, packed: bool) -> dict[str, str]:
    """Let a small model score answers alone, together, and together in packed rows if wanted.

    Returns:
        What is wrong with the scores of each layout; "" if they are those of the answers alone.

    Raises:
        FloatingPointError: the scores are not finite.
    """
    model = RewardModel(small_model(config, max_seq_len))
    text_config = model.model.config.get_text_config()
    rows = _rows_to_try(getattr(text_config, "eos_token_id", None))
    collate = PaddedCollator(text_config.pad_token_id)

    # First together, since some models never leave a mode that a short batch brings about.
    together = _scores(model, [collate(rows, [1.0] * len(rows))])
    alone = _scores(model, [collate([row], [1.0]) for row in _each_answer(rows)])
    if not alone.isfinite().all():
        raise FloatingPointError("its scores are not finite")
    faults = {"padded": _fault(together, alone)}

    if packed and model.pools_itself:
        faults["packed"] = f"{config.model_type} is not a decoder"
    elif packed:
        small = small_model(config, max_seq_len, attn_implementation=SHARED_PREFIX)
        try:
            batch = PackedCollator(0)(rows, [1.0] * len(rows))
            fault = _fault(_scores(RewardModel(small), [batch]), alone)
        except InputError as error:
            faults["packed"] = str(error).partition(":")[0]
        else:
            others = f"in packed rows {config.model_type} would give other scores ({fault})"
            faults["packed"] = others if fault else ""
    return faults


def _rows_to_try(end: int | None) -> list[dict]:
    """Comparisons as ComparisonTokenizer.rows makes them, of lengths around the small sizes."""
    draw, rows = random.Random(0), []
    for prompt, *lengths in ((2, 1, 2), (5, 3, 14, 1), (18, 2, 9)):
        ids = [[draw.randrange(20, 60) for _ in range(length)] for length in (prompt, *lengths)]
        sequences = [ids[0] + [16 + i, *answer, end or 0] for i, answer in enumerate(ids[1:])]
        numbers = range(len(sequences))
        rows.append(
            {"input_ids": sequences, "shared": prompt, "answers": numbers, "ranks": numbers}
        )
    return rows


def _each_answer(rows: list[dict]) -> Iterator[dict]:
    """Rows with one answer each."""
    for row in rows:
        for ids in row["input_ids"]:
            yield {"input_ids": [ids], "shared": 0, "answers": range(1), "ranks": range(1)}


@torch.no_grad()
def _scores(model: RewardModel, batches: list[Batch]) -> torch.Tensor:
    """The scores of all answers of some batches."""
    return torch.cat([model(batch) for batch in batches])


def _fault(scores: torch.Tensor, alone: torch.Tensor) -> str:
    """How scores differ from those of the answers alone; "" if they agree up to rounding."""
    difference = float((scores - alone).abs().max() / alone.std())
    if difference <= TOLERANCE:
        return ""
    return f"those of a small model of its kind moved by {difference:.2g} standard deviations"


def _short(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
