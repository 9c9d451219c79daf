"""Servers in processes of their own, and requests to them; without packages, for all consumers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def end_group(server: subprocess.Popen) -> None:
    """End a process and its children, also those that it left behind or that stand still.

    Args:
        server: started with start_new_session=True.
    """
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGCONT)
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def served(*words: str) -> Iterator[str]:
    """The address of `python -m WORDS --port ...`, once it listens.

    Raises:
        RuntimeError: it ended instead.
    """
    port = free_port()
    words = (sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port))
    with subprocess.Popen(words, stdout=sys.stderr, start_new_session=True) as server:
        try:
            while not listens(port):
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with code {server.returncode}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            end_group(server)


def post(address: str, body: dict) -> dict:
    """The JSON that a server answers.

    Raises:
        RuntimeError: it refuses; the message is what it says.
    """
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
