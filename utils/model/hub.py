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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.arguments import InputError
from utils.model import deepspeed_chat
from utils.model.deepspeed_chat import HEAD
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import NAME as SHARED_PREFIX

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# What a saved model may consist of, beside config.json and README.md, which always are there.
MODEL_FILES = (
    "model*.safetensors*",
    "pytorch_model*.bin*",
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


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer.

    Raises:
        InputError: the path has none, and names no other model that has (DeepSpeed-Chat's do).
    """
    source = deepspeed_chat.tokenizer_source(path)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = _not_a_model(source, "tokenizer.json", error)
        if source != path:
            message = f"{path}: no tokenizer.json; config.json says that it is in {message}"
        raise InputError(message) from error


def load_model(
    path: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    layout: str = "padded",
    new_head: bool = False,
    trust_remote_code: bool = False,
    device_map: str | dict | None = None,
) -> tuple[RewardModel, list[str]]:
    """Load a reward model, strictly: no weight may be missing or left over.

    Args:
        path: folder or hub name; also a folder of DeepSpeed-Chat (deepspeed_chat.py).
        config: from `load_config`; may carry another dropout.
        tokenizer: its length and padding token become the model's.
        dtype: of the weights.
        layout: of the batches that the model will see (shared_prefix.choose_layout).
        new_head: whether a language model without a head gets a new one (then its own head,
            which predicts tokens, is left behind).
        trust_remote_code: whether the checkpoint's own code may run.
        device_map: accelerate's: where the layers go; None leaves the model on the CPU.

    Returns:
        The model, and sentences about what was made or left behind.

    Raises:
        InputError: the family has no scalar head, or weights are missing, left over or misshapen.
    """
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"  # so that a pipeline gives the score, not its sigmoid
    family = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    weights = deepspeed_chat.read_weights(path, f"{family.base_model_prefix}.") if family else None
    if weights:
        new_head = False  # it has one, or a part of it is lost
    try:
        model, info = (family if weights else AutoModelForSequenceClassification).from_pretrained(
            None if weights else path,
            state_dict=weights,
            config=config,
            dtype=dtype,
            attn_implementation=SHARED_PREFIX if layout == "packed" else None,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
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


def empty_model(config: PreTrainedConfig, vocabulary: int = 0) -> PreTrainedModel:
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
    names = [name for name in vars(config) if "dropout" in name or name.endswith("pdrop")]
    for name in names if dropout is not None else ():
        setattr(config, name, dropout)


def save_model(
    model: RewardModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict,
    output_dir: str,
    save_more: Callable[[Path], None] = lambda folder: None,
    save_format: str = "hf",
    score_statistics: dict[str, float] | None = None,
) -> None:
    """Write a folder that AutoModelForSequenceClassification or DeepSpeed-Chat's step 3 loads.

    Whenever the process is killed, `output_dir` holds a whole model or none: the one before until
    the new one is complete under another name; then, where more than the weights differs, none
    until all files are in place.

    Args:
        model: whose class and config are saved.
        state_dict: the weights, by the names of the Transformers model.
        tokenizer: saved beside the model.
        settings: how text becomes tokens; rw_eval.py reads them from the config.
        output_dir: the folder.
        save_more: called with the folder that the model is written to, before it is put in place;
            writes further files there, such as README.md.
        save_format: hf (Transformers) or dschat (DeepSpeed-Chat).
        score_statistics: mean and std of the scores of held-out answers, for who normalises them;
            kept in the config.
    """
    model.model.config.reward_settings = settings
    model.model.config.score_statistics = score_statistics
    folder = Path(output_dir) / "model.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if save_format == "dschat":
        deepspeed_chat.write_model(model.model, state_dict, len(tokenizer), folder)
    else:
        model.model.save_pretrained(folder, state_dict=state_dict)
    for path in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
        path.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
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
    is_large = new.suffix in (".safetensors", ".bin")
    return not is_large and old.is_file() and filecmp.cmp(new, old, shallow=False)


def _check_weights(path: str, model: PreTrainedModel, info: dict, new_head: bool) -> list[str]:
    """What `load_model` says of the weights that it found; raises its InputError."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    notes = []
    if new_head and not hasattr(model, "score"):
        raise InputError(
            f"{path}: {type(model).__name__} has no linear head `score`; expected a causal "
            "language model"
        )
    if HEAD in missing and not new_head:
        raise InputError(
            f"{path}: the scalar head {HEAD} is missing: this is a language model, not a reward "
            "model. Train it with main.py first"
        )
    if HEAD in missing:
        missing.remove(HEAD)
        notes.append("the model has no scalar head: a new one is drawn")
    prefix = f"{model.base_model_prefix}."
    left_behind = [name for name in unexpected if new_head and not name.startswith(prefix)]
    if left_behind:
        unexpected = [name for name in unexpected if name not in left_behind]
        notes.append(f"not needed for scores and left behind: {', '.join(left_behind)}")
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
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        return f"{path}: no such folder (--model_name_or_path)"
    return (
        f"{path}: neither a folder nor a model that the hub gave ({reason}). Without network, "
        "give a local folder (--model_name_or_path)"
    )
