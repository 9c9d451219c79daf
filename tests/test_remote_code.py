"""A family that Transformers does not know: its code comes with the checkpoint."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import make_pairs, write_jsonl
from tests.forking import run_program
from utils.estimates import estimate_seconds
from utils.model import pretrained
from utils.settings import InputError

CONFIGURATION = """
from transformers import PreTrainedConfig


class MeansConfig(PreTrainedConfig):
    model_type = "means"
    vocab_size: int = 400
    hidden_size: int = 16
    num_hidden_layers: int = 2
"""

MODELING = '''
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_means import MeansConfig


class MeansModel(PreTrainedModel):
    """Each layer adds a linear map of the mean of all tokens so far."""

    config_class = MeansConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        hidden = self.embeddings(input_ids)
        counts = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        for layer in self.layers:
            hidden = hidden + layer(hidden.cumsum(1) / counts).tanh()
        return BaseModelOutput(last_hidden_state=hidden)


class MeansForSequenceClassification(PreTrainedModel):
    config_class = MeansConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = MeansModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
'''

AUTO_MAP = {
    "AutoConfig": "configuration_means.MeansConfig",
    "AutoModel": "modeling_means.MeansModel",
    "AutoModelForSequenceClassification": "modeling_means.MeansForSequenceClassification",
}


@pytest.fixture
def means(tmp_path, opt_tokenizer):
    """A folder of the family, without a head."""
    folder = tmp_path / "means"
    folder.mkdir()
    (folder / "configuration_means.py").write_text(CONFIGURATION)
    (folder / "modeling_means.py").write_text(MODELING)
    config = {"model_type": "means", "vocab_size": len(opt_tokenizer), "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    opt_tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    weights = pretrained.new_model(
        pretrained.load_config(str(folder), True), True
    ).model.state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_its_code_runs_if_it_is_trusted_alone(means, opt_tokenizer):
    with pytest.raises(InputError, match="code of its own; --trust_remote_code runs it"):
        pretrained.load_config(str(means))

    config = pretrained.load_config(str(means), trust_remote_code=True)
    empty = pretrained.empty_model(config, vocabulary=500, trust_remote_code=True)
    assert empty.get_input_embeddings().num_embeddings == 500
    model, notes = pretrained.load_model(
        str(means), config, opt_tokenizer, new_head=True, trust_remote_code=True
    )
    assert notes == ["the model has no scalar head: a new one is drawn"]
    weights = torch.load(means / "pytorch_model.bin")
    assert all(torch.equal(model.backbone.state_dict()[n], w) for n, w in weights.items())

    flags = {"per_device_train_batch_size": 4, "max_tokens_per_micro_batch": 0, "dtype": "fp32"}
    flags |= {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
    flags |= {"gradient_checkpointing": False, "trust_remote_code": True}
    processes = {"device": torch.device("cpu"), "world_size": 4}
    args = SimpleNamespace(**flags)
    assert estimate_seconds(args, config, 80_000, 800, 40.0, **processes) > 0


def test_training_and_scoring(means, tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24))
    base = ("--model_name_or_path", means, "--data_path", data, "--trust_remote_code")
    words = (*base, "--data_output_path", tmp_path / "cache", "--max_seq_len", 64)
    out = tmp_path / "out"
    lora = ("--lora_dim", 2, "--lora_module_name", "layers.", "--max_steps", 2)
    done = run_program("main.py", *words, *lora, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert "batches are padded: means is not a family of Transformers' own" in done.stdout
    assert "reload: scores of saved and trained model differ" in done.stdout
    assert "LoRA of rank 2 on 2 linear layers" in done.stdout
    assert {"modeling_means.py", "configuration_means.py"} <= {path.name for path in out.iterdir()}

    means.rename(tmp_path / "moved")  # what was saved needs nothing of where it came from
    scored = ("rw_eval.py", "--model_name_or_path", out, "--data_path", data)
    report = ("--output_dir", tmp_path / "report")
    done = run_program(*scored, *report, "--trust_remote_code")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "report" / "scores.jsonl").read_text().splitlines()) == 24
    done = run_program(*scored)
    assert done.returncode == 2
    assert re.search(r"^error: .*out: .*--trust_remote_code", done.stderr, re.MULTILINE)
