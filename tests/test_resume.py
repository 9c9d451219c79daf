"""Runs that are killed or stopped, and go on: the same metrics as without that."""

import os
import re
import signal
import time

import psutil
import pytest

from tests.conftest import (
    TOO_LONG,
    finish,
    flags,
    free_port,
    read_metrics,
    start_command,
    without_times,
)

EPOCHS = 12  # 60 steps
INTERVAL = 4


def start(workspace, name, stage, *options, launcher=("--num_gpus", 2), program="main.py"):
    """Two processes of a run with dropout, so that random numbers matter."""
    launcher = ("deepspeed", "--master_port", free_port(), *launcher)
    words = (*flags(workspace, name, 2, 2), "--num_train_epochs", EPOCHS, "--zero_stage", stage)
    words += ("--dropout", 0.1, "--eval_interval", 7, "--save_interval", INTERVAL)
    return start_command(*launcher, program, *words, "--save_total_limit", 2, *options)


def ranks(process) -> list[psutil.Process]:
    """The processes that train."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if any("--local_rank" in w for w in child.cmdline())]


def wait_for_step(process, folder, step):
    """Wait until a run has logged the step before it pauses (pausing.py)."""
    file, last, deadline = (
        folder / "metrics.jsonl",
        f'{{"step": {step},',
        time.monotonic() + TOO_LONG,
    )
    while not (file.exists() and last in file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module", params=[0, 3])
def whole_run(workspace, request):
    """The stage and the folder of a run that nothing interrupts."""
    name = f"whole{request.param}"
    done = finish(start(workspace, name, request.param))
    assert done.returncode == 0, done.stderr
    return request.param, workspace / name


def test_a_run_whose_process_is_killed_ends_and_goes_on(workspace, whole_run, monkeypatch):
    stage, whole = whole_run
    name = f"killed{stage}"
    monkeypatch.setenv("PAUSE", "18")
    process = start(workspace, name, stage, program="tests/pausing.py")
    wait_for_step(process, workspace / name, 17)
    started = ranks(process)
    assert len(started) == 2
    started[1].kill()
    assert finish(process).returncode != 0
    _, alive = psutil.wait_procs(started, timeout=TOO_LONG)
    assert not alive
    assert read_metrics(workspace / name)[-1]["step"] == 17
    done = finish(start(workspace, name, stage, "--resume_from_checkpoint", "latest"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on from .*/step_16\n", done.stdout)
    assert without_times(workspace / name) == without_times(whole)
    kept = {path.name for path in (workspace / name / "checkpoints").glob("step_*")}
    assert kept == {"step_56", "step_60"}


def test_each_node_keeps_its_part_on_its_own_disk(workspace, tmp_path, whole_run):
    """Two launchers, as on two machines; one state of one of them is broken."""
    stage, whole = whole_run
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    port, folders = free_port(), [tmp_path / "node0", tmp_path / "node1"]

    def run(*options):
        nodes = []
        for rank, folder in enumerate(folders):
            place = ("--hostfile", tmp_path / "hosts", "--no_ssh", "--node_rank", rank)
            place += ("--master_addr", "127.0.0.1", "--master_port", port)
            own = ("--output_dir", folder, "--use_node_local_storage", "--save_total_limit", 3)
            nodes.append(start(workspace, "", stage, *own, *options, launcher=place))
        return [finish(node) for node in nodes]

    assert [done.returncode for done in run()] == [0, 0]
    assert not list(folders[1].glob("*.*"))
    for folder, rank in zip(folders, "01", strict=True):
        pieces = {path.name for path in (folder / "checkpoints" / "step_60").glob("*optim*")}
        assert pieces == ({f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"} if stage else set())
    (folders[0] / "model.safetensors").unlink()
    (folders[1] / "checkpoints" / "step_60" / "state.json").unlink()
    first, second = run("--resume_from_checkpoint", "latest")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert re.search("step_60 is not whole and is passed over: another process", first.stdout)
    assert re.search("going on from .*/step_56", first.stdout)
    assert (folders[0] / "model.safetensors").exists()
    assert without_times(folders[0]) == without_times(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_saves_the_state_of_all(workspace, number, code, monkeypatch):
    name = f"signal{code}"
    monkeypatch.setenv("PAUSE", "4")
    process = start(workspace, name, 1, "--save_interval", 0, program="tests/pausing.py")
    wait_for_step(process, workspace / name, 3)
    os.kill(ranks(process)[1].pid, number)
    done = finish(process)
    assert done.returncode == code
    line = next(line for line in done.stdout.splitlines() if "stopped by a signal" in line)
    step = int(re.search(r"after step (\d+) of 60", line).group(1))
    assert line.endswith("--resume_from_checkpoint latest")
    assert (workspace / name / "checkpoints" / "latest").read_text() == f"step_{step}"
    assert read_metrics(workspace / name)[-1]["step"] == step
    assert not (workspace / name / "model.safetensors").exists()
