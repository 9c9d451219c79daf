"""Runs of a program in forks of a process that has imported everything.

Importing PyTorch, DeepSpeed and Transformers takes longer than most runs of the tests.

    pytest ── starts once ──> server: imports main.py and rw_eval.py
                                │ forks, for each run and each of its ranks
                                └──> rank 0, rank 1, ...: the program as `__main__`

What a launcher does itself, and variables that libraries read when they are imported, need
run_command.
"""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from unittest import mock

from tests.conftest import ENVIRONMENT, ROOT, TOO_LONG, free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "rw_eval", "tests.forking", "deepspeed", "peft"])


def run_program(
    program: str,
    *words,
    processes: int = 1,
    code: str = "",
    nodes: Sequence[Sequence] = (),
) -> subprocess.CompletedProcess:
    """Run main.py, rw_eval.py or another file of the project, as torchrun would start it.

    Args:
        program: path of the file, from the project's root.
        words: its flags.
        processes: number of ranks; the first one to fail ends the others.
        code: what each process runs first, to put something in the place of a function.
        nodes: if given, further flags of each rank, each the only one of a machine of its own.
    """
    processes = len(nodes) or processes
    port = free_port()
    running = []

    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        output.touch()
        errors.touch()

        for rank in range(processes):
            environment = {**os.environ, **ENVIRONMENT}
            if processes > 1:
                environment |= {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_RANK": "0" if nodes else str(rank),
                    "LOCAL_WORLD_SIZE": "1" if nodes else str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }

            given = [program, *words, *(nodes[rank] if nodes else ())]
            task = [str(word) for word in given], environment, (output, errors), code
            process = CONTEXT.Process(target=_run, args=task)
            # The first start also starts the server, which keeps folder and variables.
            with chdir(ROOT), mock.patch.dict(os.environ, ENVIRONMENT):
                process.start()
            running.append(process)

        exit_code = _wait(running)
        said = output.read_text(), errors.read_text()

    return subprocess.CompletedProcess([program, *words], exit_code, *said)


def _run(words: list[str], environment: dict, places: tuple[Path, Path], code: str) -> None:
    for number, place in enumerate(places, start=1):
        file = os.open(place, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)

    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    exec(code, {})
    runpy.run_path(words[0], run_name="__main__")


def _wait(processes: list) -> int:
    """0 once all have ended well, or the exit code of the first that did not."""
    running = {process.sentinel: process for process in processes}
    try:
        while running:
            ended = multiprocessing.connection.wait(running, TOO_LONG)
            assert ended, "a run that hangs"
            for process in [running.pop(sentinel) for sentinel in ended]:
                process.join()
                if process.exitcode:
                    return process.exitcode
        return 0
    finally:
        for process in processes:
            process.kill()
            process.join()
