"""OPT-350m's projections, multiplied out."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.conftest import save_language_model
from utils.model import pretrained
from utils.model.folding import can_fold
from utils.settings import InputError
from utils.training.model import check_model
from utils.training.settings import parse_training_arguments


@pytest.mark.parametrize(
    ("dtype", "difference"), [(torch.float32, 1e-6), (torch.bfloat16, 0.05)], ids=str
)
def test_a_folded_model_scores_alike(tmp_path, opt_tokenizer, dtype, difference):
    folder = str(save_language_model(tmp_path / "model", opt_tokenizer))
    config = pretrained.load_config(folder)
    model, _ = pretrained.load_model(folder, config, opt_tokenizer, dtype=dtype, new_head=True)
    with torch.no_grad():
        model.model.score.weight.mul_(20)
    weights = model.model.state_dict()
    for name in ("hf", "folded"):
        words = (weights, opt_tokenizer, {}, str(tmp_path / name))
        pretrained.save_model(model, *words, save_format=name)

    ids = torch.randint(4, 300, (8, 30), generator=torch.Generator().manual_seed(0))
    scores = {}
    for name in ("hf", "folded"):
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        assert saved.dtype == dtype
        with torch.no_grad():
            scores[name] = saved(ids).logits[:, 0].float()
    assert scores["hf"].std() > 0.1
    assert torch.allclose(scores["hf"], scores["folded"], rtol=0, atol=difference)

    assert not can_fold(AutoConfig.from_pretrained(tmp_path / "folded"))
    assert not any("project" in name for name in saved.state_dict())


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_what_has_no_projections_is_not_folded(tmp_path, opt_tokenizer, family):
    wide = {"word_embed_proj_dim": 32} if family == "opt" else {}
    folder = str(save_language_model(tmp_path, opt_tokenizer, family, **wide))
    args = parse_training_arguments(["--model_name_or_path", folder, "--save_format", "folded"])
    with pytest.raises(InputError, match="has no projections.*give --save_format hf"):
        check_model(args, pretrained.load_config(folder))
