"""The one place that loads and saves reward models, from folders and from the hub alike."""

import copy
import filecmp
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils import is_sentencepiece_available
from transformers.utils.hub import cached_file

from utils.model import deepspeed_chat
from utils.model.checkpoint_files import check_place, check_pointers, not_a_model, read_weights
from utils.model.deepspeed_chat import HEAD
from utils.model.folding import fold
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.model.transformers_4 import spell_as_before
from utils.model.weight_check import Checked, check_headers, check_names, prefix_of
from utils.settings import InputError

# Else Transformers asks a service on the hub, in the background, to convert a .bin to safetensors.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

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
    "checks.json",
    "adapter/*",
)

# What tells something of a model, but is not loaded with it.
TOLD = {Path("README.md"), Path("checks.json")}

# Of a model's files, what is read with the tokenizer.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "vocab.json", "merges.txt", "*.model"),
)


def quieten_libraries() -> None:
    """Silence what Transformers and the hub's client write: our own notes and errors say it."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hub_logging.set_verbosity(hub_logging.CRITICAL)


def load_config(path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's config.

    Raises:
        InputError: the path is not a model, or one of text and something else.
    """
    check_place(path)
    check_pointers(path, "config.json")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        is_composite = config.get_text_config() is not config
    except Exception as error:  # a file that anybody may have written can be wrong in any way
        raise InputError(not_a_model(path, "config.json", error)) from error
    if is_composite:
        parts = ", ".join(sorted(config.sub_configs))
        raise InputError(
            f"{path}: {config.model_type} is composed of several models ({parts}); expected a "
            "language model alone: save its text part as a checkpoint of its own "
            "(docs/troubleshooting.md shows how), and give that to --model_name_or_path"
        )
    return config


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer.

    Raises:
        InputError: the path has none, and names no other model that has (DeepSpeed-Chat's do), or
            its special tokens are not in its vocabulary.
    """
    source = deepspeed_chat.tokenizer_source(path)
    check_pointers(source, *TOKENIZER_FILES)

    folder = Path(source)
    try:
        folder = _tokenizer_folder(source)
        options = _tokenizer_options(folder)
        options["trust_remote_code"] = trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        fault = _tokenizer_fault(folder, tokenizer)
    except Exception as error:
        message = _needs_sentencepiece(source, folder) or not_a_model(
            source, "tokenizer.json", error
        )
        if source != path:
            message = f"{path}: no tokenizer.json; config.json says that it is in {message}"
        raise InputError(message) from error

    if fault:
        raise InputError(
            f"{source}: {fault}; copy tokenizer.json and tokenizer_config.json of the model that "
            "it was made from into the folder"
        )
    return tokenizer


def load_model(
    path: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "padded",
    new_head: bool = False,
    trust_remote_code: bool = False,
    device_map: str | dict | None = None,
    ds_config: dict | None = None,
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
        ds_config: DeepSpeed's; in its stage 3 the model is built in partitions.

    Returns:
        The model, and sentences about what was made or left behind.

    Raises:
        InputError: the family has no scalar head, or weights are missing, left over or misshapen.
    """
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"  # so that a pipeline gives the score, not its sigmoid
    empty = empty_model(config, trust_remote_code=trust_remote_code)
    is_deepspeed_chat, notes = check_headers(path, empty, new_head)
    weights = None
    if is_deepspeed_chat:
        weights = deepspeed_chat.rename_weights(read_weights(path, "cpu"), prefix_of(empty))

    # Transformers builds the model in partitions while this object lives.
    in_partitions = ds_config and ds_config["zero_optimization"]["stage"] == 3
    partitions = HfDeepSpeedConfig(ds_config) if in_partitions else None

    attention = SHARED_PREFIX if layout == "packed" else None
    options = {"dtype": dtype, "attn_implementation": attention, "device_map": device_map}
    model, info = _read_model(path, type(empty), config, weights, **options)
    if getattr(config, "quantization_config", None):  # then the headers could not tell
        notes += check_names(path, model, info, new_head, set())

    if HEAD in info["missing_keys"]:
        _draw_head(model.score)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        notes.append(f"the embeddings grew to the tokenizer's {len(tokenizer)} tokens")
    del partitions
    model.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(model), notes


def _read_model(
    path: str,
    family: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, torch.Tensor] | None,
    **options: object,
) -> tuple[PreTrainedModel, dict]:
    """A model with the weights of a path, or with those given, and what was found in loading it."""
    source = path if weights is None else None
    options |= {"config": config, "state_dict": weights, "output_loading_info": True}
    try:
        return family.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(not_a_model(path, "model.safetensors", error)) from error


def check_weights(
    path: str, config: PreTrainedConfig, new_head: bool = False, trust_remote_code: bool = False
) -> Checked:
    """See by the headers of its files that `load_model` will load a model; no weight is read."""
    empty = empty_model(config, trust_remote_code=trust_remote_code)
    return check_headers(path, empty, new_head)


def gpu_has_bf16() -> bool:
    """Whether the GPU computes in bf16 by itself: V100 and T4 only emulate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def scoring_dtype(config: PreTrainedConfig, device: torch.device) -> str:
    """The name of the precision to score in: the checkpoint's where the device is fast with it.

    A GPU scores packed rows in 16 bits ten times as fast as in fp32, a CPU most often slower.
    """
    if device.type == "cpu":
        return "fp32"
    names = {dtype: name for name, dtype in DTYPES.items()}
    name = names.get(config.dtype, "fp32")
    return name if name != "bf16" or gpu_has_bf16() else "fp32"


def empty_model(
    config: PreTrainedConfig, vocabulary: int = 0, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model with a scalar head, without memory for its weights (on the meta device).

    Args:
        config: from `load_config`.
        vocabulary: tokens of the tokenizer, for which `load_model` may enlarge the embeddings.
        trust_remote_code: whether the checkpoint's own code may run.

    Raises:
        InputError: the family has no scalar head, or the config describes no model.
    """
    config = copy.deepcopy(config)
    if vocabulary:
        config.vocab_size = max(config.vocab_size, vocabulary)
    with torch.device("meta"):
        return new_model(config, trust_remote_code)


def new_model(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model with a scalar head and random weights; arguments and errors of `empty_model`."""
    config = copy.deepcopy(config)
    config.num_labels = 1
    kind, path = AutoModelForSequenceClassification, config.name_or_path or config.model_type
    try:
        has_code = kind.__name__ in (getattr(config, "auto_map", None) or {})
        if has_code or type(config) in kind._model_mapping:
            return kind.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(not_a_model(path, "config.json", error)) from error
    raise InputError(
        f"{path}: there is no model with a scalar head for {config.model_type}; expected a family "
        f"that {kind.__name__} knows, or code for it in the checkpoint (--trust_remote_code)"
    )


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Set every dropout probability of a config."""
    for name, value in list(vars(config).items()):
        is_switch = isinstance(value, bool)  # ESM's token_dropout
        if ("dropout" in name or name.endswith("pdrop")) and not is_switch:
            setattr(config, name, dropout)


def save_model(
    model: RewardModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict,
    output_dir: str,
    *,
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
        save_format: hf (Transformers), folded (the same without projections, folding.py) or dschat
            (DeepSpeed-Chat).
        score_statistics: mean and std of the scores of held-out answers, for who normalises them;
            kept in the config.
    """
    config = model.model.config
    config.reward_settings = settings
    config.score_statistics = score_statistics
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}

    folder = Path(output_dir) / "model.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if save_format == "dschat":
        deepspeed_chat.write_model(model.model, state_dict, len(tokenizer), folder)
    elif save_format == "folded":
        config, state_dict = fold(config, state_dict)
        folded = empty_model(config).to(state_dict[HEAD].dtype)
        folded.save_pretrained(folder, state_dict=state_dict)
    else:
        model.model.save_pretrained(folder, state_dict=state_dict)
    for path in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
        path.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
    spell_as_before(folder)
    save_more(folder)
    _put_in_place(folder, Path(output_dir))


def _draw_head(head: torch.nn.Linear) -> None:
    """Normal weights of standard deviation 1 / sqrt(width + 1) (arXiv 2009.01325, section C.2).

    They depend on the seed alone, not on device, precision or what loading has drawn before.
    """
    import deepspeed

    generator = torch.Generator().manual_seed(torch.initial_seed())
    drawn = torch.randn(1, head.in_features, generator=generator) * (head.in_features + 1) ** -0.5
    # In ZeRO-3 the weight is spread over the ranks; elsewhere gathering does nothing.
    with deepspeed.zero.GatheredParameters([head.weight], modifier_rank=0), torch.no_grad():
        if head.weight.numel():
            head.weight.copy_(drawn)


def _put_in_place(folder: Path, output_dir: Path) -> None:
    """Move a complete model into a folder that may hold another."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    old = {path.relative_to(output_dir) for kind in MODEL_FILES for path in output_dir.glob(kind)}
    changed = [name for name in files if not _equal(folder / name, output_dir / name)]
    config = Path("config.json")
    if len(set(changed) - TOLD) > 1 or old - set(files) - TOLD:
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


def _tokenizer_folder(source: str) -> Path:
    """Where the files of a tokenizer are; those of a hub name after they were downloaded."""
    if os.path.isdir(source):
        return Path(source)
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json")
    optional = {"_raise_exceptions_for_missing_entries": False}
    files = [cached_file(source, name, **optional) for name in ("config.json", *names)]
    return next((Path(file).parent for file in files if file), Path(source))


def _needs_sentencepiece(source: str, folder: Path) -> str:
    """Why a tokenizer cannot be read without a library, where Transformers names another."""
    has_model = any(folder.glob("*.model")) and not (folder / "tokenizer.json").exists()
    if not has_model or is_sentencepiece_available():
        return ""
    return (
        f"{source}: the tokenizer is one of sentencepiece (*.model, no tokenizer.json): pip "
        "install sentencepiece, or copy the model's tokenizer.json into the folder"
    )


def _tokenizer_options(folder: Path) -> dict:
    """What AutoTokenizer cannot know of an old folder: OPT begins every text with its `</s>`.

    That stands in tokenizer_config.json, or in tokenizer.json.
    """
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return {}
    config = folder / "config.json"
    family = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return {"add_bos_token": True} if family.get("model_type") == "opt" else {}


def _tokenizer_fault(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """What is wrong with a tokenizer that Transformers made of a folder without a word; or ""."""
    if not tokenizer.vocab_size:
        return "the tokenizer's files have no vocabulary"
    if not isinstance(tokenizer.chat_template, str | dict | None):
        return f"the chat template is {tokenizer.chat_template!r}, not a text"
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return ""

    def read(name: str) -> dict:
        file = folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    # A family's special tokens are made up where no file names those of the model.
    added = read("tokenizer_config.json").get("added_tokens_decoder", {})
    known = {*read("vocab.json"), *read("added_tokens.json")}
    known |= {token["content"] for token in added.values()}
    made_up = sorted(set(tokenizer.special_tokens_map.values()) - known)
    return f"its vocabulary has no special tokens {', '.join(made_up)}" if made_up else ""
