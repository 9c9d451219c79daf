"""Processes: who I am, their memory, starting the group, sums over ranks, printing once."""

import atexit
import ctypes
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

T = TypeVar("T")

# How long a rank waits for the others: the first one may tokenise or check a large model meanwhile.
TIMEOUT = timedelta(hours=2)


def initialize(local_rank: int = -1) -> torch.device:
    """Join the process group, or make one of a single process, and return this rank's device.

    deepspeed, torchrun and Slurm wrappers set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT; plain `python main.py` has none of them.

    Args:
        local_rank: the launcher's --local_rank; -1 takes the environment's LOCAL_RANK.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    if local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))

    import deepspeed

    options: dict[str, Any] = {"verbose": False}
    if "DEEPSPEED_TIMEOUT" not in os.environ:
        options["timeout"] = TIMEOUT

    if on_cpu:
        # DeepSpeed would compile its shared-memory reduction at every first start: that needs a
        # compiler and over a minute. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", **options)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    deepspeed.init_distributed(**options)
    return device


def keep_freed_memory() -> None:
    """Let tensors reuse the memory of freed ones, of whatever size; before the first tensor.

    PyTorch keeps what is freed on a GPU, but in blocks, which batches of ever other sizes leave in
    pieces; segments that grow do not. Without a GPU, glibc maps each block over 32 MiB anew and
    gives the end of its heap back, so that the system zeroes the same pages in every step. Where
    PYTORCH_*ALLOC_CONF or MALLOC_* variables are set, they decide.
    """
    if torch.cuda.is_available():
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        return

    user_decides = any(name.startswith("MALLOC_") for name in os.environ)
    if user_decides or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # the names and numbers of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never


class StopSignal:
    """Catches SIGTERM and SIGINT, so that a step can end and the training state be saved.

    A second SIGINT ends the process at once. Launchers repeat SIGTERM, so that one does not.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.code = 0
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.code = self.code or 128 + number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def agreed(self) -> int:
        """0, or the exit code if any rank got a signal; every rank calls it and gets the same."""
        return max_over_ranks(self.code, self.device)


def leave(code: int) -> NoReturn:
    """End the process with an exit code, after the exit handlers but without more teardown.

    gloo's threads outlive the process group. One that drops its last tensor while the interpreter
    is torn down aborts the process, now and then (pytorch/pytorch#179291). After a failure the
    group is left as it is: NCCL would wait for ranks that go on and never come here.
    """
    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """Number of this process among all; 0 before the group exists."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Number of processes on this machine, as deepspeed or torchrun names it."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Whether this is the first process of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def log(*messages: str) -> None:
    """Print each message on a line of its own, on the first rank."""
    if is_main():
        for message in messages:
            tqdm.write(message)  # does not tear a progress bar
        sys.stdout.flush()


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar on the first rank; in a log file it writes a line only now and then."""
    if not sys.stderr.isatty():
        options = {"mininterval": 10, "delay": 5, **options}
    return tqdm(iterable, disable=not is_main(), dynamic_ncols=True, **options)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; every rank gets the sum."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def max_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the numbers of all ranks; every rank gets it."""
    numbers = torch.tensor(number, device=device)
    if dist.is_initialized():
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)


def from_main(value: T) -> T:
    """What the first rank holds, on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def first_of_all(value: T | None) -> T | None:
    """The first value of a rank that has one, in their order; every rank gets it."""
    values: list[T | None] = [value]
    if dist.is_initialized():
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return next((one for one in values if one is not None), None)


def gather_on_main(value: T) -> list[T]:
    """What each rank holds, in their order, on the first rank; nothing on the others."""
    if not dist.is_initialized():
        return [value]
    values = [value] * world_size() if is_main() else []
    dist.gather_object(value, values or None)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def first_on_node() -> Iterator[None]:
    """Run the body on each node's first process, then on the others, which find its files."""
    first = is_first_on_node()
    if not first:
        barrier()
    try:
        yield
    finally:
        if first:
            barrier()
