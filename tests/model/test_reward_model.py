import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    set_seed,
)

from tests.conftest import SIZES, make_pairs, save_language_model, slow_prefix
from utils.data.batch import Batch, LossInputs
from utils.data.comparison import Comparison
from utils.data.packing import PackedCollator, PaddedCollator
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.model import pretrained
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.settings import InputError
from utils.training.loss import token_pairwise_loss

TOKENIZERS = {"opt": "opt_tokenizer", "gpt2": "gpt2_tokenizer", "llama": "llama_tokenizer"}


def tokenized(tokenizer, position="end", number=5):
    end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
    encoder = ComparisonTokenizer(tokenizer, TextSettings(end_token, score_position=position))
    pairs = [
        Comparison(row["prompt"], (row["chosen"], row["rejected"], " Yes."), (0, 1, 2), "test")
        for row in make_pairs(number)
    ]
    return encoder.rows(pairs)


@pytest.fixture(params=sorted(SIZES))
def family(request, tmp_path):
    """A tiny reward model of each family, with its tokenizer."""
    tokenizer = request.getfixturevalue(TOKENIZERS[request.param])
    prepare_tokenizer(tokenizer, add_eot_token=False)
    folder = save_language_model(tmp_path / "model", tokenizer, request.param)
    set_seed(1)
    model, _ = pretrained.load_model(
        str(folder), pretrained.load_config(str(folder)), tokenizer, new_head=True
    )
    return model.eval(), tokenizer


def transformers_scores(model, rows, pad_token_id, side):
    """Transformers' own forward on ids padded by hand."""
    sequences = [ids for row in rows for ids in row["input_ids"]]
    longest = max(map(len, sequences))
    filled, masks = [], []
    for ids in sequences:
        padding = [pad_token_id] * (longest - len(ids))
        filled.append(padding + ids if side == "left" else ids + padding)
        mask = [1] * len(ids)
        zeros = [0] * len(padding)
        masks.append(zeros + mask if side == "left" else mask + zeros)
    return model(torch.tensor(filled), attention_mask=torch.tensor(masks)).logits[:, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_transformers(family, side):
    model, tokenizer = family
    rows = tokenized(tokenizer)
    scores = model(PaddedCollator(tokenizer.pad_token_id)(rows, [1.0] * len(rows)))
    expected = transformers_scores(model.model, rows, tokenizer.pad_token_id, side)
    if side == "left" and model.model.config.model_type == "gpt2":
        # GPT-2's own forward counts positions from the padding on; ours does not.
        expected = torch.cat([transformers_scores(model.model, [r], 0, side) for r in split(rows)])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def split(rows):
    """One row for each answer."""
    for row in rows:
        for ids in row["input_ids"]:
            yield {**row, "input_ids": [ids]}


@pytest.mark.parametrize("position", ["end", "first_pad", "mean"])
def test_batch_and_padding_change_neither_scores_nor_gradients(family, position):
    model, tokenizer = family
    rows = tokenized(tokenizer, position)
    collate = PaddedCollator(tokenizer.pad_token_id, position == "mean")
    together = model(collate(rows, [1.0] * len(rows)))
    gradient = torch.autograd.grad(together.square().sum(), model.parameters())
    alone = torch.cat([model(collate([row], [1.0])) for row in rows])
    gradient_alone = torch.autograd.grad(alone.square().sum(), model.parameters())
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, gradient_alone, atol=1e-4, rtol=1e-4)


def test_left_padded_batch_gives_the_same_scores(family):
    model, tokenizer = family
    rows = tokenized(tokenizer)
    right = PaddedCollator(tokenizer.pad_token_id)(rows, [1.0] * len(rows))
    lengths = right.attention_mask.sum(dim=1)
    width = right.input_ids.shape[1]
    shift = (torch.arange(width) - (width - lengths)[:, None]) % width
    left = Batch(
        **{
            **vars(right),
            "input_ids": right.input_ids.gather(1, shift),
            "attention_mask": right.attention_mask.gather(1, shift),
            "position_ids": right.position_ids.gather(1, shift),
            "end_index": (torch.arange(len(lengths)) + 1) * width - 1,
        }
    )
    torch.testing.assert_close(model(left), model(right), atol=1e-5, rtol=0)


def test_mean_is_the_mean_of_the_values_over_the_answer(family):
    model, tokenizer = family
    rows = tokenized(tokenizer, "mean", number=3)
    scores = model(PaddedCollator(tokenizer.pad_token_id, mean_score=True)(rows, [1.0] * 3))
    expected = []
    for row in rows:
        for ids, start in zip(row["input_ids"], row["answer_starts"], strict=True):
            hidden = model.backbone(torch.tensor([ids])).last_hidden_state[0]
            values = [model.model.score(h).item() for h in hidden[start:]]
            expected.append(sum(values) / len(values))
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


def test_first_pad_reads_one_token_after_the_end(family):
    model, tokenizer = family
    rows = tokenized(tokenizer, "first_pad", number=2)
    ends = tokenized(tokenizer, "end", number=2)
    scores = model(PaddedCollator(tokenizer.pad_token_id)(rows, [1.0] * 2))
    expected = []
    for row in ends:
        for ids in row["input_ids"]:
            longer = torch.tensor([[*ids, tokenizer.pad_token_id]])
            ones = torch.ones_like(longer)
            hidden = model.backbone(longer, attention_mask=ones).last_hidden_state
            expected.append(model.model.score(hidden[0, -1]).item())
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


def test_an_encoder_with_its_own_head_scores_as_it_does_alone(gpt2_tokenizer, tmp_path):
    prepare_tokenizer(gpt2_tokenizer, add_eot_token=False)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(gpt2_tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model, _ = pretrained.load_model(
        str(tmp_path), pretrained.load_config(str(tmp_path)), gpt2_tokenizer
    )
    model.eval()
    rows = tokenized(gpt2_tokenizer)
    scores = model(PaddedCollator(gpt2_tokenizer.pad_token_id)(rows, [1.0] * len(rows)))
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = transformers_scores(alone, rows, gpt2_tokenizer.pad_token_id, "right")
    assert isinstance(model, RewardModel)
    tokens = PaddedCollator(gpt2_tokenizer.pad_token_id, inputs=LossInputs(tokens=True))
    with pytest.raises(InputError, match="--loss token_pairwise: BertForSequenceClassification"):
        model(tokens(rows, [1.0] * len(rows)))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", ["end", "first_pad"])
def test_all_tokens_have_the_values_that_each_answer_has_alone(family, position):
    """In both layouts; scores are then the values at the ends, gradients those of the loss."""
    model, tokenizer = family
    rows = tokenized(tokenizer, position)
    inputs, found = LossInputs(tokens=True), []
    packed = copy.deepcopy(model)
    packed.model.set_attn_implementation(SHARED_PREFIX)
    for layout, collator in ((model, PaddedCollator), (packed, PackedCollator)):
        batch = collator(tokenizer.pad_token_id, inputs=inputs)(rows, [1.0] * len(rows))
        scores, values = layout(batch)
        assert values.shape == (batch.input_ids.numel(),) and torch.equal(
            scores, values[batch.end_index]
        )
        loss = token_pairwise_loss(values, batch.token_pairs, batch.token_owner, batch.weight)
        found.append((scores, loss, torch.autograd.grad(loss, layout.parameters())))
        plain = collator(tokenizer.pad_token_id)(rows, [1.0] * len(rows))
        torch.testing.assert_close(layout(plain), scores, atol=1e-5, rtol=0)
    losses = []
    for row in rows:
        values = [
            model.model.score(model.backbone(torch.tensor([ids])).last_hidden_state)[0, :, 0]
            for ids in row["input_ids"]
        ]
        for i, j in ((0, 1), (0, 2), (1, 2)):  # their ranks
            both = [row["input_ids"][i], row["input_ids"][j]]
            places = range(slow_prefix(both), max(map(len, both)))
            last = [len(ids) - 1 for ids in both]
            gaps = [values[i][min(t, last[0])] - values[j][min(t, last[1])] for t in places]
            losses.append(torch.log1p(torch.exp(-torch.stack(gaps))).mean() / 3)
    slow = sum(losses)
    gradient = torch.autograd.grad(slow, model.parameters())
    for _, loss, ours in found:
        torch.testing.assert_close(loss, slow, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours, gradient, atol=1e-4, rtol=1e-4)
