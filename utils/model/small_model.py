"""A small model of a large one's kind: the same structure, few and narrow layers."""

import inspect

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

HEADS, HEAD_WIDTH, PAD = 4, 16, 15

# What the sizes in the configs of decoders become: the widths fit each other, and windows and
# blocks are shorter than the rows that are tried, so that tokens lie outside of them.
SMALL_SIZES = {
    HEADS * HEAD_WIDTH: """
        hidden_size d_model n_embd dim emb_dim word_embed_proj_dim intermediate_size d_ff hidden_dim
        moe_intermediate_size shared_expert_intermediate_size ffn_dim ffn_hidden_size n_inner
        d_inner vocab_size""",
    2 * HEADS * HEAD_WIDTH: """
        max_position_embeddings n_positions max_seq_len attention_hidden_size""",
    HEADS: """
        num_attention_heads n_head n_heads num_heads linear_num_value_heads index_n_heads
        num_query_groups num_experts num_local_experts n_routed_experts block_size chunk_size""",
    HEAD_WIDTH: """
        head_dim d_head kv_channels rotary_dim qk_nope_head_dim qk_rope_head_dim v_head_dim
        linear_key_head_dim linear_value_head_dim index_head_dim mamba_d_state kv_lora_rank
        q_lora_rank mamba_dt_rank mamba_headdim""",
    2 * HEAD_WIDTH: "attention_head_dim",
    8: "original_max_position_embeddings n_mamba_heads",
    6: "sliding_window window_size attention_window attention_chunk_size",
    2: """
        num_hidden_layers n_layer n_layers num_layers attn_layer_period num_experts_per_tok n_group
        moe_topk linear_num_key_heads""",
    1: "topk_group first_k_dense_replace attn_layer_offset",
}
SMALL_SIZE = {name: size for size, names in SMALL_SIZES.items() for name in names.split()}
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# What a token attends to at most: where no row is longer, it makes no difference.
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
TOKEN_IDS = ("_token_id", "_token_index", "pad_id")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")


def small_model(
    config: PreTrainedConfig, max_seq_len: int | None = None, **options: object
) -> PreTrainedModel:
    """A model with a config's structure, but few and narrow layers, in eval mode on the CPU.

    All its weights are random, also those that otherwise begin at 0 or 1, so that whatever the
    model does shows in its scores.

    Args:
        config: of the large model.
        max_seq_len: tokens of the longest row of the large model; None: any number.
        options: for AutoModelForSequenceClassification.from_config.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.default_generator.manual_seed(0)  # no GPU's
        small = shrink(config, max_seq_len)
        model = AutoModelForSequenceClassification.from_config(
            small,
            dtype=torch.float32,
            # Without --trust_remote_code there would be no such config.
            trust_remote_code=not type(config).__module__.startswith("transformers."),
            **options,
        )

        if getattr(small.get_text_config(), "pad_token_id", None) is None:
            small.get_text_config().pad_token_id = small.pad_token_id = PAD

        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def shrink(config: PreTrainedConfig, max_seq_len: int | None = None) -> PreTrainedConfig:
    """A config with the same structure and layers of each kind, for `small_model`."""
    longest = float("inf") if max_seq_len is None else max_seq_len
    return type(config).from_dict(_shrunk(config, longest) | {"num_labels": 1})


def _shrunk(config: PreTrainedConfig, longest: float) -> dict:
    """The values of the small config."""
    values = config.to_dict()
    for name in ("architectures", "dtype", "quantization_config", "id2label", "label2id"):
        values.pop(name, None)

    heads = getattr(config, "num_attention_heads", None)
    tokens = [value for name, value in values.items() if name.endswith(TOKEN_IDS) and value]
    special = [0, *{value[0] if isinstance(value, list) else value: None for value in tokens}]

    for name, value in list(values.items()):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            values[name] = _shrunk(part, longest)
        elif name in WINDOWS and isinstance(value, int) and value >= longest:
            continue
        elif name in KEY_HEADS and value:
            values[name] = HEADS if value == heads else min(value, 2)
        elif name in SMALL_SIZE and isinstance(value, int) and value:
            size = SMALL_SIZE[name]
            values[name] = size if size >= HEADS else min(value, size)
        elif name.endswith(TOKEN_IDS) and value:
            values[name] = special.index(value[0] if isinstance(value, list) else value)

    _keep_kinds_of_layers(values, config)
    _fit_positions(values, config)

    known = inspect.signature(type(config)).parameters
    made = [n for n, value in values.items() if n in SMALL_SIZE or isinstance(value, list)]
    for name in set(made) - known.keys():
        del values[name]  # the config makes it of other sizes
    return values


def _keep_kinds_of_layers(values: dict, config: PreTrainedConfig) -> None:
    """Of the lists with an item for each layer, keep the first two layers of each kind."""
    depth = getattr(config, "num_hidden_layers", None)
    lists = {n: v for n, v in values.items() if isinstance(v, list) and len(v) == depth}
    if not lists:
        return

    kinds: dict[str, list[int]] = {}
    for number, layer in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(str(layer), []).append(number)
    kept = sorted(number for numbers in kinds.values() for number in numbers[:2])

    for name, items in lists.items():
        values[name] = [items[number] for number in kept]
    for name in DEPTHS:
        if name in values:
            values[name] = len(kept)
    if "attention_types" in values:  # GPT-Neo's spelling of attention_layers
        values["attention_types"] = [[values["attention_layers"], 1]]


def _fit_positions(values: dict, config: PreTrainedConfig) -> None:
    """Make lists of factors as long as the narrow heads need them."""
    head_width = HEAD_WIDTH
    if getattr(config, "head_dim", None) == getattr(config, "qk_head_dim", -1):
        head_width += HEAD_WIDTH  # with and without positions, as in Mistral 4

    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    nested = [part for part in parameters.values() if isinstance(part, dict)]
    for rope in nested or [parameters]:
        if rope.get("rope_type", rope.get("type")) == "dynamic":
            values["max_position_embeddings"] = SMALL_SIZE["original_max_position_embeddings"]

        width = int(head_width * (rope.get("partial_rotary_factor") or 1.0)) // 2
        for name, value in rope.items():
            if name.endswith("_factor") and isinstance(value, list):
                rope[name] = (value * width)[:width]
            elif name == "mrope_section":
                rope[name] = [width - 2 * (width // 3), width // 3, width // 3]
            elif name == "original_max_position_embeddings":
                rope[name] = SMALL_SIZE[name]
