import pytest
import torch

from tests.conftest import save_language_model
from utils.arguments import InputError
from utils.model import hub
from utils.model.adapters import add_lora, merge_lora


@pytest.fixture
def model(tmp_path, opt_tokenizer):
    folder = save_language_model(tmp_path / "opt", opt_tokenizer, dropout=0.0)
    return hub.load_model(str(folder), hub.load_config(str(folder)), opt_tokenizer, new_head=True)[
        0
    ]


def scores(model):
    ids = torch.arange(20, 60).view(2, 20)
    return model(ids).logits


def test_merged_weights_give_the_scores_of_the_adapted_model(model):
    names = set(model.model.state_dict())
    before = scores(model.model.eval())
    assert (
        add_lora(model, rank=4, alpha=8, module_name="layers.", only_lora=True) == 12
    )  # 6 in 2 layers
    torch.testing.assert_close(scores(model.model), before)  # B starts at 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = scores(model.model)
    assert (adapted - before).abs().max() > 1e-3
    merged = merge_lora(model.model.state_dict(), scale=2)
    assert set(merged) == names
    plain = type(model.model)(model.model.config).eval()
    plain.load_state_dict(merged)
    torch.testing.assert_close(scores(plain), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("only_lora", [True, False])
def test_the_head_always_trains(model, only_lora):
    add_lora(model, 4, 8, "layers.", only_lora)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "model.score.weight" in training
    assert any("lora_" in name for name in training)
    assert ("model.model.decoder.embed_tokens.weight" in training) is not only_lora


def test_a_name_that_fits_no_layer_is_an_error(model):
    with pytest.raises(InputError, match="--lora_module_name is 'attention.'.*decoder.layers.1"):
        add_lora(model, 4, 8, "attention.", True)
