"""A causal language model with a scalar head: a batch in, one score an answer out."""

import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.data.batch import Batch
from utils.model.shared_prefix import cut_last_layer
from utils.settings import InputError


def check_head(path: str, empty: PreTrainedModel) -> None:
    """Refuse families of Transformers whose head does not read a single token.

    Args:
        path: of the model, for the error message.
        empty: the model on the meta device.

    Raises:
        InputError: the head is no linear layer `score`, as of all encoders.
    """
    is_own_code = not type(empty).__module__.startswith("transformers.")
    if not is_own_code and not isinstance(getattr(empty, "score", None), nn.Linear):
        raise InputError(
            f"{path}: {type(empty).__name__} has no linear head `score` that reads one token. "
            "Encoders such as BERT and DeBERTa, which may want question and answer as two "
            "segments, are neither trained nor scored here; expected a causal language model"
        )


def compile_layers(model: "RewardModel", **options: object) -> None:
    """Compile each decoder layer in place, for any number of tokens (torch.compile's options).

    Layers share their programs: the first, those between and the last, in training and evaluation.
    """
    torch._dynamo.config.recompile_limit = 32
    depth = model.model.config.num_hidden_layers
    lists = [part for part in model.backbone.modules() if isinstance(part, nn.ModuleList)]
    for layer in next(part for part in lists if len(part) == depth):
        layer.compile(dynamic=True, **options)


class RewardModel(nn.Module):
    """Scores the answers of a batch with a Transformers sequence-classification model.

    The head sees the hidden state at the positions that the batch names, so that nobody searches
    for padding. Models of a checkpoint's own code that have no linear layer `score` pool by
    themselves.

    Args:
        model: an AutoModelForSequenceClassification with one label.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.pools_itself = not isinstance(getattr(model, "score", None), nn.Module)
        known = inspect.signature(self.backbone.forward).parameters
        self.takes_positions = "position_ids" in known
        self.takes_cache = "use_cache" in known
        self.cuts_last_layer = cut_last_layer(self.backbone)

    @property
    def backbone(self) -> nn.Module:
        """The language model without a head."""
        return getattr(self.model, self.model.base_model_prefix)

    def forward(self, batch: Batch) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Score a batch.

        Returns:
            float32 [N], one score an answer. Where the batch has `token_pairs`, also the values
            of all tokens, float32 [B * T].

        Raises:
            InputError: values of tokens are wanted of a model that pools by itself.
        """
        if self.pools_itself:
            if batch.token_pairs is not None:
                raise InputError(
                    f"--loss token_pairwise: {type(self.model).__name__} has no value for each "
                    "token; give --loss pairwise or plackett_luce"
                )
            mask = batch.attention_mask.long()
            return self.model(batch.input_ids, attention_mask=mask).logits[:, 0].float()

        inputs: dict[str, object] = {"input_ids": batch.input_ids}
        if self.takes_positions:
            inputs["position_ids"] = batch.position_ids
        if self.takes_cache:
            inputs["use_cache"] = False

        if batch.segments is None:
            inputs["attention_mask"] = batch.attention_mask.long()
        else:
            inputs["segments"] = batch.segments

        ends_only = self.cuts_last_layer and batch.end_segments is not None
        if ends_only:
            inputs |= {"end_index": batch.end_index, "end_segments": batch.end_segments}

        hidden = self.backbone(**inputs).last_hidden_state.flatten(0, 1)
        if batch.token_pairs is not None:
            values = self._values(hidden)
            return values[batch.end_index], values

        if batch.mean_index is not None and batch.mean_answer is not None:
            values = self._values(hidden[batch.mean_index])
            means = values.new_zeros(len(batch.end_index))
            return means.scatter_reduce(0, batch.mean_answer, values, "mean", include_self=False)
        return self._values(hidden if ends_only else hidden[batch.end_index])

    def _values(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head gives for hidden states [n, width], float32 [n]."""
        return self.model.score(hidden)[:, 0].float()
