"""Against DeepSpeed-Chat's RewardModel, written out once more, slowly."""

import json
import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, set_seed

from tests.conftest import TEXTS, save_language_model
from utils.data.comparison import Comparison
from utils.data.packing import PaddedCollator
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.model import pretrained
from utils.settings import InputError

FAMILIES = {"opt": "opt_tokenizer", "gpt2": "gpt2_tokenizer", "llama": "llama_tokenizer"}


class ItsRewardModel(nn.Module):
    """What create_critic_model makes for step 3, without its weights."""

    def __init__(self, folder, tokens):
        super().__init__()
        config = AutoConfig.from_pretrained(folder)
        self.rwtransformer = AutoModel.from_config(config).eval()
        self.rwtransformer.resize_token_embeddings(8 * math.ceil(tokens / 8))
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        self.v_head = nn.Linear(width, 1, bias=False)

    @torch.no_grad()
    def forward_value(self, input_ids, attention_mask, pad_token_id, prompt_length):
        hidden = self.rwtransformer(input_ids, attention_mask=attention_mask)[0]
        scores = []
        for ids, values in zip(input_ids.tolist(), self.v_head(hidden)[:, :, 0], strict=True):
            end = prompt_length
            while end < len(ids) and ids[end] != pad_token_id:
                end += 1
            scores.append(values[end - 1])
        return torch.stack(scores)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer(request, family):
    tokenizer = request.getfixturevalue(FAMILIES[family])
    prepare_tokenizer(tokenizer, add_eot_token=False)
    return tokenizer


@pytest.fixture
def language_model(tmp_path, family, tokenizer):
    return save_language_model(tmp_path / "base", tokenizer, family)


def load(folder, **options):
    folder, tokenizer = str(folder), pretrained.load_tokenizer(str(folder))
    prepare_tokenizer(tokenizer, add_eot_token=False)
    return pretrained.load_model(folder, pretrained.load_config(folder), tokenizer, **options)[
        0
    ].eval()


def save(model, tokenizer, folder, save_format="dschat"):
    weights = model.model.state_dict()
    pretrained.save_model(model, weights, tokenizer, {}, str(folder), save_format=save_format)


def batch_of(tokenizer):
    encoder = ComparisonTokenizer(tokenizer, TextSettings(tokenizer.eos_token))
    comparisons = [
        Comparison(text, [" Yes.", " No, never, not at all.", text], [0, 1, 2], "test")
        for text in ["Is it?", *TEXTS]
    ]
    rows = encoder.rows(comparisons)
    return PaddedCollator(tokenizer.pad_token_id)(rows, [1.0] * len(rows))


@torch.no_grad()
def scores_of(model, tokenizer):
    return model(batch_of(tokenizer))


def its_scores(model, tokenizer):
    batch = batch_of(tokenizer)
    mask = batch.attention_mask.long()
    return model.forward_value(batch.input_ids, mask, tokenizer.pad_token_id, prompt_length=2)


@pytest.mark.parametrize("rows", ["too few", "as they are", "too many"])
def test_deepspeed_chat_loads_the_folder(family, language_model, tokenizer, tmp_path, rows):
    model = load(language_model, new_head=True)
    size = {"too few": len(tokenizer), "as they are": None, "too many": len(tokenizer) + 30}[rows]
    model.model.resize_token_embeddings(size, mean_resizing=False)
    save(model, tokenizer, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"pytorch_model.bin", "config.json", "tokenizer.json"} <= names
    assert not any("safetensors" in name for name in names)
    its = ItsRewardModel(tmp_path / "out", len(tokenizer))
    weights = torch.load(tmp_path / "out" / "pytorch_model.bin")  # weights_only
    its.load_state_dict(weights, strict=True)
    layers = {"opt": "decoder.layers", "gpt2": "h", "llama": "layers"}[family]
    assert any(name.startswith(f"rwtransformer.{layers}.0.") for name in weights)
    assert "v_head.weight" in weights
    expected = scores_of(model, tokenizer)
    torch.testing.assert_close(its_scores(its, tokenizer), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.01
    again = load(tmp_path / "out")
    torch.testing.assert_close(scores_of(again, tokenizer), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def genuine(language_model, tokenizer, tmp_path):
    """A folder as DeepSpeed-Chat's save_hf_format leaves it, and the model that it came from."""
    set_seed(1)
    its = ItsRewardModel(language_model, len(tokenizer))
    folder = tmp_path / "genuine"
    folder.mkdir()
    torch.save(its.state_dict(), folder / "pytorch_model.bin")
    config = json.loads((language_model / "config.json").read_text())
    config |= {"vocab_size": 8 * math.ceil(len(tokenizer) / 8)}
    config |= {"_name_or_path": str(language_model), "pad_token_id": config["eos_token_id"]}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt alone
    return folder, its


def test_a_folder_of_deepspeed_chat_is_read(genuine, tokenizer):
    folder, its = genuine
    loaded = pretrained.load_tokenizer(str(folder))
    assert loaded(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    assert loaded.eos_token == tokenizer.eos_token
    for new_head in (False, True):  # rw_eval.py, main.py
        model = load(folder, new_head=new_head)
        torch.testing.assert_close(scores_of(model, tokenizer), its_scores(its, tokenizer))


def test_buffers_of_older_transformers_are_no_weights(genuine, family, tokenizer):
    folder, its = genuine
    old = {
        "opt": {},
        "gpt2": {"rwtransformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)},
        "llama": {"rwtransformer.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }[family]
    torch.save({**its.state_dict(), **old}, folder / "pytorch_model.bin")
    torch.testing.assert_close(scores_of(load(folder), tokenizer), its_scores(its, tokenizer))


@pytest.mark.parametrize("new_head", [True, False])
@pytest.mark.parametrize("family", ["opt"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no head", "score.weight is missing"),
        ("a weight less", "1 weights are missing"),
        ("a weight more", "left over .*layers.9"),
        ("its LoRA", "left over .*lora_right_weight"),
        ("something else", "left over .*other.weight"),
        ("misshapen", "genuine.*(misshapen|mismatch)"),
        ("no tensors", "not a file of weights"),
        ("cut", "not a file of weights"),
    ],
)
def test_loading_is_strict(genuine, family, fault, message, new_head):
    folder, its = genuine
    file, weights = folder / "pytorch_model.bin", its.state_dict()
    layer = "rwtransformer.decoder.layers."
    if fault == "no head":
        del weights["v_head.weight"]
    elif fault == "a weight less":
        del weights[f"{layer}1.fc2.weight"]
    elif fault == "a weight more":
        weights[f"{layer}9.fc2.weight"] = torch.zeros(2)
    elif fault == "its LoRA":
        weights[f"{layer}1.fc2.lora_right_weight"] = torch.zeros(2)
    elif fault == "something else":
        weights["other.weight"] = torch.zeros(2)
    elif fault == "misshapen":
        weights[f"{layer}1.fc2.weight"] = torch.zeros(2, 2)
    torch.save({"v_head.weight": folder} if fault == "no tensors" else weights, file)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=message):
        load(folder, new_head=new_head)


@pytest.mark.parametrize("family", ["opt"], indirect=True)
def test_a_tokenizer_that_cannot_be_found_is_an_error(genuine, family):
    folder, _ = genuine
    config = json.loads((folder / "config.json").read_text())
    for name, message in (("nobody/nothing", "config.json says.*nobody/nothing"), (None, "copy")):
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
        with pytest.raises(InputError, match=message):
            pretrained.load_tokenizer(str(folder))


@pytest.mark.parametrize("family", ["opt"], indirect=True)
def test_a_plain_pytorch_model_is_another_kind(language_model, tokenizer, tmp_path, family):
    model = load(language_model, new_head=True)
    save(model, tokenizer, tmp_path / "out", "hf")
    (tmp_path / "out" / "model.safetensors").unlink()
    torch.save(model.model.state_dict(), tmp_path / "out" / "pytorch_model.bin")
    again = load(tmp_path / "out")
    assert torch.equal(scores_of(again, tokenizer), scores_of(model, tokenizer))
