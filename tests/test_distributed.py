"""The processes of a run; what ranks do together is tested in tests/test_training.py."""

import os
import platform
import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, TOO_LONG
from utils import distributed

FAULTS = """
import resource
import torch
from utils import distributed

distributed.keep_freed_memory()
for step in range(40):
    if step == 20:  # by then there are enough freed blocks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(10 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the memory of the CPU is left")
@pytest.mark.parametrize("user_decides", [False, True])
def test_freed_memory_is_used_again(monkeypatch, user_decides):
    if user_decides:
        monkeypatch.setenv("MALLOC_ARENA_TEST", "8")  # glibc's default: changes nothing itself
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    share = float(done.stdout) * 4096 / (40 * 2**20)  # of a tensor's pages, anew in each step
    assert share > 0.9 if user_decides else share < 0.1


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield distributed.StopSignal(torch.device("cpu"))
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([], 0),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
        ([signal.SIGINT, signal.SIGTERM], 130),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], 143),
    ],
)
def test_the_first_signal_decides_the_exit_code(stop, signals, code):
    assert stop.agreed() == 0
    for number in signals:
        signal.raise_signal(number)
    assert stop.agreed() == code


INTERRUPTED_TWICE = """
import signal
import torch
from utils.distributed import StopSignal

stop = StopSignal(torch.device("cpu"))
signal.raise_signal(signal.SIGINT)
print("saving", stop.agreed(), flush=True)
signal.raise_signal(signal.SIGINT)
print("still there", flush=True)
"""


def test_a_second_interrupt_ends_the_process_at_once():
    command = [sys.executable, "-c", INTERRUPTED_TWICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "saving 130\n")


LEAVING = """
import signal, sys, time
import torch.distributed as dist
from utils import distributed

def wait_for_the_others():  # as NCCL does
    print("waits", flush=True)
    time.sleep(1 if {code} == 0 else 1e6)

distributed.initialize()
dist.destroy_process_group = wait_for_the_others
distributed.leave({code})
"""


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_rank_that_fails_alone_waits_for_nobody(code):
    command = [sys.executable, "-c", LEAVING.format(code=code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG)
    assert done.returncode == code, done.stderr
    assert ("waits" in done.stdout) is (code == 0)


TIMEOUT = """
import torch
import torch.distributed as dist
from utils import distributed

distributed.initialize()
group = dist.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout)
"""


@pytest.mark.parametrize(("given", "timeout"), [(None, "2:00:00"), ("3", "0:03:00")])
def test_ranks_wait_for_the_first_one_while_it_tokenises_or_checks(monkeypatch, given, timeout):
    monkeypatch.delenv("DEEPSPEED_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("DEEPSPEED_TIMEOUT", given)
    command = [sys.executable, "-c", TIMEOUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == timeout


@pytest.mark.parametrize("given", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_of_a_gpu_grow_unless_the_user_decides(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "max_split_size_mb:64")
        if name != given:
            monkeypatch.delenv(name)
    distributed.keep_freed_memory()
    expected = {"": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected.get(given)
    os.environ.pop("PYTORCH_ALLOC_CONF", None)
