"""Rotary positions that depend on the longest row of a batch, made the same for all batches.

Two kinds of scaling do (transformers/modeling_rope_utils.py, dynamic_rope_update): LongRoPE (arXiv
2402.13753) has factors for short and for long batches, and dynamic NTK scaling lets the base grow
with the length. The choice is written into the config, so that it is saved with the model, and all
who load it get the same scores.
"""

from collections.abc import Iterator

from transformers import PreTrainedConfig

SHORT, LONG = "short_", "long_"


def fix_positions(config: PreTrainedConfig, max_seq_len: int) -> list[str]:
    """Scale positions as Transformers scales those of a row of `max_seq_len` tokens, always.

    Args:
        config: of the model; changed in place.
        max_seq_len: tokens of the longest row.

    Returns:
        Sentences that say what was chosen; none where nothing depended on the batch.
    """
    notes = []
    for part, rope in rope_parameters(config):
        kind = rope.get("rope_type") or rope.get("type")
        if kind in ("longrope", "su"):  # its first name
            note = _fix_longrope(part, rope, max_seq_len)
        elif kind == "dynamic" and not rope.get("alpha"):  # HunYuan's alpha stands for a length
            note = _fix_dynamic(part, rope, max_seq_len)
        else:
            continue
        notes += [note] if note and note not in notes else []
    return notes


def rope_parameters(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedConfig, dict]]:
    """The scaling of positions in a config: of all layers, or of each kind of layers.

    Yields:
        The config, or its part for text or images, that the parameters stand in, and these.
    """
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from rope_parameters(value)
    for name in ("rope_parameters", "rope_scaling"):  # the second in code of checkpoints
        parameters = vars(config).get(name)
        if isinstance(parameters, dict):
            parts = [part for part in parameters.values() if isinstance(part, dict)]
            yield from ((config, part) for part in parts or [parameters])


def _fix_longrope(config: PreTrainedConfig, rope: dict, max_seq_len: int) -> str:
    """Give short rows and long ones the same factors; "" if they had."""
    original = (
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )
    is_long = max_seq_len > original
    chosen, other = (LONG, SHORT) if is_long else (SHORT, LONG)
    before = dict(rope)
    for name in before:
        if name.startswith(chosen):
            rope[other + name.removeprefix(chosen)] = rope[name]
    if rope == before:
        return ""
    return (
        f"positions depended on the longest row of the batch (longrope): all rows take the "
        f"{chosen.rstrip('_')} factors, as --max_seq_len {max_seq_len} is "
        f"{'more' if is_long else 'not more'} than the {original} original positions"
    )


def _fix_dynamic(config: PreTrainedConfig, rope: dict, max_seq_len: int) -> str:
    """Put the base of rows of `max_seq_len` tokens in the place of one that grows."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(head * (rope.get("partial_rotary_factor") or 1.0))
    factor, original = rope["factor"], config.max_position_embeddings
    growth = factor * max(max_seq_len, original) / original - (factor - 1)
    rope["rope_theta"] *= growth ** (width / (width - 2))
    rope["rope_type"] = "default"
    for name in ("type", "factor"):
        rope.pop(name, None)
    return (
        f"positions depended on the longest row of the batch (dynamic): all rows take the base "
        f"{rope['rope_theta']:.6g}, that of rows of --max_seq_len {max_seq_len}"
    )
