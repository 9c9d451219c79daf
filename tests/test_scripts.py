"""The training scripts as they are typed, with tiny models in the place of the real ones."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import main
from tests.conftest import (
    ROOT,
    SIZES,
    bot,
    finish,
    free_port,
    make_pairs,
    run_command,
    save_language_model,
    start_command,
    train_tokenizer,
    user,
    write_jsonl,
)
from utils.training.settings import parse_training_arguments

SCRIPTS = sorted((ROOT / "training_scripts").rglob("run_*.sh"))
MULTI_NODE = ROOT / "training_scripts" / "opt" / "multi_node"
NO_SSH, SLURM = MULTI_NODE / "run_350m_no_ssh.sh", MULTI_NODE / "run_350m_slurm.sh"
HOSTFILE, ENVIRONMENT = MULTI_NODE / "hostfile", ROOT / "training_scripts" / "environment.sh"

# What the scripts find on a cluster, for one machine.
FAKES = {
    # The launcher asks the first machine of a hostfile for its name and its addresses.
    "ssh": "echo 127.0.0.1",
    # In front of the real one where a test asks for it: writes its command line down.
    "deepspeed": """printf '%s\\n' "$@" >"$FAKES/deepspeed.log"; echo started""",
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
def qwen_tokenizer():
    """Qwen's conventions: nothing before a text, ChatML, which ends each message with a token."""
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    start = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=f"{{% for m in messages %}}{turn}{{% endfor %}}{start}",
    )


@pytest.fixture
def bloom_tokenizer():
    """Bloom's conventions: nothing before a text, a padding token of its own."""
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return train_tokenizer(list(specials.values()), **specials)


# Of a folder of scripts: the family, the tokenizer, and sizes of a tiny model.
NEOX = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
FAMILIES = {
    "opt": ("opt", "opt_tokenizer", {}),
    "llama": ("llama", "llama_tokenizer", {}),
    "qwen": ("qwen2", "qwen_tokenizer", SIZES["llama"]),
    "smollm2": ("llama", "qwen_tokenizer", {}),  # ChatML too
    "pythia": ("gpt_neox", "gpt2_tokenizer", {**NEOX, "num_hidden_layers": 2}),
    "bloom": ("bloom", "bloom_tokenizer", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}


def whole_dialogues(row):
    """A pair in the columns of trl-lib/ultrafeedback_binarized."""
    chosen, rejected = ([user(row["prompt"]), bot(row[key])] for key in ("chosen", "rejected"))
    scores = {"score_chosen": 8.5, "score_rejected": 6.0}
    return {"chosen": chosen, "rejected": rejected, **scores}


@pytest.fixture
def prepare(fakes, tmp_path, monkeypatch, request):
    """Make a tiny model of a script's family and 12 comparisons, and give the script's command."""

    def prepare_script(script, *arguments):
        family, tokenizer, sizes = FAMILIES[script.relative_to(ROOT).parts[1]]
        if family != "bloom":  # whose attention counts no positions
            sizes = {**sizes, "max_position_embeddings": 2048}
        tokenizer = request.getfixturevalue(tokenizer)
        model = save_language_model(tmp_path / "model", tokenizer, family, **sizes)
        pairs = make_pairs(12)
        if "ultrafeedback_binarized" in script.read_text():
            pairs = [whole_dialogues(row) for row in pairs]
        data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
        (tmp_path / "hostfile").write_text("localhost slots=1\n")
        monkeypatch.setenv("MODEL", str(model))
        monkeypatch.setenv("DATA", str(data))
        monkeypatch.setenv("NUM_GPUS", "1")
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        monkeypatch.setenv("HOSTFILE", str(tmp_path / "hostfile"))
        cache = ("--data_output_path", tmp_path / "cache")
        return ["bash", script, tmp_path / "out", *arguments, *cache]

    return prepare_script


@pytest.fixture
def pretend(fakes):
    """Run a command with a launcher that pretends; gives its output and the launcher's words."""

    def run(*command):
        path = f"{fakes}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_command("env", f"PATH={path}", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, (fakes / "deepspeed.log").read_text().splitlines()

    return run


def check_dry_run(done, log, batch):
    """The script resolved, and its log has what it printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"zero_stage": 2' in done.stdout
    assert f"global batch: {batch} comparisons" in done.stdout
    assert done.stdout.split()[-1] in log.read_text()


# Comparisons of a step in one process, and the ZeRO stage.
PLANS = {
    "bloom/single_gpu/run_560m.sh": (64, 0),
    "bloom/single_node/run_7b1.sh": (8, 3),
    "llama/multi_node/run_7b.sh": (4, 3),
    "llama/single_gpu/run_8b_lora.sh": (64, 0),
    "llama/single_node/run_7b.sh": (8, 3),
    "llama/single_node/run_7b_lora.sh": (8, 3),
    "llama/single_node/run_8b.sh": (32, 3),
    "opt/multi_node/run_350m.sh": (4, 2),
    "opt/single_gpu/run_1.3b.sh": (64, 0),
    "opt/single_gpu/run_125m.sh": (64, 0),
    "opt/single_gpu/run_2.7b.sh": (64, 2),
    "opt/single_gpu/run_350m.sh": (64, 0),
    "opt/single_gpu/run_6.7b_lora.sh": (64, 0),
    "opt/single_node/run_13b.sh": (8, 3),
    "opt/single_node/run_350m.sh": (8, 2),
    "opt/single_node/run_6.7b.sh": (8, 3),
    "pythia/single_gpu/run_160m.sh": (64, 0),
    "pythia/single_gpu/run_1b.sh": (64, 0),
    "pythia/single_node/run_6.9b.sh": (8, 3),
    "qwen/single_gpu/run_0.5b.sh": (64, 0),
    "qwen/single_node/run_7b.sh": (32, 3),
    "smollm2/single_gpu/run_1.7b.sh": (64, 0),
    "smollm2/single_gpu/run_135m.sh": (64, 0),
}
TESTED_ALONE = {
    "opt/multi_node/run_350m_no_ssh.sh",
    "opt/multi_node/run_350m_slurm.sh",
    "opt/cpu/run_tiny.sh",  # in test_demo.py
    "smollm2/cpu/run_135m.sh",  # in test_smollm2.py
    "opt/single_node/sweep/run_sweep.sh",  # in test_sweep.py
}
# Of a place: its GPUs, and what the launcher is told.
PLACES = {
    "single_gpu": (1, ["--num_gpus", "1"]),
    "single_node": (8, ["--num_gpus", "1"]),  # from NUM_GPUS
    "multi_node": (16, ["--hostfile"]),
}


def test_every_script_is_tested():
    names = {str(script.relative_to(ROOT / "training_scripts")) for script in SCRIPTS}
    assert names == PLANS.keys() | TESTED_ALONE


@pytest.mark.parametrize("name", PLANS)
def test_script_resolves(prepare, pretend, tmp_path, monkeypatch, capsys, name):
    """What the script gives to the launcher, main.py resolves, here in this process."""
    batch, stage = PLANS[name]
    output, words = pretend(*prepare(ROOT / "training_scripts" / name), "--dry_run")
    assert output == (tmp_path / "out" / "training.log").read_text() == "started\n"
    assert words[-3:] == ["--data_output_path", str(tmp_path / "cache"), "--dry_run"]
    start = words.index(str(ROOT / "main.py"))
    gpus, told = PLACES[name.split("/")[1]]
    assert words[: len(told)] == told
    assert words[start - 2 : start] == ["--master_port", os.environ["MASTER_PORT"]]

    for variable, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    main.main(parse_training_arguments(words[start + 1 :]))
    output = capsys.readouterr().out
    assert f'"zero_stage": {stage},' in output
    assert f"global batch: {batch} comparisons" in output
    assert f" {batch * gpus} comparisons a step" in header(name)
    is_padded = name.startswith("bloom")
    assert f'"batch_layout": "{"padded" if is_padded else "packed"}"' in output
    assert ("batches are padded: bloom does not let its attention" in output) == is_padded
    assert ("<|im_start|>user" in output) == name.startswith(("qwen", "smollm2"))
    assert os.listdir(tmp_path / "out") == ["training.log"]


@pytest.mark.parametrize("place", PLACES)
def test_script_resolves_under_the_launcher(prepare, tmp_path, place):
    name = f"opt/{place}/run_350m.sh"
    done = run_command(*prepare(ROOT / "training_scripts" / name, "2"), "--dry_run")
    check_dry_run(done, tmp_path / "out" / "training.log", PLANS[name][0])
    assert os.listdir(tmp_path / "out") == ["training.log"]


def header(name):
    """The comment at a script's top, as one line."""
    text = (ROOT / "training_scripts" / name).read_text()
    lines = [line.removeprefix("#").strip() for line in text.split("\nset -")[0].splitlines()]
    return " ".join(lines)


def test_script_without_ssh_joins_two_machines(prepare, tmp_path, monkeypatch):
    command = prepare(NO_SSH, "2")
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


@pytest.mark.parametrize(
    ("visible", "words"), [("", "--num_gpus 1"), ("3", "--include localhost:3")]
)
def test_one_gpu_is_the_first_that_is_visible(pretend, tmp_path, visible, words):
    script = ROOT / "training_scripts" / "opt" / "single_gpu" / "run_125m.sh"
    given = f"CUDA_VISIBLE_DEVICES={visible + ',5' if visible else ''}"
    _, told = pretend("env", given, "bash", script, tmp_path / "out")
    assert " ".join(told).startswith(f"{words} --master_port ")


@pytest.mark.parametrize("launcher", ["over_ssh", "without_ssh"])
def test_a_hostfile_that_is_not_there_is_an_error(fakes, tmp_path, launcher):
    script = ROOT / "training_scripts" / "opt" / "single_node" / "run_13b.sh"
    words = ("env", f"LAUNCHER={launcher}", "HOSTFILE=/none", "NODE_RANK=0", "MASTER_ADDR=a")
    done = run_command(*words, "bash", script, tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == "error: HOSTFILE is /none: no such file\n"


LLAMA = ROOT / "training_scripts" / "llama" / "single_node" / "run_7b.sh"
LLAMA_FLAGS = [
    "--model_name_or_path",
    "meta-llama/Llama-2-7b-hf",
    "--data_path",
    "Dahoas/rm-static",
]


def test_script_without_ssh_runs_any_model(pretend, tmp_path):
    variables = (f"SCRIPT={LLAMA}", "NODE_RANK=1", "MASTER_ADDR=node1")
    _, words = pretend("env", *variables, "bash", NO_SSH, tmp_path / "out")
    assert words[1:7] == f"{HOSTFILE} --no_ssh --node_rank 1 --master_addr node1".split()
    assert words[9:14] == [str(ROOT / "main.py"), *LLAMA_FLAGS]
    assert (tmp_path / "out" / "training.node1.log").read_text() == "started\n"


@pytest.fixture
def spooled(tmp_path):
    """The Slurm script where Slurm runs it: in a copy elsewhere."""
    (tmp_path / "spool").mkdir()
    return shutil.copy(SLURM, tmp_path / "spool" / "slurm_script")


def test_slurm_script_starts_a_process_for_each_task(prepare, fakes, tmp_path, spooled):
    command = prepare(SLURM, "2")
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


def test_slurm_job_runs_any_model_and_flags_win(fakes, tmp_path, spooled):
    write_commands(fakes, {"srun": """echo "$MASTER_ADDR:$MASTER_PORT $*" """})
    words = ("bash", spooled, tmp_path / "out", "--save_interval", "50")
    done = run_command("env", f"SCRIPT={LLAMA}", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("127.0.0.1:20007 --kill-on-bad-exit=1 --cpus-per-task=1 bash -c")
    assert " ".join(LLAMA_FLAGS) in done.stdout
    assert "--save_interval 200" in done.stdout
    assert done.stdout.endswith(" --save_interval 50\n")


def test_slurm_reads_its_lines():
    """sbatch stops looking for them at the first command."""
    header = SLURM.read_text().split("set -euo pipefail")[0].splitlines()
    assert all(line.startswith("#") for line in header if line)
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue"} <= set(header)
    assert SLURM.read_text().count("#SBATCH") == sum("#SBATCH" in line for line in header)


def test_llama_script_trains_and_saves_a_merged_model(prepare, tmp_path):
    script = ROOT / "training_scripts" / "llama" / "single_node" / "run_7b_lora.sh"
    done = run_command(*prepare(script, "2"), "--zero_stage", "3", "--max_steps", "1")
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
    for heading in ("# Hardware:", "# Expect:", "# Hyperparameters:", "# Override:"):
        assert heading in text
    # What is named there up to the end of the comment, but for remarks in brackets, has a default.
    overrides = re.search(r"# Override:((?:.*\n#)*.*)", text).group(1)
    names = re.findall(r"[A-Z][A-Z_]+", re.sub(r"\(.*?\)", "", overrides, flags=re.DOTALL))
    assert names
    for name in names:
        assert f"${{{name}:" in text + ENVIRONMENT.read_text(), name
