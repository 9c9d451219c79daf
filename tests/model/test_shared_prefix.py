"""Packed = padded = one answer at a time, for scores and for every gradient."""

import copy
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GptOssConfig,
    MiniMaxConfig,
    Qwen3NextConfig,
    set_seed,
)

from utils.data.batch import Segments
from utils.data.packing import PackedCollator, PaddedCollator
from utils.data.token_rows import empty_row
from utils.data.tokenization import common_prefix_length
from utils.model.layout_trial import choose_layout
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX, RowKeys, shared_prefix_attention
from utils.settings import InputError

PAD, VOCABULARY = 1, 12
OPT = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.3,
}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
NEOX = {name: LLAMA[name] for name in LLAMA if name not in ("num_key_value_heads", "head_dim")}
FAMILIES = {
    "opt": ("opt", OPT),
    "opt-350m": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "llama": ("llama", LLAMA),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 5}),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", LLAMA),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox-sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    # The layers of these are not among those that run the scored tokens alone at the end.
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "gemma": ("gemma", LLAMA),
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def tiny_config(family):
    kind, sizes = FAMILIES[family]
    dropout = NO_DROPOUT if kind == "gpt2" else {}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 2}
    return AutoConfig.for_model(kind, num_labels=1, **ids, **sizes, **dropout)


@pytest.fixture(scope="module")
def models():
    """Of each family one plain model and one with the same weights for packed rows."""
    made = {}
    for family in FAMILIES:
        config = tiny_config(family)
        set_seed(0)
        plain = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
        packed = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=SHARED_PREFIX
        )
        packed.load_state_dict(plain.state_dict())
        made[family] = RewardModel(plain), RewardModel(packed)
    return made


TOKENS = st.integers(4, 6)  # few, so that answers begin alike, or with all of another
BATCHES = st.sampled_from([2, 5, 11]).flatmap(
    lambda answers: st.lists(
        st.tuples(
            st.lists(TOKENS, min_size=1, max_size=9),
            st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=answers, max_size=answers),
        ),
        min_size=1,
        max_size=3,
    )
)


def make_rows(batch, position):
    """Tokenised comparisons, as ComparisonTokenizer.rows makes them."""
    rows = []
    for prompt, answers in batch:
        end = [2, PAD] if position == "first_pad" else [2]
        sequences = [prompt + answer + end for answer in answers]
        rows.append(
            {
                **empty_row(""),
                "input_ids": sequences,
                "shared": common_prefix_length(sequences),
                "answer_starts": [len(prompt)] * len(answers),
                "answers": range(len(answers)),
                "ranks": range(len(answers)),
            }
        )
    return rows


def one_at_a_time(model, rows, position):
    """Scores from Transformers' forward on each answer alone, without any mask."""
    scores = []
    for row in rows:
        for ids, start in zip(row["input_ids"], row["answer_starts"], strict=True):
            hidden = model.backbone(torch.tensor([ids])).last_hidden_state[0]
            values = model.model.score(hidden)[:, 0]
            scores.append(values[start:].mean() if position == "mean" else values[-1])
    return torch.stack(scores)


def gradients(model, scores):
    weights = torch.linspace(-1, 1.5, len(scores))
    return torch.autograd.grad((scores * weights).sum(), list(model.parameters()))


def norm(tensor):
    return float(tensor.detach().norm())


def difference(ours, theirs):
    return norm(ours - theirs)


def compare(plain, packed, batch, position, checkpointing, floor):
    """Check both layouts against one answer at a time, to a relative difference of 1e-5.

    With `floor`, what is smaller than this share of the largest gradient (of scores: than it) is
    compared with that: it may be what is left of numbers that cancelled out.
    """
    mean = position == "mean"
    for model in (plain, packed):
        model.train()
        model.model.activation_checkpointing_disable()
    rows, weights = make_rows(batch, position), [1.0] * len(batch)
    expected = one_at_a_time(plain, rows, position)
    expected_gradients = gradients(plain, expected)
    largest = max(map(norm, expected_gradients))
    if checkpointing:
        for model in (plain, packed):
            model.model.activation_checkpointing_enable()
    for model, collate in (
        (plain, PaddedCollator(PAD, mean)),
        (packed, PackedCollator(PAD, mean)),
    ):
        scores = model(collate(rows, weights))
        assert difference(scores, expected) <= 1e-5 * max(norm(expected), floor)
        found = gradients(model, scores)
        for (name, _), ours, theirs in zip(
            model.named_parameters(), found, expected_gradients, strict=True
        ):
            if norm(theirs) < 1e-6 * largest:  # 0 in exact arithmetic, as for the keys' biases
                assert norm(ours) < 1e-5 * largest, name
            else:
                assert difference(ours, theirs) <= 1e-5 * max(norm(theirs), floor * largest), name


@pytest.mark.parametrize("position", ["end", "first_pad", "mean"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(batch=BATCHES)
@example(batch=[([4], [[4], [5]])])
@example(batch=[([4, 5], [[4 + i % 3] for i in range(10)] + [[5, 4]]), ([5], [[4], [4]])])
@example(batch=[([4, 5, 6], [[4, 2, 4], [4], [4, 2, 5], [4, 2], [5]])])  # [4] and its end token
def test_layouts_agree_on_any_tokens(models, family, checkpointing, position, batch):
    compare(*models[family], batch, position, checkpointing, floor=0.1)


@pytest.mark.parametrize("answers", [2, 5, 11])
@pytest.mark.parametrize("position", ["end", "first_pad", "mean"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_agree_number_by_number(models, family, checkpointing, position, answers):
    draw = random.Random(answers)

    def text(length):
        return [draw.randrange(4, VOCABULARY) for _ in range(length)]

    batch = [
        (text(prompt), [text(draw.randrange(1, 9)) for _ in range(answers)])
        for prompt in (1, 5, 12)
    ]
    batch.append((text(7), [[4 + i % 2] for i in range(answers)]))  # answers of one token
    compare(*models[family], batch, position, checkpointing, floor=0)


def slow_attention(query, key, value, visible, groups):
    """Softmax over the visible keys, one head and one query at a time."""
    output = torch.zeros(query.shape[0], query.shape[1], value.shape[2])
    for i in range(query.shape[0]):
        for head in range(query.shape[1]):
            seen = visible[i]
            products = key[seen, head // groups] @ query[i, head] / query.shape[2] ** 0.5
            output[i, head] = products.softmax(0) @ value[seen, head // groups]
    return output


# A prefix of 3, its first tail of 2, a second of 3 and a third of 1; then a comparison of its own.
PIECES = [
    (5, range(3), range(3, 5)),
    (3, range(3), range(5, 8)),
    (1, range(3), range(8, 9)),
    (4, range(9, 13), range(0)),
]
VISIBLE = [
    *([0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]),
    *([0, 1, 2, 5], [0, 1, 2, 5, 6], [0, 1, 2, 5, 6, 7]),
    [0, 1, 2, 8],
    *([9], [9, 10], [9, 10, 11], [9, 10, 11, 12]),
]


def call(query, key, value, segments, **kwargs):
    heads_first = [part.transpose(0, 1)[None] for part in (query, key, value)]
    output, weights = shared_prefix_attention(None, *heads_first, None, segments=segments, **kwargs)
    assert weights is None
    return output[0]


def random_heads(device="cpu", dtype=torch.float32, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = ((13, 4, width), (13, 2, width), (13, 2, width))
    parts = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("window", [None, 3, 100])
def test_attention_sees_prefix_and_tail_within_the_window(window):
    query, key, value = random_heads()
    visible = [keys[-window:] if window else keys for keys in VISIBLE]
    output = call(query, key, value, Segments.of(PIECES), sliding_window=window)
    torch.testing.assert_close(output, slow_attention(query, key, value, visible, 2))


def test_attention_of_the_ends_alone():
    query, key, value = random_heads()
    ends = [4, 7, 8, 12]
    segments = Segments.of([(1, prefix, tail) for _, prefix, tail in PIECES])
    row_keys = RowKeys()
    call(query, key, value, segments, row_keys=row_keys)
    output = call(query[ends], key[ends], value[ends], segments, row_keys=row_keys)
    expected = slow_attention(query, key, value, VISIBLE, 2)[ends]
    torch.testing.assert_close(output, expected)


def test_dropped_attention_weights_keep_their_mean():
    query, key, value = (part.detach() for part in random_heads())
    segments = Segments.of(PIECES)
    torch.manual_seed(0)
    outputs = [call(query, key, value, segments, dropout=0.5) for _ in range(4000)]
    assert not torch.equal(outputs[0], outputs[1])
    mean = torch.stack(outputs).mean(dim=0)
    torch.testing.assert_close(mean, call(query, key, value, segments), atol=0.15, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen_attn runs on a GPU alone")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 3])
def test_the_fused_kernel_agrees_with_fp32(dtype, window):
    parts = random_heads("cuda", dtype)
    segments = Segments.of(PIECES)
    expected = call(*(p.float().cpu() for p in parts), segments, sliding_window=window)
    output = call(*parts, segments.to("cuda"), sliding_window=window)
    torch.testing.assert_close(output.float().cpu(), expected, atol=2e-2, rtol=2e-2)
    ours = torch.autograd.grad(output.float().square().sum(), parts)
    theirs = torch.autograd.grad(expected.square().sum(), parts)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_forward_and_backward(models, dtype):
    _, packed = models["llama"]
    rows = make_rows([([4, 5, 6], [[4], [5, 6], [7, 8, 9]])], "end")
    batch = PackedCollator(PAD)(rows, [1.0])
    half = copy.deepcopy(packed).to(dtype)
    torch.testing.assert_close(half(batch), packed(batch), atol=0.2, rtol=0.05)
    half(batch).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_with_exchangeable_attention_are_packed(family):
    config = tiny_config(family)
    assert choose_layout(config, None) == choose_layout(config, "packed") == ("packed", [])
    assert choose_layout(config, "padded") == ("padded", [])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=9), "bloom does not let"),
        (BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), "bert is not a"),
        (Gemma2Config(num_hidden_layers=1), "gemma2"),  # caps its attention logits
        (GptOssConfig(num_hidden_layers=1), "gpt_oss"),  # adds a sink to them
        (Qwen3NextConfig(), "qwen3_next"),
        (MiniMaxConfig(), "not all layers of minimax are attention"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_families_are_padded_and_told_so(config, reason):
    layout, (note,) = choose_layout(config, None)
    assert layout == "padded"
    assert reason in note
    with pytest.raises(InputError, match="--batch_layout padded"):
        choose_layout(config, "packed")


def test_a_model_that_hands_no_segments_on_is_refused():
    query, key, value = random_heads()
    with pytest.raises(InputError, match="Linear does not.*give --batch_layout padded"):
        shared_prefix_attention(torch.nn.Linear(1, 1), query, key, value, None)


def test_the_layout_leaves_no_trace_in_the_saved_config(models, tmp_path):
    models["opt"][1].model.save_pretrained(tmp_path)
    assert SHARED_PREFIX not in (tmp_path / "config.json").read_text()
