"""The one place that loads and saves reward models, from folders and from the hub alike."""

import copy
import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from utils.arguments import InputError
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import NAME as SHARED_PREFIX

HEAD = "score.weight"

# Where the configs of the families keep their dropout probabilities.
DROPOUTS = (
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "activation_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "classifier_dropout",
)


# What a saved model may consist of, beside config.json and README.md, which always are there.
MODEL_FILES = (
    "model*.safetensors*",
    "tokenizer.*",
    "tokenizer_config.json",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "adapter/*",
)


def load_config(path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's config.

    Raises:
        InputError: the path is not a model.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_not_a_model(path, "config.json", error)) from error


def load_tokenizer(path: str, trust_remote_code: bool = False):
    """Read a model's tokenizer.

    Raises:
        InputError: the path has none.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(_not_a_model(path, "tokenizer.json", error)) from error


def load_model(
    path: str,
    config: PreTrainedConfig,
    tokenizer,
    dtype: torch.dtype = torch.float32,
    layout: str = "padded",
    new_head: bool = False,
    trust_remote_code: bool = False,
) -> tuple[RewardModel, list[str]]:
    """Load a reward model, strictly: no weight may be missing or left over.

    Args:
        path: folder or hub name.
        config: from `load_config`; may carry another dropout.
        tokenizer: its length and padding token become the model's.
        dtype: of the weights.
        layout: of the batches that the model will see (shared_prefix.choose_layout).
        new_head: whether a language model without a head gets a new one (then its own head,
            which predicts tokens, is left behind).
        trust_remote_code: whether the checkpoint's own code may run.

    Returns:
        The model, and sentences about what was made or left behind.

    Raises:
        InputError: the family has no scalar head, or weights are missing, left over or misshapen.
    """
    config.num_labels = 1
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=SHARED_PREFIX if layout == "packed" else None,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_a_model(path, "model.safetensors", error)) from error
    notes = _check_weights(path, model, info, new_head)
    if HEAD in info["missing_keys"]:
        _draw_head(model.score)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        notes.append(f"the embeddings grew to the tokenizer's {len(tokenizer)} tokens")
    model.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(model), notes


def empty_model(config: PreTrainedConfig, vocabulary: int = 0) -> torch.nn.Module:
    """The model with a scalar head, without memory for its weights (on the meta device).

    Args:
        config: from `load_config`.
        vocabulary: tokens of the tokenizer, for which `load_model` may enlarge the embeddings.
    """
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.vocab_size = max(config.vocab_size, vocabulary)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def set_dropout(config: PreTrainedConfig, dropout: float | None) -> None:
    """Set every dropout probability of a config; None leaves the model's own."""
    if dropout is not None:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)


def save_model(
    model: RewardModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer,
    settings: dict,
    card: str,
    output_dir: str,
    save_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a folder that AutoModelForSequenceClassification loads.

    Whenever the process is killed, `output_dir` holds a whole model or none: the one before until
    the new one is complete under another name; then, where more than the weights differs, none
    until all files are in place.

    Args:
        model: whose class and config are saved.
        state_dict: the weights, by the names of the Transformers model.
        tokenizer: saved beside the model.
        settings: how text becomes tokens; rw_eval.py reads them from the config.
        card: text of README.md.
        output_dir: the folder.
        save_more: writes further files into the folder that it is given.
    """
    model.model.config.reward_settings = settings
    folder = Path(output_dir) / "model.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    save_more(folder)
    _put_in_place(folder, Path(output_dir))


def _draw_head(head: torch.nn.Linear) -> None:
    """Normal weights of standard deviation 1 / sqrt(width + 1) (arXiv 2009.01325, section C.2)."""
    import deepspeed

    # In ZeRO-3 the weight is spread over the ranks; elsewhere gathering does nothing.
    with deepspeed.zero.GatheredParameters([head.weight], modifier_rank=0):
        if head.weight.numel():
            torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)


def _put_in_place(folder: Path, output_dir: Path) -> None:
    """Move a complete model into a folder that may hold another."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    old = {path.relative_to(output_dir) for kind in MODEL_FILES for path in output_dir.glob(kind)}
    changed = [name for name in files if not _equal(folder / name, output_dir / name)]
    needed = [name for name in changed if name.name != "README.md"]
    config = Path("config.json")
    if len(needed) > 1 or old - set(files):
        (output_dir / config).unlink(missing_ok=True)  # nothing loads a folder without it
        changed = [name for name in files if name != config] + [config]
    for name in old - set(files):  # what is left of an earlier model would be loaded with this one
        (output_dir / name).unlink()
    for name in changed:
        (output_dir / name).parent.mkdir(exist_ok=True)
        os.replace(folder / name, output_dir / name)
    shutil.rmtree(folder)


def _equal(new: Path, old: Path) -> bool:
    return new.suffix != ".safetensors" and old.is_file() and filecmp.cmp(new, old, shallow=False)


def _check_weights(path, model, info, new_head) -> list[str]:
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    notes = []
    if new_head:
        if not hasattr(model, "score"):
            raise InputError(
                f"{path}: {type(model).__name__} has no linear head `score`; expected a causal "
                "language model"
            )
        if HEAD in missing:
            notes.append("the model has no scalar head: a new one is drawn")
        missing = [name for name in missing if name != HEAD]
        prefix = model.base_model_prefix + "."
        left_behind = [name for name in unexpected if not name.startswith(prefix)]
        unexpected = [name for name in unexpected if name.startswith(prefix)]
        if left_behind:
            notes.append(f"not needed for scores and left behind: {', '.join(left_behind)}")
    if HEAD in missing:
        raise InputError(
            f"{path}: the scalar head {HEAD} is missing: this is a language model, not a reward "
            "model. Train it with main.py first"
        )
    faults = {"missing": missing, "left over": unexpected, "misshapen": info["mismatched_keys"]}
    for kind, names in faults.items():
        if names:
            shown = ", ".join(map(str, list(names)[:3]))
            raise InputError(
                f"{path}: {len(names)} weights are {kind} ({shown}); expected a complete "
                f"checkpoint of {type(model).__name__}"
            )
    return notes


def _not_a_model(path: str, expected: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200]
    if os.path.isdir(path):
        return (
            f"{path}: not a model that can be loaded ({reason}); expected {expected} as "
            "save_pretrained writes it (--model_name_or_path)"
        )
    return (
        f"{path}: neither a folder nor a model that the hub gave ({reason}). Without network, "
        "give a local folder (--model_name_or_path)"
    )
