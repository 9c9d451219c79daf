import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.conftest import save_language_model
from utils.model import pretrained
from utils.model.lora import add_lora, merge_lora, save_adapter
from utils.settings import InputError


@pytest.fixture
def folder(tmp_path, opt_tokenizer):
    sizes = {"dropout": 0.0, "num_hidden_layers": 4}  # peft shortens lists of 20 layers and more
    return save_language_model(tmp_path / "opt", opt_tokenizer, **sizes)


@pytest.fixture
def model(folder, opt_tokenizer):
    config = pretrained.load_config(str(folder))
    return pretrained.load_model(str(folder), config, opt_tokenizer, new_head=True)[0]


def scores(model):
    ids = torch.arange(20, 60).view(2, 20)
    return model(ids).logits


def train_randomly(model):
    """Change everything that trains."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("alpha", [8, 3, 0.5])
@pytest.mark.parametrize("only_lora", [True, False])
def test_merged_weights_give_the_scores_of_the_adapted_model(model, alpha, only_lora):
    names = set(model.model.state_dict())
    before = scores(model.model.eval())
    adapted_layers = add_lora(model, 4, alpha, "layers.", only_lora)
    assert adapted_layers == 6 * 4
    torch.testing.assert_close(scores(model.model), before)  # B starts at 0
    train_randomly(model)
    adapted = scores(model.model)
    assert (adapted - before).abs().max() > 1e-3
    merged = merge_lora(model.model.state_dict(), scale=alpha / 4)
    assert set(merged) == names
    plain = type(model.model)(model.model.config).eval()
    plain.load_state_dict(merged)
    torch.testing.assert_close(scores(plain), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "module_name", "layers"),
    [
        (8, "layers.", 24),
        (3, "layers.", 24),
        (8, "layers.1.", 6),
        (8, "decoder", 26),  # also the projections of OPT's narrow embeddings
    ],
)
def test_peft_loads_the_saved_adapter(model, folder, tmp_path, alpha, module_name, layers):
    assert add_lora(model, 4, alpha, module_name, only_lora=True) == layers
    train_randomly(model)
    save_adapter(model.model.state_dict(), 4, alpha, str(folder), tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    before = scores(base.eval())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = scores(model.model.eval())
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(scores(loaded), expected, atol=1e-5, rtol=1e-5)
    assert loaded.peft_config["default"].base_model_name_or_path == str(folder)


@pytest.mark.parametrize("only_lora", [True, False])
def test_the_head_always_trains(model, only_lora):
    add_lora(model, 4, 8, "layers.", only_lora)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "model.score.weight" in training
    assert any("lora_" in name for name in training)
    assert not any(name.endswith(".base_layer.weight") for name in training)
    for name in ("embed_tokens.weight", "layers.0.fc1.base_layer.bias", "project_in.weight"):
        assert (f"model.model.decoder.{name}" in training) is not only_lora


def test_a_name_that_fits_no_layer_is_an_error(model):
    with pytest.raises(InputError, match="--lora_module_name is 'attention.'.*decoder.layers.3"):
        add_lora(model, 4, 8, "attention.", True)
