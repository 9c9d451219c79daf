"""The training scripts as they are typed, with tiny models in the place of the real ones."""

import os
import re

import pytest

from tests.conftest import (
    ROOT,
    free_port,
    make_pairs,
    run_command,
    save_language_model,
    write_jsonl,
)

SCRIPTS = sorted((ROOT / "training_scripts").rglob("run_*.sh"))


@pytest.fixture
def run_script(tmp_path, monkeypatch, opt_tokenizer, llama_tokenizer):
    """Run a script on a tiny model of its family with 12 comparisons."""

    def run(script, *flags):
        family = script.parts[-3] if script.parts[-3] in ("opt", "llama") else "opt"
        tokenizer = opt_tokenizer if family == "opt" else llama_tokenizer
        positions = {"max_position_embeddings": 1024}
        model = save_language_model(tmp_path / "model", tokenizer, family, **positions)
        data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12))
        (tmp_path / "hostfile").write_text("localhost slots=1\n")
        monkeypatch.setenv("MODEL", str(model))
        monkeypatch.setenv("DATA", str(data))
        monkeypatch.setenv("NUM_GPUS", "1")
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        monkeypatch.setenv("HOSTFILE", str(tmp_path / "hostfile"))
        monkeypatch.setenv("LAUNCHER_FLAGS", "--no_ssh --node_rank 0 --master_addr 127.0.0.1")
        cache = ("--data_output_path", tmp_path / "cache")
        return run_command("bash", script, tmp_path / "out", "2", *cache, *flags)

    return run


GPU_SCRIPTS = [script for script in SCRIPTS if "cpu" not in script.parts]


@pytest.mark.parametrize("script", GPU_SCRIPTS, ids=lambda path: "-".join(path.parts[-3:]))
def test_script_resolves(run_script, tmp_path, script):
    done = run_script(script, "--dry_run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"zero_stage": 2' in done.stdout
    assert "global batch:" in done.stdout
    assert done.stdout.split()[-1] in (tmp_path / "out" / "training.log").read_text()
    assert os.listdir(tmp_path / "out") == ["training.log"]


def test_llama_script_trains_and_saves_a_merged_model(run_script, tmp_path):
    script = ROOT / "training_scripts" / "llama" / "single_node" / "run_7b_lora.sh"
    done = run_script(script, "--zero_stage", "3", "--max_steps", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    scored = run_command("python", "rw_eval.py", "--model_name_or_path", tmp_path / "out")
    assert scored.returncode == 0, scored.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "-".join(path.parts[-3:]))
def test_script_is_documented_and_strict(script):
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert '"$@"' in text
    for heading in ("# Hardware:", "# Expect:", "# Override:"):
        assert heading in text
    overrides = re.search(r"# Override:(.*)", text).group(1)
    for name in re.findall(r"[A-Z][A-Z_]+", overrides):
        assert f"${{{name}" in text
