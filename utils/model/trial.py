"""Small models of a large one's kind, tried before it loads: is a score always the same?"""

import inspect
import random
from collections.abc import Iterator

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from utils.data.batching import Batch, PackedCollator, PaddedCollator
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import NAME as SHARED_PREFIX
from utils.settings import InputError

HEADS, HEAD_WIDTH, WINDOW, PAD = 4, 16, 6, 15
TOLERANCE = 1e-3  # rounding makes 1e-6, and whatever sees neighbours more than 1e-2

# What the sizes in the configs of all families become: the widths fit each other, and windows and
# blocks are shorter than the rows that are tried, so that tokens lie outside of them.
SIZES = {
    HEADS * HEAD_WIDTH: (
        *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim"),
        *("embedding_size", "input_embedding_size", "output_embedding_size", "pooler_hidden_size"),
        *("true_hidden_size", "intra_bottleneck_size", "prediction_head_size", "entity_emb_size"),
        *("d_latents", "intermediate_size", "moe_intermediate_size"),
        *("shared_expert_intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
        *("ffn_hidden_size", "d_ff", "dff", "d_inner", "n_inner", "hidden_dim"),
        *("feed_forward_size", "vocab_size", "entity_vocab_size", "shape_vocab_size"),
        "pronunciation_vocab_size",
    ),
    2 * HEADS * HEAD_WIDTH: (
        *("max_position_embeddings", "n_positions", "max_seq_len", "attention_hidden_size"),
        "max_2d_position_embeddings",
    ),
    HEADS: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "linear_num_value_heads"),
        *("encoder_attention_heads", "decoder_attention_heads", "num_self_attention_heads"),
        *("num_cross_attention_heads", "index_n_heads", "num_query_groups"),
        *("num_experts", "num_local_experts", "n_routed_experts", "block_size", "chunk_size"),
        *("local_attn_chunk_length", "lsh_attn_chunk_length"),
    ),
    HEAD_WIDTH: (
        *("head_dim", "d_kv", "d_head", "kv_channels", "attention_head_size", "rotary_dim"),
        *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "mamba_d_state"),
        *("kv_lora_rank", "q_lora_rank", "mamba_dt_rank", "mamba_headdim"),
    ),
    2 * HEAD_WIDTH: ("attention_head_dim",),
    WINDOW: (
        *("sliding_window", "window_size", "attention_window", "local_attention"),
        "attention_chunk_size",
    ),
    12: ("coordinate_size",),
    8: ("original_max_position_embeddings", "n_mamba_heads", "shape_size"),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
        *("encoder_layers", "decoder_layers", "num_self_attends_per_block", "attn_layer_period"),
        *("num_experts_per_tok", "n_group", "moe_topk", "linear_num_key_heads"),
    ),
    1: ("topk_group", "first_k_dense_replace", "attn_layer_offset", "num_random_blocks"),
}
SMALL = {name: value for value, names in SIZES.items() for name in names}
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# What a token attends to at most: where no row is longer, it makes no difference.
WINDOWS = ("sliding_window", "window_size", "local_attention", "attention_chunk_size")
TOKENS = ("_token_id", "_token_index", "pad_id")
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
    tokens = [value for name, value in values.items() if name.endswith(TOKENS) and value]
    special = [0, *{value[0] if isinstance(value, list) else value: None for value in tokens}]

    for name, value in list(values.items()):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            values[name] = _shrunk(part, longest)
        elif name in WINDOWS and isinstance(value, int) and value >= longest:
            continue
        elif name in KEY_HEADS and value:
            values[name] = HEADS if value == heads else min(value, 2)
        elif name in SMALL and isinstance(value, int) and value:
            values[name] = SMALL[name] if SMALL[name] >= HEADS else min(value, SMALL[name])
        elif name.endswith(TOKENS) and value:
            values[name] = special.index(value[0] if isinstance(value, list) else value)

    _keep_kinds_of_layers(values, config)
    _fit_positions(values, config)

    known = inspect.signature(type(config)).parameters
    made = [n for n, value in values.items() if n in SMALL or isinstance(value, list)]
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
    if "axial_pos_embds_dim" in values:  # Reformer's
        values |= {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 16]}
    head_width = HEAD_WIDTH
    if getattr(config, "head_dim", None) == getattr(config, "qk_head_dim", -1):
        head_width += HEAD_WIDTH  # with and without positions, as in Mistral 4
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    nested = [part for part in parameters.values() if isinstance(part, dict)]
    for rope in nested or [parameters]:
        if rope.get("rope_type", rope.get("type")) == "dynamic":
            values["max_position_embeddings"] = SMALL["original_max_position_embeddings"]
        width = int(head_width * (rope.get("partial_rotary_factor") or 1.0)) // 2
        for name, value in rope.items():
            if name.endswith("_factor") and isinstance(value, list):
                rope[name] = (value * width)[:width]
            elif name == "mrope_section":
                rope[name] = [width - 2 * (width // 3), width // 3, width // 3]
            elif name == "original_max_position_embeddings":
                rope[name] = SMALL[name]


class Trial:
    """What is found of the scores of a small model, for each answer alone and for batches of them.

    Args:
        config: of the large model.
        max_seq_len: tokens of its longest row; None: any number.
        packed: whether packed batches are tried, too.

    Attributes:
        faults: of each layout that was tried what is wrong with its scores; "" if they are those
            that the answers have alone.
    """

    def __init__(self, config: PreTrainedConfig, max_seq_len: int | None, packed: bool):
        model = RewardModel(small_model(config, max_seq_len))
        text_config = model.model.config.get_text_config()
        rows, padded = (
            _rows(getattr(text_config, "eos_token_id", None)),
            PaddedCollator(text_config.pad_token_id),
        )

        # First together, since some models never leave a mode that a short batch brings about.
        together = _scores(model, [padded(rows, [1.0] * len(rows))])
        alone = _scores(model, [padded([row], [1.0]) for row in _each_answer(rows)])

        if not alone.isfinite().all():
            raise FloatingPointError("its scores are not finite")
        self.faults = {"padded": _fault(together, alone)}

        if packed and model.pools_itself:
            self.faults["packed"] = f"{config.model_type} is not a decoder"
        elif packed:
            small = small_model(config, max_seq_len, attn_implementation=SHARED_PREFIX)
            model = RewardModel(small)
            try:
                together = _scores(model, [PackedCollator(0)(rows, [1.0] * len(rows))])
                if fault := _fault(together, alone):
                    fault = f"in packed rows {config.model_type} would give other scores ({fault})"
                self.faults["packed"] = fault
            except InputError as error:
                self.faults["packed"] = str(error).partition(":")[0]


def _rows(end: int | None) -> list[dict]:
    """Comparisons as ComparisonTokenizer.rows makes them, of lengths around the small sizes."""
    draw, rows = random.Random(0), []
    for prompt, *lengths in ((2, 1, 2), (5, 3, 14, 1), (18, 2, 9)):
        ids = [[draw.randrange(20, 60) for _ in range(length)] for length in (prompt, *lengths)]
        sequences = [ids[0] + [16 + i, *answer, end or 0] for i, answer in enumerate(ids[1:])]
        numbers = range(len(sequences))
        rows.append(
            {"input_ids": sequences, "shared": prompt, "answers": numbers, "ranks": numbers}
        )
    return rows


def _each_answer(rows: list[dict]) -> Iterator[dict]:
    """Rows with one answer each."""
    for row in rows:
        for ids in row["input_ids"]:
            yield {"input_ids": [ids], "shared": 0, "answers": range(1), "ranks": range(1)}


@torch.no_grad()
def _scores(model: RewardModel, batches: list[Batch]) -> torch.Tensor:
    """The scores of all answers of some batches."""
    return torch.cat([model(batch) for batch in batches])


def _fault(scores: torch.Tensor, alone: torch.Tensor) -> str:
    """How scores differ from those of the answers alone; "" if they agree up to rounding."""
    difference = float((scores - alone).abs().max() / alone.std())
    if difference <= TOLERANCE:
        return ""
    return f"those of a small model of its kind moved by {difference:.2g} standard deviations"
