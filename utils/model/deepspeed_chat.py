"""Reward models as DeepSpeed-Chat writes them and its step 3 reads them.

Its RewardModel (microsoft/DeepSpeedExamples, applications/DeepSpeed-Chat/dschat/utils/model/
reward_model.py) holds a model without a head as `rwtransformer` and a linear head without a bias as
`v_head`; `pytorch_model.bin` is its plain state dict.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from utils.settings import InputError

HEAD = "score.weight"
WEIGHTS = "pytorch_model.bin"
BACKBONE, VALUE_HEAD = "rwtransformer.", "v_head.weight"


def rename_weights(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor] | None:
    """Give the weights of DeepSpeed-Chat's RewardModel the names of the Transformers model.

    Args:
        weights: of a checkpoint, by their names in its files.
        prefix: what the names of the weights without the head begin with in Transformers.

    Returns:
        The renamed weights; None if they are a model of another kind.
    """
    if VALUE_HEAD not in weights and not any(name.startswith(BACKBONE) for name in weights):
        return None
    names = {name: name.replace(BACKBONE, prefix, 1) for name in weights}
    names[VALUE_HEAD] = HEAD
    return {names[name]: weight for name, weight in weights.items()}


def write_model(
    model: PreTrainedModel, state_dict: dict[str, torch.Tensor], vocabulary: int, folder: Path
) -> None:
    """Write pytorch_model.bin and config.json.

    Step 3 makes its embeddings as large as the tokenizer, rounded up to a multiple of 8
    (model_utils.py, create_hf_model), and passes over weights of another shape without an error;
    so rows are added or left out here, none of which belongs to a token.

    Args:
        model: an AutoModelForSequenceClassification, whose config is written.
        state_dict: its weights, by the names of the Transformers model.
        vocabulary: tokens of the tokenizer.
        folder: where they go.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = -(-vocabulary // 8) * 8
    config.architectures = [type(model.base_model).__name__]
    config.dtype = state_dict[HEAD].dtype
    config.save_pretrained(folder)
    embeddings = model.get_input_embeddings()
    prefix, weights = f"{model.base_model_prefix}.", {}
    for name, weight in state_dict.items():
        # Ranks of ZeRO hold views of larger buffers, which would be written whole: hence copies.
        weight = weight.detach().cpu().clone()
        if name == HEAD:
            name = VALUE_HEAD
        elif model.get_submodule(name.rpartition(".")[0]) is embeddings:
            weight = torch.nn.functional.pad(weight, (0, 0, 0, config.vocab_size - len(weight)))
        weights[name.replace(prefix, BACKBONE, 1)] = weight
    torch.save(weights, folder / WEIGHTS)


def tokenizer_source(path: str) -> str:
    """Where the tokenizer of a model is: the model itself, or the one that it was made from.

    DeepSpeed-Chat writes no more than the vocabulary, which does not tell the special tokens, and
    reads the tokenizer from where `_name_or_path` in config.json points (utils.py,
    load_hf_tokenizer). Older models on the hub have a vocabulary, too, but name their special
    tokens beside it.

    Raises:
        InputError: a folder has no tokenizer and names no other model.
    """
    folder = Path(path)
    whole = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    config = folder / "config.json"
    if not config.is_file() or any((folder / name).is_file() for name in whole):
        return path
    base = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path")
    if not base:
        raise InputError(
            f"{path}: neither {' nor '.join(whole)}: copy those of the model that it was trained "
            "from into the folder"
        )
    return base
