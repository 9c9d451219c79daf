"""Attention over packed rows, where the answers of a comparison share one copy of their prompt.

utils/data/packing.py lays the row out:

    row of tokens      [ prefix | tail 1 | tail 2 | tail 3 ][ next comparison ... ]

    a segment's queries            its keys: each query sees those up to its own place
    [ prefix | tail 1 ]            [ prefix | tail 1 ]
              [ tail 2 ]           [ prefix | tail 2 ]
              [ tail 3 ]           [ prefix | tail 3 ]

The first tail stands behind the prefix, so that both are one causal segment.
"""

import inspect
from collections.abc import Iterator

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from utils.data.batch import Segments
from utils.settings import InputError

SHARED_PREFIX = "shared_prefix"  # its name in AttentionInterface

# torch 2.11 sees by itself that heads are grouped; later ones want to be told.
TAKES_ENABLE_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters

# Families whose last layer is cut down to the scored tokens: the names of its attention and of the
# norm before it.
LAST_LAYERS = {
    "opt": ("self_attn", "self_attn_layer_norm"),
    "llama": ("self_attn", "input_layernorm"),
    "mistral": ("self_attn", "input_layernorm"),
    "qwen2": ("self_attn", "input_layernorm"),
    "qwen3": ("self_attn", "input_layernorm"),
    "gpt_neox": ("attention", "input_layernorm"),
}

# Arguments that layers pass and that packed attention may ignore. All else could change its result,
# as sinks, soft caps and biases do.
HARMLESS = {"is_causal", "position_ids", "use_cache", "end_index", "end_segments"}


class RowKeys:
    """Keys and values of all tokens of a row, for queries that are only a part of them.

    Not a list, since accelerate hands on copies of lists.
    """

    kept: tuple[torch.Tensor, torch.Tensor] | None = None


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    row_keys: RowKeys | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention with variable lengths of queries and keys, for Transformers' AttentionInterface.

    Args:
        module: the attention layer that calls.
        query: float [1, heads, Q, width].
        key: float [1, key heads, T, width]; each key head serves heads / key heads queries.
        value: as key.
        attention_mask: unused: `segments` says who attends to whom.
        scaling: of the products; None: 1 / sqrt(width).
        dropout: probability of dropping an attention weight.
        sliding_window: keys that a query sees at most, itself included; None: all.
        segments: of the batch.
        row_keys: where the queries are a part of the row, what holds the keys and values of all:
            it is filled if it is empty, and else used in the place of `key` and `value`.
        kwargs: what layers hand on beside these; it must be HARMLESS, off or None.

    Returns:
        float [1, Q, heads, width], and None for the attention weights.

    Raises:
        InputError: the model does not hand `segments` on, or asks for more than causal attention.
    """
    if reason := _what_packing_breaks(module, segments, kwargs):
        raise InputError(f"{reason}: give --batch_layout padded")

    assert segments is not None

    if row_keys is not None:
        if row_keys.kept is None:
            row_keys.kept = key, value
            return query.transpose(1, 2), None  # nobody uses it
        key, value = row_keys.kept

    if has_varlen_kernel(query, value, dropout):
        return _fused(query, key, value, segments, sliding_window, scaling), None

    options = {"scale": scaling, "dropout_p": dropout}
    return _piece_by_piece(query, key, value, segments, sliding_window, **options), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)


def cut_last_layer(model: PreTrainedModel) -> bool:
    """Let the last decoder layer run the scored tokens alone, given `end_index` as an argument.

        all tokens      o o o o o o o o o o     hidden states before the last layer
                        | | | | | | | | | |     keys and values: of all
        scored tokens         q       q   q     queries, residual stream and MLP: of these alone
                              |       |   |
                              o       o   o     what the head reads

    Args:
        model: a Transformers decoder without a head.

    Returns:
        False where the layers of the family are not known, and nothing was changed.
    """
    if model.config.model_type not in LAST_LAYERS:
        return False
    attention_name, norm_name = LAST_LAYERS[model.config.model_type]

    def run_scored_tokens(
        layer: torch.nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        if kwargs.get("end_index") is None:
            return None
        kwargs = dict(kwargs)
        index, segments = kwargs.pop("end_index"), kwargs.pop("end_segments")
        (hidden,), row_keys = args, RowKeys()
        normed = hidden
        if getattr(layer, "do_layer_norm_before", True):  # in OPT-350m the norm stands behind
            normed = getattr(layer, norm_name)(hidden)
        getattr(layer, attention_name)(hidden_states=normed, row_keys=row_keys, **kwargs)
        kwargs |= {"segments": segments, "row_keys": row_keys}
        kwargs["position_ids"] = kwargs["position_ids"][:, index]
        if rotary := kwargs.get("position_embeddings"):
            kwargs["position_embeddings"] = tuple(part[:, index] for part in rotary)
        return (hidden[:, index],), kwargs

    last_layer(model).register_forward_pre_hook(run_scored_tokens, with_kwargs=True)
    return True


def last_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The last layer of a decoder of LAST_LAYERS."""
    return getattr(model, "decoder", model).layers[-1]


def _what_packing_breaks(
    module: torch.nn.Module, segments: Segments | None, kwargs: dict[str, object]
) -> str:
    """Why the attention of a layer cannot be that of packed rows; "" if it can."""
    name = type(module).__name__
    if segments is None:
        return f"{name} does not get to know which answers share a prompt"
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        return f"{name} attends to later tokens, too"
    for what in sorted(kwargs.keys() - HARMLESS):
        if kwargs[what] is not None and kwargs[what] is not False:
            return f"{name} attends with {what}, which packed rows do not know"
    return ""


def has_varlen_kernel(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether FlashAttention, which varlen_attn runs on NVIDIA GPUs from Ampere on, takes these."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and not dropout
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _fused(
    query, key, value, segments: Segments, window: int | None, scale: float | None
) -> torch.Tensor:
    """All segments in one call of FlashAttention, [1, Q, heads, width]."""
    # [T, heads, width] is how the projections laid them out: whole tokens are copied. Not by [0],
    # whose backward writes zeros for the whole row.
    query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    options = {"enable_gqa": query.shape[1] != key.shape[1]} if TAKES_ENABLE_GQA else {}
    output = varlen_attn(
        query,
        _RepeatPrefixes.apply(key, segments),
        _RepeatPrefixes.apply(value, segments),
        segments.query_starts,
        segments.key_starts,
        segments.most_queries,
        segments.most_keys,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),  # none to the right: causal
        **options,
    )
    return output.unsqueeze(0)  # type: ignore[union-attr]  # a tuple only with return_aux


class _RepeatPrefixes(torch.autograd.Function):
    """The keys or values of all segments, [sum of all keys, heads, width], out of those of the row.

    As `part.index_select(0, key_index)`, whose own backward adds every key's gradient to zeros; but
    most keys have one use only, so that copying these and adding the others takes less time.
    """

    @staticmethod
    def forward(ctx, part: torch.Tensor, segments: Segments) -> torch.Tensor:
        ctx.segments = segments
        return part.index_select(0, segments.key_index)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        segments = ctx.segments
        total = gradient.index_select(0, segments.first_use)
        more = gradient.index_select(0, segments.reuses)
        return total.index_add_(0, segments.reused, more), None


@torch.compiler.disable  # with its lists every batch would be another program
def _piece_by_piece(
    query, key, value, segments: Segments, window: int | None, **options
) -> torch.Tensor:
    """One segment after the other, [1, Q, heads, width]."""
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    outputs = [
        _attend(*segment, window, **options).transpose(1, 2)
        for segment in _split_segments(query, key, value, segments)
    ]
    return torch.cat(outputs, dim=1)


def _split_segments(
    query, key, value, segments: Segments
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Queries, keys and values of each segment, all [1, heads, tokens, width]."""
    # Not slices: the backward of each would write zeros for the whole row.
    keys, values = (part.split(segments.own_lengths, dim=2) for part in (key, value))
    queries = query.split(segments.query_lengths, dim=2)
    for query, length, key, value in zip(
        queries, segments.prefix_lengths, keys, values, strict=True
    ):
        if not length:
            prefix_key, prefix_value = key, value
        else:
            if prefix_key.shape[2] > length:  # once: the first tail stood behind it
                prefix_key, prefix_value = prefix_key[:, :, :length], prefix_value[:, :, :length]
            key = torch.cat([prefix_key, key], dim=2)
            value = torch.cat([prefix_value, value], dim=2)
        yield query, key, value


def _attend(query, key, value, window: int | None, **options) -> torch.Tensor:
    """One segment, causal and aligned at its end, all [1, heads, tokens, width]."""
    queries, keys = query.shape[2], key.shape[2]
    window, mask = window or keys, None
    # A single query sees all keys in the window; is_causal says the plain case.
    if window < keys or 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(keys - queries).triu(keys - queries - window + 1)
    is_causal = mask is None and queries == keys
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, **options
    )
