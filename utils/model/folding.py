"""OPT-350m's narrow embeddings folded into its layers, for programs that know no others.

OPT-350m looks tokens up in `word_embed_proj_dim` numbers, widens them to `hidden_size` and narrows
what its layers give again, before the head. All three are linear, so they can be multiplied out:

    embeddings [V, 512] -> project_in [1024, 512] -> layers -> project_out [512, 1024] -> head [512]
    embeddings [V, 1024] --------------------------> layers ---------------------------> head [1024]
"""

import copy

import torch
from transformers import PreTrainedConfig

from utils.model.deepspeed_chat import HEAD

_EMBEDDINGS = "model.decoder.embed_tokens.weight"
_PROJECT_IN, _PROJECT_OUT = (f"model.decoder.project_{way}.weight" for way in ("in", "out"))


def can_fold(config: PreTrainedConfig) -> bool:
    """Whether a model has embeddings of another width than its layers."""
    width = getattr(config, "word_embed_proj_dim", None)
    return config.model_type == "opt" and width != config.hidden_size


def fold(
    config: PreTrainedConfig, weights: dict[str, torch.Tensor]
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """The config and the weights of a model that gives the same scores without projections.

    Args:
        config: of a model that `can_fold`.
        weights: by the names of the Transformers model, in any dtype.
    """
    config = copy.deepcopy(config)
    config.word_embed_proj_dim = config.hidden_size

    weights = dict(weights)
    project_in, project_out = weights.pop(_PROJECT_IN), weights.pop(_PROJECT_OUT)
    dtype = weights[HEAD].dtype
    weights[_EMBEDDINGS] = (weights[_EMBEDDINGS].double() @ project_in.double().T).to(dtype)
    weights[HEAD] = (weights[HEAD].double() @ project_out.double()).to(dtype)
    return config, weights
