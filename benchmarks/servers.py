"""Those who take part in serving.py: servers of a reward model, each in processes of its own."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TextIO

from benchmarks.consumer_scripts.serving import end_group, free_port, listens
from benchmarks.consumers import (
    HAS_GPU,
    OPENRLHF,
    ROOT,
    SCRIPTS,
    VLLM,
    Environment,
    make_environment,
)

OURS = "rw_eval"
PEERS = ("vllm", "vllm-tuned", "openrlhf")

PATIENCE = 600  # seconds, until a server must be ready or have answered


@dataclass(frozen=True)
class Question:
    """A prompt and K answers.

    Attributes:
        prompt: plain text.
        answers: of plain text.
        leading, end: special tokens that stand before the prompt and after each answer.
    """

    prompt: str
    answers: Sequence[str]
    leading: str
    end: str

    @property
    def texts(self) -> list[str]:
        """Each answer with its prompt, as who takes whole texts must get it."""
        return [self.leading + self.prompt + answer + self.end for answer in self.answers]


@dataclass(frozen=True)
class Contestant:
    """A server that may take part.

    Attributes:
        name: for --servers.
        environment: in which it runs; None: this one.
        words: its command line behind `python`, but for address and port.
        path: where it answers.
        ask: makes the body of a request.
        read: finds the scores in an answer.
        variables: of its processes, beside those of the environment.
        setting: for the table.
    """

    name: str
    environment: Environment | None
    words: Sequence[str]
    path: str
    ask: Callable[[Question], dict]
    read: Callable[[dict], list[float]]
    variables: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""

    def python(self, environments: Path) -> Path:
        """The interpreter that runs it; its environment is made if it is not there."""
        if self.environment is None:
            return Path(sys.executable)
        return make_environment(self.environment, environments / self.environment.name)


def contestants(folder: Path) -> list[Contestant]:
    """All of them, in fp32; ours first.

    vLLM takes part as it comes and, on a CPU, with the settings that are fastest there.

    Args:
        folder: of the model.
    """
    model = str(folder)
    ours = Contestant(
        OURS,
        None,
        [str(ROOT / "rw_eval.py"), "--model_name_or_path", model, "--dtype", "fp32"],
        "/score",
        lambda question: {"prompt": question.prompt, "responses": question.answers},
        lambda answer: answer["scores"],
    )
    vllm = Contestant(
        "vllm",
        VLLM,
        [
            *("-m", "vllm.entrypoints.openai.api_server", "--model", model, "--runner", "pooling"),
            *("--dtype", "float32", "--enable-prefix-caching"),
        ],
        "/classify",
        lambda question: {"input": question.texts, "use_activation": False},
        lambda answer: [one["probs"][0] for one in answer["data"]],
        {"VLLM_CPU_KVCACHE_SPACE": "4"},
        "as it comes",
    )
    # Blocks of its own 128 tokens share little of a prompt, 16 are slow on a CPU; and by itself it
    # leaves one core to its other processes, which have little to do.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    tuned = replace(
        vllm,
        name="vllm-tuned",
        words=[*vllm.words, "--block-size", "32"],
        variables={**vllm.variables, "VLLM_CPU_OMP_THREADS_BIND": cores},
        setting="blocks of 32, all cores",
    )
    openrlhf = Contestant(
        "openrlhf",
        OPENRLHF,
        [
            *(str(SCRIPTS / "openrlhf_fp32.py"), "--reward.model_name_or_path", model),
            *("--ds.attn_implementation", "sdpa"),
            # A larger batch only pads on a CPU.
            *(() if HAS_GPU else ("--batch_size", "1")),
        ],
        "/get_reward",
        lambda question: {"query": question.texts},
        lambda answer: answer["rewards"],
    )
    return [ours, vllm, openrlhf] if HAS_GPU else [ours, vllm, tuned, openrlhf]


class Server:
    """A contestant's processes; they stand still unless it is their turn.

    Args:
        contestant: whose.
        environments: folder of environments.
        log: takes what it writes.

    Raises:
        RuntimeError: it ended before it was ready, or was not ready in time.
    """

    def __init__(self, contestant: Contestant, environments: Path, log: TextIO):
        self.contestant = contestant
        python = contestant.python(environments)
        self.label = label(contestant, python)
        self.port = free_port()

        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        variables: Mapping[str, str] = {}
        if contestant.environment is None:
            place = ["--serve", f"127.0.0.1:{self.port}"]
        else:
            variables = contestant.environment.variables

        self.process = subprocess.Popen(
            [python, *contestant.words, *place],
            env={**os.environ, "HF_HUB_OFFLINE": "1", **variables, **contestant.variables},
            stdout=log,
            stderr=log,
            start_new_session=True,  # signals reach its children, too
        )
        try:
            self._wait()
        except BaseException:
            end_group(self.process)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self.process)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    @property
    def name(self) -> str:
        """Of the contestant."""
        return self.contestant.name

    def connect(self) -> http.client.HTTPConnection:
        """A connection for requests, which stays open from one to the next."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def score(self, connection: http.client.HTTPConnection, body: bytes) -> list[float]:
        """The scores of a request; RuntimeError if it is refused."""
        headers = {"Content-Type": "application/json"}
        connection.request("POST", self.contestant.path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{self.contestant.name} answers {response.status}: {text[:300]!r}")
        return self.contestant.read(json.loads(text))

    def prefix_cache_hits(self) -> float | None:
        """The share of all tokens that its prefix cache had; None if it tells of no such cache."""
        with self.turn():
            connection = self.connect()
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        found = dict(re.findall(r"^vllm:prefix_cache_(queries|hits)_total\S* (\S+)$", text, re.M))
        return float(found["hits"]) / float(found["queries"]) if found else None

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                code = self.process.returncode
                raise RuntimeError(f"{self.contestant.name} ended with code {code}")
            if listens(self.port):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self.contestant.name} was not ready after {PATIENCE} seconds")


def label(contestant: Contestant, python: Path) -> str:
    """What it is called in the table, with its version."""
    if contestant.environment is None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return f"rw_eval.py --serve {project['version']}"

    name = contestant.environment.distribution
    code = f"from importlib.metadata import version; print(version({name!r}))"
    version = subprocess.check_output([python, "-c", code], text=True).strip()
    return f"{name} {version}" + (f", {contestant.setting}" if contestant.setting else "")
