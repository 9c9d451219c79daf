"""The processes of a run; what ranks do together is tested in tests/test_training.py."""

import platform
import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
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
