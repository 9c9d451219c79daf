"""What the checks of a saved model find, and that they find it."""

from dataclasses import replace

import datasets
import pytest
import torch
from torch import nn

from tests.conftest import TEXTS, make_pairs, save_language_model, train_tokenizer
from utils.data.comparison import Comparison
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.model import pretrained
from utils.training.checks import CheckError, ModelChecks
from utils.training.settings import TrainingSettings

CPU = torch.device("cpu")


@pytest.fixture
def trained(opt_model, opt_tokenizer):
    prepare_tokenizer(opt_tokenizer, add_eot_token=False)
    config = pretrained.load_config(str(opt_model))
    torch.manual_seed(0)
    return pretrained.load_model(
        str(opt_model), config, opt_tokenizer, layout="packed", new_head=True
    )[0]


@pytest.fixture
def encoder(opt_tokenizer):
    return ComparisonTokenizer(opt_tokenizer, TextSettings("</s>", max_seq_len=200))


@pytest.fixture
def rows(encoder):
    comparisons = [
        Comparison(pair["prompt"], [pair["chosen"], pair["rejected"], TEXTS[i % 3]], [1, 2, 2], "s")
        for i, pair in enumerate(make_pairs(40))
    ]
    return datasets.Dataset.from_list(encoder.rows(comparisons))


@pytest.fixture
def args(tmp_path):
    out = str(tmp_path / "out")
    return TrainingSettings(model_name_or_path="m", batch_layout="packed", output_dir=out)


def check(args, rows, encoder, model, spoil=lambda weights: weights, save_format="hf"):
    """Score, save and check, as main.py does."""
    checks = ModelChecks(args, rows, encoder, CPU)
    checks.score(model)
    weights = spoil(dict(model.model.state_dict()))
    arguments = (weights, encoder.tokenizer, {}, args.output_dir)
    pretrained.save_model(model, *arguments, save_more=checks.run, save_format=save_format)
    return checks


def passed(checks):
    return {check.name: check.passed for check in checks.results}


@pytest.mark.parametrize("save_format", ["hf", "dschat"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_sound_model_passes(args, rows, encoder, opt_model, layout, save_format):
    args = replace(args, batch_layout=layout)
    config = pretrained.load_config(str(opt_model))
    options = {"layout": layout, "new_head": True}
    model, _ = pretrained.load_model(str(opt_model), config, encoder.tokenizer, **options)
    checks = check(args, rows, encoder, model, save_format=save_format)
    names = ["reload", "layout", "batch"]
    assert passed(checks) == {n: True for n in names if layout == "packed" or n != "layout"}
    assert all(str(check).endswith(": ok") for check in checks.results)
    checks.report()


def test_the_sample_is_fixed_and_small(args, rows, encoder, trained):
    checks = ModelChecks(args, rows, encoder, CPU)
    again = ModelChecks(args, rows, encoder, CPU)
    assert checks.rows == again.rows
    assert len(checks.rows) == 32
    assert len(ModelChecks(args, rows.select([3]), encoder, CPU).rows) == 1
    trained.train()
    checks.score(trained)
    again.score(trained)
    assert trained.training
    assert torch.equal(checks.trained, again.trained)  # without dropout
    assert len(checks.trained) == 3 * 32


def test_no_check_without_a_model(args, rows, encoder):
    ModelChecks(args, rows, encoder, CPU).report()


def changed_head(weights):
    return {**weights, "score.weight": 1.01 * weights["score.weight"]}


def lost_layer(weights):
    name = "model.decoder.layers.1.fc2.weight"
    return {**weights, name: torch.zeros_like(weights[name])}


def not_finite(weights):
    return {**weights, "score.weight": torch.full_like(weights["score.weight"], torch.nan)}


@pytest.mark.parametrize("spoil", [changed_head, lost_layer, not_finite])
def test_a_folder_that_is_not_the_trained_model_fails(args, rows, encoder, trained, spoil):
    checks = check(args, rows, encoder, trained, spoil)
    assert not passed(checks)["reload"]
    with pytest.raises(CheckError, match=r"do not trust it; reload: scores of saved and trained.*"):
        checks.report()
    if spoil is not not_finite:
        others = {name: good for name, good in passed(checks).items() if name != "reload"}
        assert others == {"layout": True, "batch": True}


def test_a_folder_that_does_not_load_fails(args, rows, encoder, trained):
    def misshapen(weights):
        return {**weights, "score.weight": torch.zeros(1, 3)}

    checks = check(args, rows, encoder, trained, misshapen)
    assert passed(checks) == {"reload": False}
    with pytest.raises(CheckError, match=r"reload: .*model\.partial"):
        checks.report()


class Faulty(nn.Module):
    """A model with a fault that depends on the batch."""

    def __init__(self, model, fault):
        super().__init__()
        self.inner, self.model, self.fault = model, model.model, fault

    def forward(self, batch):
        return self.inner(batch) + self.fault(batch)


def padding(batch):
    return 0.01 * (~batch.attention_mask).sum(1)[: len(batch.end_index)]


def width(batch):
    """All answers move with the longest one, in the packed row, too."""
    return 0.001 * batch.input_ids.shape[1]


def padded_layout(batch):
    return 0.01 * (batch.segments is None)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (padding, {"layout", "batch"}),
        (width, {"layout", "batch"}),
        (padded_layout, {"layout"}),
    ],
)
def test_scores_that_depend_on_the_batch_fail(
    args, rows, encoder, trained, monkeypatch, fault, failing
):
    load = pretrained.load_model
    model = Faulty(trained, fault)
    monkeypatch.setattr(
        pretrained, "load_model", lambda *a, **k: (Faulty(load(*a, **k)[0], fault), [])
    )
    checks = check(args, rows, encoder, model)
    assert {name for name, good in passed(checks).items() if not good} == failing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_rounding_alone_passes(args, tmp_path, dtype, family):
    tokenizer = train_tokenizer(["<s>", "<pad>", "</s>"], eos_token="</s>", pad_token="<pad>")
    encoder = ComparisonTokenizer(tokenizer, TextSettings("</s>"))
    folder = save_language_model(tmp_path / "model", tokenizer, family, num_hidden_layers=8)
    comparisons = [Comparison(text, [text, "No.", "Yes, so."], [0, 1, 2], "s") for text in TEXTS]
    rows = datasets.Dataset.from_list(encoder.rows(comparisons))
    options = {"dtype": dtype, "layout": "packed", "new_head": True}
    config = pretrained.load_config(str(folder))
    model, _ = pretrained.load_model(str(folder), config, tokenizer, **options)
    checks = check(args, rows, encoder, model)
    assert all(passed(checks).values())

    def grown_head(weights):
        return {**weights, "score.weight": 1.2 * weights["score.weight"]}

    assert not passed(check(args, rows, encoder, model, grown_head))["reload"]
