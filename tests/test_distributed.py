"""The processes of a run; what ranks do together is tested in tests/test_training.py."""

import platform
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

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
