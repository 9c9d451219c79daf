"""rw_eval.py --serve as people run it: flags, signals, processes; the protocols are in serving/."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import uvicorn

import rw_eval
from tests.conftest import free_port, make_pairs, save_language_model, train_opt_tokenizer
from tests.forking import run_program
from utils.data.comparison import Comparison
from utils.evaluation import settings
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import parse_address, parse_evaluation_arguments
from utils.model import pretrained
from utils.serving.server import Server
from utils.serving.sockets import listen, reserve
from utils.settings import InputError

CLIENTS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a reward model with random weights."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = train_opt_tokenizer()
    base = str(save_language_model(folder / "base", tokenizer))
    torch.manual_seed(0)
    model, _ = pretrained.load_model(base, pretrained.load_config(base), tokenizer, new_head=True)
    text = {"end_token": "</s>", "max_seq_len": 96}
    weights, statistics = model.model.state_dict(), {"mean": 0.25, "std": 2.0}
    pretrained.save_model(
        model, weights, tokenizer, text, str(folder / "model"), score_statistics=statistics
    )
    return folder / "model"


def run_server(*flags, clients, **options):
    """Run a server, as run_program does, and beside it clients, given a function that asks it.

    Returns:
        How the server ended, and what the clients returned.
    """
    port, ended = free_port(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(clients, lambda *request: ask(port, ended, *request))
        try:
            done = run_program("rw_eval.py", *flags, "--serve", port, **options)
        finally:
            ended.set()
    assert done.returncode == 0, done.stderr
    assert f"at http://127.0.0.1:{port} " in done.stdout
    return done, answers.result()


def ask(port, ended, path, body=None):
    """The answer of a server that may still be loading, if it has not ended."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while True:
        try:
            connection.connect()
            break
        except ConnectionRefusedError:
            assert not ended.wait(0.1)

    headers = {"Content-Type": "application/json"}
    connection.request("POST" if body else "GET", path, body and json.dumps(body), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    answer["connection"] = response.headers["Connection"]
    connection.close()
    return answer


def rows():
    """A prompt and two answers for each client."""
    return [
        {"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"]]}
        for pair in make_pairs(CLIENTS)
    ]


# The model waits until all clients wait, and sends the signal then.
STOPPED = """
import os, time
from utils.serving.queue import ScoreQueue
init = ScoreQueue.__init__
def held_init(queue, scorer, max_answers):
    init(queue, scorer, max_answers)
    score_rows = scorer.score_rows
    def hold(rows):
        while queue.waiting < answers:
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        scorer.score_rows = score_rows
        score_rows(rows)
    scorer.score_rows = hold
ScoreQueue.__init__ = held_init
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(model, monkeypatch, number):
    """Flags of scoring hold for the server too."""
    flags = ("--model_name_or_path", model, "--normalize", "--batch_layout", "padded")

    def clients(send):
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(lambda row: send("/score", row), rows()))

    code = f"answers, number = {2 * CLIENTS}, {int(number)}\n{STOPPED}"
    done, answers = run_server(*flags, clients=clients, code=code)
    assert done.stdout.endswith("stopped; all that was accepted is answered\n")

    scorer = load_scorer(monkeypatch, *flags)
    for row, answer in zip(rows(), answers, strict=True):
        (expected,) = scorer([Comparison(row["prompt"], row["responses"], [0, 0], "test")])
        assert answer["connection"] == "close"
        assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_a_second_interrupt_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    server = Server(uvicorn.Config(app=None))
    try:
        server.handle_exit(signal.SIGINT, None)
        assert server.should_exit and not server.force_exit
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the next one ends the process
    finally:
        signal.signal(signal.SIGINT, before)


def load_scorer(monkeypatch, *flags):
    """What rw_eval.py scores with, given these flags and a prompt."""
    scorers = []
    flags = (*flags, "--prompt", "Q", "--response", "a")
    monkeypatch.setattr(rw_eval, "score_prompts", lambda args, scorer, _: scorers.append(scorer))
    rw_eval.main(parse_evaluation_arguments(list(map(str, flags))))
    return scorers[0]


# Says which process answers.
NUMBERED = """
import os
from utils.serving.endpoints import Endpoints
async def health(endpoints) -> dict:
    return {"process": os.getpid()}
Endpoints.health = health
"""


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="a port has one process here")
def test_processes_share_a_port(model):

    def clients(send):
        seen = set()
        while len(seen) < 2:
            seen.add(send("/health")["process"])
        for process in seen:
            os.kill(process, signal.SIGTERM)

    flags = ("--model_name_or_path", model)
    done, _ = run_server(*flags, clients=clients, processes=2, code=NUMBERED)
    assert done.stdout.count("serving") == 1


def refuse(capsys, *words):
    """What is said of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        parse_evaluation_arguments(["--model_name_or_path", "m", *map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "a", "--response", "b"),
        ("--interactive",),
        ("--data_path", "a.jsonl"),
        ("--benchmark", "llmbar"),
        ("--compare", "a", "b"),
    ],
)
def test_a_server_scores_nothing_else(capsys, words):
    said = refuse(capsys, "--serve", 8000, *words)
    assert re.search(r"(--serve and|and --serve).* exclude each other", said)


@pytest.mark.parametrize("address", ["here", "localhost", "a:b", "80000", "::", "-1", "1.5", ""])
def test_an_address_without_a_port(capsys, address):
    said = refuse(capsys, f"--serve={address}")
    assert f"{address!r} does not end with a port; expected [HOST:]PORT" in said


def test_addresses():
    assert parse_address("0") == ("127.0.0.1", 0)
    assert parse_address("0.0.0.0:8000") == ("0.0.0.0", 8000)
    assert parse_address("[::1]:8000") == ("::1", 8000)


def test_a_package_that_is_missing(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        settings, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    assert "--serve needs uvicorn: run" in refuse(capsys, "--serve", 8000)


@pytest.mark.parametrize("token", ["", " ", "t\n"])
def test_a_token_that_no_client_can_send(capsys, monkeypatch, token):
    monkeypatch.setenv("REWARD_SERVER_TOKEN", token)
    assert "REWARD_SERVER_TOKEN is empty, or has white" in refuse(capsys, "--serve", 8000)


def test_a_port_in_use_is_found_before_the_model_is_loaded(model, monkeypatch):
    monkeypatch.setattr(pretrained, "load_model", lambda *args, **options: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["--model_name_or_path", model, "--serve", port]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be had.*--serve"):
            rw_eval.main(parse_evaluation_arguments(list(map(str, words))))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_here(host):
    with pytest.raises(InputError, match=f"port 0 of {host} cannot be had"):
        reserve(settings.Address(host, 0))


def test_a_port_that_was_lost_meanwhile():
    """Two that load at the same time may both be bound."""
    first = reserve(settings.Address("127.0.0.1", 0))
    second = reserve(settings.Address(*first.getsockname()))
    with first, second:
        listen(first)
        with pytest.raises(InputError, match="cannot be had"):
            listen(second)


def test_the_scorer_is_the_one_of_files(model, monkeypatch):
    words = ("--model_name_or_path", model, "--serve", 0)
    served = []
    monkeypatch.setattr("utils.serving.server.serve", lambda *args: served.append(args))
    rw_eval.main(parse_evaluation_arguments(list(map(str, words))))
    ((args, scorer, listener),) = served
    listener.close()
    assert isinstance(scorer, Scorer)
    assert args.batch_layout == "packed"
