"""The training scripts as they are typed, with tiny models in the place of the real ones."""

import os
import re
import shutil

import pytest

from tests.conftest import (
    ROOT,
    finish,
    free_port,
    make_pairs,
    run_command,
    save_language_model,
    start_command,
    write_jsonl,
)

SCRIPTS = sorted((ROOT / "training_scripts").rglob("run_*.sh"))
MULTI_NODE = ROOT / "training_scripts" / "opt" / "multi_node"
NO_SSH, SLURM = MULTI_NODE / "run_350m_no_ssh.sh", MULTI_NODE / "run_350m_slurm.sh"

# What the scripts find on a cluster, for one machine.
FAKES = {
    # The launcher asks the first machine of a hostfile for its name and its addresses.
    "ssh": "echo 127.0.0.1",
    # As Slurm on one node with two GPUs: the same command for each task.
    "srun": """
        while [[ "$1" = -* ]]; do shift; done
        export SLURM_NTASKS=2
        SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
        SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!""",
    "scontrol": """
        echo "$@" >>"$FAKES/scontrol.log"
        if [ "$*" = "show hostnames node[1-2]" ]; then printf '127.0.0.1\\nnode2\\n'; fi""",
}
SLURM_ENVIRONMENT = {
    "SLURM_SUBMIT_DIR": str(ROOT),
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_CPUS_PER_TASK": "1",
}


def write_commands(folder, commands):
    """Executable bash scripts by name."""
    folder.mkdir(exist_ok=True)
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A folder in front of PATH with the commands of a cluster."""
    folder = write_commands(tmp_path / "fakes", FAKES)
    monkeypatch.setenv("FAKES", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, value in SLURM_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def prepare(fakes, tmp_path, monkeypatch, opt_tokenizer, llama_tokenizer):
    """Make a tiny model of a script's family and 12 comparisons, and give the script's command."""

    def prepare_script(script):
        family = "llama" if "llama" in script.parts else "opt"
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
        cache = ("--data_output_path", tmp_path / "cache")
        return ["bash", script, tmp_path / "out", "2", *cache]

    return prepare_script


def check_dry_run(done, log, batch):
    """The script resolved, and its log has what it printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"zero_stage": 2' in done.stdout
    assert f"global batch: {batch} comparisons" in done.stdout
    assert done.stdout.split()[-1] in log.read_text()


# Comparisons of a step in one process.
BATCHES = {
    "llama/multi_node/run_7b.sh": 4,
    "opt/multi_node/run_350m.sh": 4,
    "opt/single_gpu/run_350m.sh": 32,
    "opt/single_node/run_350m.sh": 8,
}
TESTED_ALONE = {
    "llama/single_node/run_7b_lora.sh",
    "opt/multi_node/run_350m_no_ssh.sh",
    "opt/multi_node/run_350m_slurm.sh",
    "opt/cpu/run_tiny.sh",  # in data/test_demo.py
    "opt/single_node/sweep/run_sweep.sh",  # in test_sweep.py
}


def test_every_script_is_tested():
    names = {str(script.relative_to(ROOT / "training_scripts")) for script in SCRIPTS}
    assert names == BATCHES.keys() | TESTED_ALONE


@pytest.mark.parametrize("name", BATCHES)
def test_script_resolves(prepare, tmp_path, name):
    done = run_command(*prepare(ROOT / "training_scripts" / name), "--dry_run")
    check_dry_run(done, tmp_path / "out" / "training.log", BATCHES[name])
    assert os.listdir(tmp_path / "out") == ["training.log"]


def test_script_without_ssh_joins_two_machines(prepare, tmp_path, monkeypatch):
    command = prepare(NO_SSH)
    (tmp_path / "hostfile").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    second = start_command("env", "NODE_RANK=1", *command, "--dry_run")
    first = run_command("env", "NODE_RANK=0", *command, "--dry_run")
    second = finish(second)
    check_dry_run(first, tmp_path / "out" / "training.node0.log", 8)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "global batch" not in second.stdout
    assert "node_rank=1" in (tmp_path / "out" / "training.node1.log").read_text()


def test_script_without_ssh_asks_for_its_rank(tmp_path):
    done = run_command("bash", NO_SSH, tmp_path / "out")
    assert done.returncode != 0
    assert "NODE_RANK: is needed" in done.stderr


@pytest.fixture
def spooled(tmp_path):
    """The Slurm script where Slurm runs it: in a copy elsewhere."""
    (tmp_path / "spool").mkdir()
    return shutil.copy(SLURM, tmp_path / "spool" / "slurm_script")


def test_slurm_script_starts_a_process_for_each_task(prepare, fakes, tmp_path, spooled):
    command = prepare(SLURM)
    command[1] = spooled
    done = run_command(*command, "--dry_run")
    check_dry_run(done, tmp_path / "out" / "training.log", 8)
    assert '"resume_from_checkpoint": "latest"' in done.stdout
    assert '"save_interval": 200' in done.stdout
    assert (fakes / "scontrol.log").read_text() == "show hostnames node[1-2]\n"


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (1, False), (0, False)])
def test_slurm_job_goes_back_to_the_queue_after_a_signal(fakes, tmp_path, spooled, code, requeued):
    write_commands(fakes, {"srun": f"echo stopped; exit {code}"})
    done = run_command("bash", spooled, tmp_path / "out")
    assert done.returncode == code
    assert (tmp_path / "out" / "training.log").read_text() == "stopped\n"
    assert ("requeue 7\n" in (fakes / "scontrol.log").read_text()) == requeued


def test_slurm_reads_its_lines():
    """sbatch stops looking for them at the first command."""
    header = SLURM.read_text().split("set -euo pipefail")[0].splitlines()
    assert all(line.startswith("#") for line in header if line)
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue"} <= set(header)
    assert SLURM.read_text().count("#SBATCH") == sum("#SBATCH" in line for line in header)


def test_llama_script_trains_and_saves_a_merged_model(prepare, tmp_path):
    script = ROOT / "training_scripts" / "llama" / "single_node" / "run_7b_lora.sh"
    done = run_command(*prepare(script), "--zero_stage", "3", "--max_steps", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model, metrics.jsonl" in (tmp_path / "out" / "training.log").read_text()
    scored = run_command("python", "rw_eval.py", "--model_name_or_path", tmp_path / "out")
    assert scored.returncode == 0, scored.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "-".join(path.parts[-3:]))
def test_script_is_documented_and_strict(script):
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert '"$@"' in text
    assert os.access(script, os.X_OK)
    for heading in ("# Hardware:", "# Expect:", "# Override:"):
        assert heading in text
    # What is named there up to the end of the comment, but for remarks in brackets, has a default.
    overrides = re.search(r"# Override:((?:.*\n#)*.*)", text).group(1)
    names = re.findall(r"[A-Z][A-Z_]+", re.sub(r"\(.*?\)", "", overrides, flags=re.DOTALL))
    assert names
    for name in names:
        assert f"${{{name}:" in text, name
