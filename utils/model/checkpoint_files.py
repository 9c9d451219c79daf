"""The files of a checkpoint: which ones hold its weights, and whether they are whole."""

import os
import textwrap
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import HTTPError
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from utils.hub_errors import explain
from utils.settings import InputError

# In the order in which Transformers looks for them.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)

POINTER = b"version https://git-lfs"

ADAPTER = "adapter_config.json"

# What people take for a model folder: a file that tells it, what it is, and what to give instead.
OTHER_KINDS = (
    (
        ADAPTER,
        "a LoRA adapter without its model",
        "merge it into the model that it adapts (peft: merge_and_unload, save_pretrained)",
    ),
    (
        "*_model_states.pt",
        "a training state of DeepSpeed",
        "give the model's folder above checkpoints/, or the state's own folder to "
        "--resume_from_checkpoint",
    ),
    (
        "step_*/*_model_states.pt",
        "a folder of DeepSpeed's training states",
        "give the model's folder above it, or a state to --resume_from_checkpoint",
    ),
    ("*.gguf", "a GGUF model", "give the Transformers checkpoint that it was converted from"),
    ("tf_model.h5", "a TensorFlow model", "give its PyTorch weights"),
    ("flax_model.msgpack", "a Flax model", "give its PyTorch weights"),
    (
        "consolidated*.pth",
        "a model in Meta's format",
        "give its Transformers checkpoint (on the hub its name mostly ends with -hf)",
    ),
)


def other_kind(path: str) -> str:
    """What a path holds instead of a Transformers model, and what to give; "" if not known."""
    folder = Path(path)
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return ""
    for pattern, kind, remedy in OTHER_KINDS:
        if any(folder.glob(pattern)):
            return f"{kind}; {remedy}"
    return ""


def reason(error: Exception) -> str:
    """An error of a library in one line."""
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    is_a_sentence = text and isinstance(error, (OSError, ValueError, RuntimeError, ImportError))
    return text if is_a_sentence else f"{type(error).__name__}: {text}"


def not_a_model(path: str, expected: str, error: Exception) -> str:
    """What to tell who gave the path, where a library could not read what was `expected`."""
    if "trust_remote_code" in str(error):
        return (
            f"{path}: the model comes with code of its own; --trust_remote_code runs it (only for "
            "sources you trust)"
        )

    if what := other_kind(path):
        return f"{path}: not a model that can be loaded: it is {what} (--model_name_or_path)"

    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        inside = sorted(file.parent.name for file in Path(path).glob("*/config.json"))
        models = f"; there are models in {', '.join(inside[:3])}" if inside else ""
        return (
            f"{path}: not a model that can be loaded (no config.json{models}); expected {expected} "
            "as save_pretrained writes it (--model_name_or_path)"
        )

    if os.path.isdir(path):
        return (
            f"{path}: not a model that can be loaded ({reason(error)}); expected {expected} as "
            "save_pretrained writes it (--model_name_or_path)"
        )

    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        return f"{path}: no such folder (--model_name_or_path)"
    return (
        f"{path}: neither a folder nor a model that the hub gave ({explain(error)}). Without "
        "network, give a local folder (--model_name_or_path)"
    )


def check_place(path: str) -> None:
    """See that a path is no file, and that a folder can be looked into; a hub name is neither.

    Raises:
        InputError: else.
    """
    if os.path.isfile(path):
        raise InputError(f"{path}: a file; expected the folder of a model (--model_name_or_path)")
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{path}: this user may not look into the folder (--model_name_or_path)")


def check_pointers(path: str, *patterns: str) -> None:
    """See that the files of a folder are not what Git leaves in their place without Git LFS.

    Raises:
        InputError: one of those that fit a pattern is such a pointer, or cannot be read.
    """
    files = (file for pattern in patterns for file in sorted(Path(path).glob(pattern)))
    for file in files:
        if not file.is_file():
            continue
        try:
            with file.open("rb") as opened:
                start = opened.read(len(POINTER))
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
        if start == POINTER:
            raise InputError(
                f"{file}: a pointer of Git LFS, not the file itself: run `git lfs pull` in "
                f"{file.parent}, or download the file"
            )


def read_weights(path: str, device: str) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint by their names in its files.

    Args:
        path: folder or hub name.
        device: "meta" reads names, shapes and dtypes alone; "cpu" maps the files into memory.

    Raises:
        InputError: there are no weights, or a file is missing, damaged or holds something else.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in _weight_files(path):
        weights |= _read_file(file, device)
    if not weights:
        raise InputError(f"{path}: its files hold no weights; expected a whole checkpoint")
    return weights


def _weight_files(path: str) -> list[Path]:
    """Those that Transformers would load; names of the hub are downloaded."""
    folder = Path(path)
    if folder.is_dir():
        found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    else:
        optional = {"_raise_exceptions_for_missing_entries": False}
        try:
            files = (cached_file(path, name, **optional) for name in WEIGHT_FILES)
            found = next((Path(file) for file in files if file), None)
        except (OSError, ValueError, HTTPError) as error:
            raise InputError(not_a_model(path, SAFE_WEIGHTS_NAME, error)) from error

    if found is None and (kind := other_kind(path)):
        raise InputError(f"{path}: not a model that can be loaded: it is {kind}")

    if found is None:
        there = ", ".join(sorted(file.name for file in folder.glob("*"))[:8]) or "its files"
        raise InputError(
            f"{path}: not a model that can be loaded (no weights among {there}); expected "
            f"{SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, whole or in parts with their index"
        )

    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{path}: a LoRA adapter ({ADAPTER}) stands beside the weights, so two models are "
            "meant; take it away, or merge it (peft: merge_and_unload)"
        )

    check_pointers(str(found.parent), found.name)
    if found.suffix != ".json":
        return [found]

    try:
        shards = [Path(file) for file in get_checkpoint_shard_files(path, str(found))[0]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HTTPError) as error:
        if isinstance(error, OSError | HTTPError) and not folder.is_dir():
            raise InputError(not_a_model(path, "its weights", error)) from error
        raise InputError(f"{found}: not an index of weights ({reason(error)})") from error

    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(shards)} files that {found.name} names are missing "
            f"({', '.join(missing[:3])}); expected a whole checkpoint"
        )
    return shards


def _read_file(file: Path, device: str) -> dict[str, torch.Tensor]:
    """What one file holds: names and tensors."""
    check_pointers(str(file.parent), file.name)
    try:
        if file.suffix == ".safetensors":
            return load_state_dict(file, map_location=device)
        # A file from before torch 1.6 is no archive, and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
            raise ValueError("it holds more than named tensors")
        return {name: weight.to(device) for name, weight in weights.items()}
    except Exception as error:
        # torch's own words about pickles invite to run code that nobody has looked at.
        is_pickle = isinstance(error, UnpicklingError)
        why = "damaged, or with more in it than tensors" if is_pickle else reason(error)
        raise InputError(
            f"{file}: not a file of weights ({why}); download or save it again"
        ) from error
