"""Runs that are killed or stopped, and go on: the same metrics as without that."""

import re
import signal

import psutil
import pytest

from tests.conftest import TOO_LONG, flags, free_port, read_metrics, run_command, without_times
from tests.forking import run_program

EPOCHS = 6  # 30 steps
INTERVAL = 4
DEEPSPEED = ("deepspeed", "--num_gpus", 2, "--master_port")


def flags_of_two(workspace, name, stage, *options) -> list:
    """Of each of two processes of a run with dropout, so that random numbers matter."""
    return [
        *flags(workspace, name, 2, 2),
        *("--num_train_epochs", EPOCHS, "--zero_stage", stage, "--dropout", 0.1),
        *("--eval_interval", 7, "--save_interval", INTERVAL, "--save_total_limit", 2),
        *options,
    ]


@pytest.fixture(scope="module", params=[0, 3])
def whole_run(workspace, request):
    """The stage and the folder of a run that nothing interrupts."""
    name = f"whole{request.param}"
    done = run_program("main.py", *flags_of_two(workspace, name, request.param), processes=2)
    assert done.returncode == 0, done.stderr
    return request.param, workspace / name


def test_a_run_whose_process_is_killed_ends_and_goes_on(workspace, whole_run, monkeypatch):
    """The launcher ends the other process too."""
    stage, whole = whole_run
    folder = workspace / f"killed{stage}"
    words = flags_of_two(workspace, folder.name, stage)
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGKILL)))
    monkeypatch.setenv("STEP", "18")
    done = run_command(*DEEPSPEED, free_port(), "tests/signalled.py", *words)
    assert done.returncode != 0
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or ())]
    assert not psutil.wait_procs(left, timeout=TOO_LONG)[1]
    assert read_metrics(folder)[-1]["step"] == 17

    done = run_program("main.py", *words, "--resume_from_checkpoint", "latest", processes=2)
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on from .*/step_16\n", done.stdout)
    assert without_times(folder) == without_times(whole)
    kept = {path.name for path in (folder / "checkpoints").glob("step_*")}
    assert kept == {"step_24", "step_28"}


def test_each_node_keeps_its_part_on_its_own_disk(workspace, tmp_path, whole_run):
    """Two processes, each as on a machine of its own; one state of one of them is broken."""
    stage, whole = whole_run
    folders = [tmp_path / "node0", tmp_path / "node1"]
    words = flags_of_two(workspace, "", stage, "--use_node_local_storage", "--save_total_limit", 3)
    own = [("--output_dir", folder) for folder in folders]

    done = run_program("main.py", *words, nodes=own)
    assert done.returncode == 0, done.stderr
    assert not list(folders[1].glob("*.*"))
    for folder, rank in zip(folders, "01", strict=True):
        pieces = {path.name for path in (folder / "checkpoints" / "step_28").glob("*optim*")}
        assert pieces == ({f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"} if stage else set())

    (folders[0] / "model.safetensors").unlink()
    (folders[1] / "checkpoints" / "step_28" / "state.json").unlink()
    done = run_program("main.py", *words, "--resume_from_checkpoint", "latest", nodes=own)
    assert done.returncode == 0, done.stderr
    assert re.search("step_28 is not whole and is passed over: another process", done.stdout)
    assert re.search("going on from .*/step_24", done.stdout)
    assert (folders[0] / "model.safetensors").exists()
    assert without_times(folders[0]) == without_times(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_saves_the_state_of_all(workspace, number, code, monkeypatch):
    folder = workspace / f"signal{code}"
    words = flags_of_two(workspace, folder.name, 1, "--save_interval", 0)
    monkeypatch.setenv("SIGNAL", str(int(number)))
    monkeypatch.setenv("STEP", "4")
    if number == signal.SIGTERM:
        done = run_command(*DEEPSPEED, free_port(), "tests/signalled.py", *words)
    else:
        done = run_program("tests/signalled.py", *words, processes=2)
    assert done.returncode == code

    line = next(line for line in done.stdout.splitlines() if "stopped by a signal" in line)
    step = int(re.search(r"after step (\d+) of 30", line).group(1))
    assert line.endswith("--resume_from_checkpoint latest")
    assert (folder / "checkpoints" / "latest").read_text() == f"step_{step}"
    assert read_metrics(folder)[-1]["step"] == step
    assert not (folder / "model.safetensors").exists()
