import os
from pathlib import Path

import pytest
import torch

from tests.conftest import flags, read_metrics, run_command, save_language_model
from utils.model import pretrained
from utils.settings import InputError
from utils.training import nvme


def test_missing_libaio_is_named(monkeypatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(InputError, match="libaio"):
        nvme.check_nvme()


def test_buffers_hold_the_largest_parameter():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 5), "b": torch.nn.Embedding(7, 3)})
    for given, world_size, expected in (({}, 1, 21), ({}, 2, 11), ({"buffer_size": 9}, 1, 9)):
        config = {"zero_optimization": {"offload_param": dict(given)}}
        nvme.fit_buffers(config, model, world_size)
        assert config["zero_optimization"]["offload_param"]["buffer_size"] == expected


def test_buffers_leave_room_for_new_tokens(opt_model):
    config = pretrained.load_config(str(opt_model))
    grown = pretrained.empty_model(config, vocabulary=config.vocab_size + 3)
    assert grown.get_input_embeddings().num_embeddings == config.vocab_size + 3
    assert (
        pretrained.empty_model(config, 5).get_input_embeddings().num_embeddings == config.vocab_size
    )


def has_async_io() -> bool:
    default = Path.home() / ".cache" / "torch_extensions"
    return any(Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).rglob("async_io.so"))


@pytest.mark.skipif(
    not has_async_io(), reason="async_io is not built here: that takes minutes and needs libaio"
)
def test_a_run_with_states_in_files_goes_on(workspace, tmp_path):
    """Wide enough that states go into files: DeepSpeed leaves what is under 1 MiB in memory."""
    tokenizer = pretrained.load_tokenizer(str(workspace / "model"))
    wide = {"hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 1024}
    save_language_model(tmp_path / "model", tokenizer, dropout=0.1, **wide)

    def train(name, *words):
        common = ("--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / name)
        common += ("--zero_stage", 3, "--max_steps", 5, "--save_interval", 2)
        done = run_command("python", "main.py", *flags(workspace, name, 8, 1), *common, *words)
        assert done.returncode == 0, done.stderr
        return [line.get("loss", line.get("eval_loss")) for line in read_metrics(tmp_path / name)]

    in_files = ("--offload", "nvme", "--nvme_path", tmp_path / "disk")
    whole = train("files", *in_files)
    assert any((tmp_path / "disk").rglob("*.swp"))
    assert whole == pytest.approx(train("memory", "--offload"), abs=1e-6)
    state = tmp_path / "files" / "checkpoints" / "step_2"
    assert train("again", *in_files, "--resume_from_checkpoint", state) == whole
