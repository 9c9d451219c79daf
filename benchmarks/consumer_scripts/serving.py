"""A server in a process of its own, and requests to it."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(*words: str) -> Iterator[str]:
    """The address of `python -m WORDS --port ...`, once it listens.

    Raises:
        RuntimeError: it ended instead.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    words = (sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port))
    with subprocess.Popen(words, stdout=sys.stderr) as server:
        try:
            while not _listens(port):
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with code {server.returncode}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


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
