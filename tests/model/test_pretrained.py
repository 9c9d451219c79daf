import itertools
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, OPTForSequenceClassification, set_seed

from tests.conftest import save_language_model
from tests.killing import is_killed
from utils.data.tokenization import prepare_tokenizer
from utils.model import pretrained
from utils.settings import InputError


def load(folder, tokenizer, **options):
    return pretrained.load_model(
        str(folder), pretrained.load_config(str(folder)), tokenizer, **options
    )


def test_saved_model_is_the_model(opt_model, opt_tokenizer, tmp_path):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    settings = {"end_token": "</s>", "max_seq_len": 64}
    weights = model.model.state_dict()
    statistics = {"mean": -0.5, "std": 2.0}
    pretrained.save_model(
        *(model, weights, opt_tokenizer, settings, str(tmp_path / "out")),
        save_more=lambda folder: (folder / "README.md").write_text("a card"),
        score_statistics=statistics,
    )
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert isinstance(again, OPTForSequenceClassification)
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(again.state_dict()[name], weights[name]) for name in weights)
    assert again.config.reward_settings == settings
    assert again.config.score_statistics == statistics
    assert again.config.id2label == {0: "reward"}
    assert again.config.pad_token_id == opt_tokenizer.pad_token_id
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    assert not list((tmp_path / "out").glob("*partial*"))
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # who may read the config may read the weights
    reloaded, notes = load(tmp_path / "out", pretrained.load_tokenizer(str(tmp_path / "out")))
    assert notes == []
    assert all(torch.equal(reloaded.model.state_dict()[name], weights[name]) for name in weights)


def test_no_shard_of_an_earlier_model_stays(opt_model, opt_tokenizer, tmp_path):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    weights = model.model.state_dict()
    model.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    doubled = {name: 2 * weight for name, weight in weights.items()}
    pretrained.save_model(model, doubled, opt_tokenizer, {}, str(tmp_path))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], doubled[name]) for name in doubled)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_a_failed_save_leaves_the_previous_model_whole(opt_model, opt_tokenizer, tmp_path):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    weights = model.model.state_dict()
    pretrained.save_model(model, weights, opt_tokenizer, {}, str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def fail(folder):
        raise OSError("disk full")

    opt_tokenizer.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        pretrained.save_model(model, weights, opt_tokenizer, {}, str(tmp_path))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_no_chat_template_of_an_earlier_model_stays(opt_model, opt_tokenizer, tmp_path):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    for template in ("{{ messages }}", None):
        opt_tokenizer.chat_template = template
        pretrained.save_model(model, model.model.state_dict(), opt_tokenizer, {}, str(tmp_path))
        assert pretrained.load_tokenizer(str(tmp_path)).chat_template == template


def contents(folder):
    """All files of a model, without its card; None where nothing would load."""
    if not (folder / "config.json").exists():
        return None
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if name != "README.md" and not name.startswith("model.partial/")
    }


@pytest.mark.parametrize(
    ("old", "new", "never_none"),
    [
        ({}, {}, True),  # other weights and another card alone
        (None, {}, False),
        ({}, {"settings": {"max_seq_len": 32}}, False),
        ({"shards": "50KB"}, {}, False),
        ({}, {"shards": "50KB"}, False),
        ({"shards": "50KB"}, {"shards": "50KB"}, False),
        ({"shards": "50KB"}, {"shards": "80KB"}, False),
        ({"adapter": "1"}, {"adapter": "2"}, False),
        ({"save_format": "dschat"}, {"save_format": "dschat"}, True),
        ({}, {"save_format": "dschat"}, False),
        ({"shards": "50KB"}, {"save_format": "dschat"}, False),
        ({"save_format": "dschat"}, {}, False),
    ],
)
def test_a_kill_leaves_the_old_model_the_new_one_or_none(
    opt_model, opt_tokenizer, tmp_path, monkeypatch, old, new, never_none
):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    out = tmp_path / "out"

    def save(scale, shards="1GB", settings=None, adapter=None, save_format="hf"):
        def more(folder):
            (folder / "README.md").write_text(f"card {scale}")
            if adapter:
                (folder / "adapter").mkdir()
                (folder / "adapter" / "adapter_config.json").write_text(adapter)

        weights = {name: scale * weight for name, weight in model.model.state_dict().items()}
        real = model.model.save_pretrained
        with monkeypatch.context() as patch:
            patch.setattr(
                model.model, "save_pretrained", lambda *a, **k: real(*a, max_shard_size=shards, **k)
            )
            arguments = (weights, opt_tokenizer, settings or {}, str(out))
            pretrained.save_model(model, *arguments, save_more=more, save_format=save_format)
        return weights

    save(3, **new)
    after = contents(out)
    shutil.rmtree(out)
    before = None
    out.mkdir()
    if old is not None:
        save(2, **old)
        before = contents(out)
        assert (before.keys() == after.keys()) == (
            [old.get(key) for key in ("shards", "save_format")]
            == [new.get(key) for key in ("shards", "save_format")]
        )
        assert before != after
    shutil.copytree(out, tmp_path / "before")
    seen = []
    for number in itertools.count(1):
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "before", out)
        if not is_killed(monkeypatch, number, lambda: save(3, **new)):
            break
        seen.append([before, None, after].index(contents(out)))
    assert number > 8 and seen == sorted(seen)
    assert (1 not in seen) is never_none or before is None
    assert is_killed(monkeypatch, 3, lambda: save(3, **new))
    (out / "model.partial" / "left").touch()
    (out / "checks.json").write_text("of the model before")
    weights = save(4, **new)
    assert not (out / "checks.json").exists()
    assert not list(out.glob("model.partial")) + list(out.glob("left"))
    assert (out / "README.md").read_text() == "card 4"
    again = load(out, opt_tokenizer)[0].model.state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_missing_head_is_an_error_unless_a_new_one_is_wanted(opt_model, opt_tokenizer):
    with pytest.raises(InputError, match=r"score\.weight is missing.*Train it with main\.py"):
        load(opt_model, opt_tokenizer)
    model, notes = load(opt_model, opt_tokenizer, new_head=True)
    assert any("new one is drawn" in note for note in notes)
    assert model.model.score.weight.shape == (1, 16)  # word_embed_proj_dim, not hidden_size


def test_the_new_head_depends_on_the_seed_alone(opt_model, opt_tokenizer):
    heads = []
    for seed in (1, 1, 2):
        set_seed(seed)
        torch.rand(len(heads))  # what loading draws differs with stage and device
        heads.append(load(opt_model, opt_tokenizer, new_head=True)[0].model.score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    model, _ = load(opt_model, opt_tokenizer, new_head=True, dtype=torch.bfloat16)
    assert torch.equal(model.model.score.weight, heads[2].bfloat16())


@pytest.mark.parametrize("fault", ["missing", "left over", "misshapen"])
@pytest.mark.parametrize("new_head", [True, False])
def test_loading_is_strict(opt_model, opt_tokenizer, tmp_path, fault, new_head):
    model, _ = load(opt_model, opt_tokenizer, new_head=True)
    weights = model.model.state_dict()
    pretrained.save_model(model, weights, opt_tokenizer, {}, str(tmp_path / "out"))
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    name = "model.decoder.layers.1.fc2.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "left over":
        name = "model.decoder.layers.7.fc2.weight"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(2, 2)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "out")) + ".*"):
        load(tmp_path / "out", opt_tokenizer, new_head=new_head)


def test_a_folder_without_a_tokenizer_is_an_error(opt_model):
    for file in opt_model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor.*copy those"):
        pretrained.load_tokenizer(str(opt_model))


def test_embeddings_grow_for_a_new_padding_token(llama_tokenizer, tmp_path):
    folder = save_language_model(tmp_path / "llama", llama_tokenizer, "llama")
    size = len(llama_tokenizer)
    _, notes = prepare_tokenizer(llama_tokenizer, add_eot_token=False)
    assert "no padding token" in notes[0]
    model, _ = load(folder, llama_tokenizer, new_head=True)
    assert model.model.get_input_embeddings().num_embeddings == size + 1
    assert model.model.config.pad_token_id == llama_tokenizer.pad_token_id == size


def test_dropout_is_set_everywhere(opt_model):
    config = pretrained.load_config(str(opt_model))
    assert config.dropout == 0.1
    pretrained.set_dropout(config, 0.3)
    assert (config.dropout, config.attention_dropout) == (0.3, 0.3)


@pytest.mark.parametrize("path", ["no/such/place/here", "nobody/nothing"])
def test_what_is_not_a_model_is_named(path, tmp_path):
    with pytest.raises(InputError, match=f"{path}.*--model_name_or_path"):
        pretrained.load_config(path)
    with pytest.raises(InputError, match="not a model.*config.json"):
        pretrained.load_config(str(tmp_path))
