"""The three protocols over HTTP, and what a server must withstand."""

import http.client
import json
import math
import re
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks.consumer_scripts.documented import trl_reward
from tests.conftest import TEXTS, bot, make_pairs, save_language_model, train_tokenizer, user
from tests.data.chat_styles import CHATML
from tests.data.test_whole_texts import SPECIALS
from utils.data.comparison import Comparison
from utils.data.packing import make_collator
from utils.data.tokenization import ComparisonTokenizer, TextSettings
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import Address, parse_evaluation_arguments
from utils.model import pretrained
from utils.serving import gate
from utils.serving.server import make_server
from utils.serving.sockets import reserve

LIMIT = 64  # tokens


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Reward models with random weights: one for texts, one with a chat template."""
    folder = tmp_path_factory.mktemp("serving")
    plain = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizers = {
        "texts": train_tokenizer(SPECIALS, leading="<s>", eos_token="<end>", **plain),
        "chat": train_tokenizer(SPECIALS, eos_token="<|im_end|>", **plain),
    }
    tokenizers["chat"].chat_template = CHATML

    scorers = {}
    for name, tokenizer in tokenizers.items():
        path = str(save_language_model(folder / name, tokenizer, "llama"))
        config = pretrained.load_config(path)
        torch.manual_seed(0)
        model, _ = pretrained.load_model(path, config, tokenizer, layout="packed", new_head=True)
        encoder = ComparisonTokenizer(tokenizer, TextSettings(tokenizer.eos_token, LIMIT))
        collate = make_collator(encoder, "packed")
        scorers[name] = Scorer(model.eval(), encoder, collate, torch.device("cpu"), packed=True)
    return scorers


@contextmanager
def serving(scorer, *flags):
    """A server in a thread; yields it and its port."""
    args = parse_evaluation_arguments(
        ["--model_name_or_path", "a/model", "--serve", "0", *map(str, flags)]
    )
    server = make_server(args, scorer)
    listener = reserve(Address("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield server, port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=["texts", "chat"])
def served(request, scorers):
    """A scorer and the port where it is served."""
    scorer = scorers[request.param]
    with serving(scorer) as (_, port):
        yield scorer, port


def ask(port, path, body=None, *, headers=None):
    """The status of the answer, what is in it, and its headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer, response.headers


def score(port, path, body):
    status, answer, _ = ask(port, path, body)
    assert status == 200, answer
    return answer


def expected_scores(scorer, prompt, responses, tools=None):
    comparison = Comparison(prompt, responses, [0] * len(responses), "test", tools=tools)
    return scorer([comparison])[0]["scores"]


def equal(scores, expected):
    assert [s is None for s in scores] == [s is None for s in expected]
    assert [s or 0 for s in scores] == pytest.approx([s or 0 for s in expected], abs=1e-5)


PROMPTS = [
    "Human: What is a lighthouse? Assistant:",
    [user("What is a lighthouse?")],
    [{"role": "system", "content": "Be short."}, user("Why?"), bot("Because."), user("So?")],
]
RESPONSES = [" A tower.", " It shows ships where the coast is.", " I'm not sure.", "", " x" * 100]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("count", [1, 5])
def test_score(served, prompt, count):
    scorer, port = served
    answer = score(port, "/score", {"prompt": prompt, "responses": RESPONSES[:count]})
    equal(answer["scores"], expected_scores(scorer, prompt, RESPONSES[:count]))
    problems = [None, None, None, "empty answer", "longer than max_seq_len"]
    assert answer["problems"] == problems[:count]
    assert answer["cut"] == [0] * count
    assert answer["unrendered"] is None


def test_answers_of_messages(served):
    scorer, port = served
    prompt = [user("What?"), bot("Why?"), user("So.")]
    responses = [[bot("A tower.")], [bot("One."), user("And?"), bot("Two.")]]
    answer = score(port, "/score", {"prompt": prompt, "responses": responses})
    equal(answer["scores"], expected_scores(scorer, prompt, responses))
    as_parts = [{"role": "assistant", "content": [{"type": "text", "text": "A tower."}]}]
    answer = score(port, "/score", {"prompt": prompt, "responses": [as_parts]})
    equal(answer["scores"], expected_scores(scorer, prompt, ["A tower."]))


def test_what_is_cut_and_what_is_not_rendered_is_said(served):
    scorer, port = served
    prompt, tools = [user("What is it? " * 30)], [{"name": "find", "parameters": {}}]
    answer = score(port, "/score", {"prompt": prompt, "responses": ["A tower."], "tools": tools})
    equal(answer["scores"], expected_scores(scorer, prompt, ["A tower."], tools))
    assert answer["cut"][0] > 0
    has_template = bool(scorer.encoder.tokenizer.chat_template)
    assert answer["unrendered"] == ("tools" if has_template else None)


def rendered(scorer, prompt, answer):
    """What a policy has read and written: the query of a conversation and its prompt."""
    tokenizer = scorer.encoder.tokenizer
    if isinstance(prompt, list):
        options = {"tokenize": False, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(prompt, **options)
    return prompt + answer + tokenizer.eos_token, prompt


def test_openrlhf(served):
    """Its agents send one query a request, with skip_special_tokens off; others send many."""
    scorer, port = served
    chat = bool(scorer.encoder.tokenizer.chat_template)
    prompts = PROMPTS[1:] if chat else PROMPTS[:1]
    conversations = [(prompt, response) for prompt in prompts for response in RESPONSES[:3]]
    both = [rendered(scorer, *conversation) for conversation in conversations]
    expected = [expected_scores(scorer, prompt, [r])[0] for prompt, r in conversations]

    for (query, prompt), one in zip(both, expected, strict=True):
        body = {"query": [query], "prompts": [prompt], "labels": [None]}
        answer = score(port, "/get_reward", body)
        equal(answer["rewards"], [one])
        assert answer["scores"] == answer["rewards"]
        logs = answer["extra_logs"]
        assert logs == {"end_token_appended": 0, "prompt_tokens_cut": 0, "not_scored": 0}

    queries, prompts = map(list, zip(*both, strict=True))
    for known in (prompts, prompts[::-1], None):  # most begin with another prompt, where reversed
        equal(score(port, "/get_reward", {"query": queries, "prompts": known})["rewards"], expected)

    end = scorer.encoder.settings.end_token
    open_ended = [queries[0].removesuffix(end), queries[1], " x" * 100]
    answer = score(port, "/get_reward", {"query": open_ended, "prompts": []})
    equal(answer["rewards"], [*expected[:2], None])
    assert answer["extra_logs"]["end_token_appended"] == pytest.approx(2 / 3)
    assert answer["extra_logs"]["not_scored"] == pytest.approx(1 / 3)


def test_trl(served):
    """By the function that the page shows."""
    scorer, port = served
    reward = trl_reward(f"http://127.0.0.1:{port}")
    prompts = [prompt for prompt in PROMPTS for _ in RESPONSES]
    expected = [expected_scores(scorer, prompt, RESPONSES) for prompt in PROMPTS]
    equal(reward(prompts, RESPONSES * len(PROMPTS)), sum(expected, []))


def test_vllm(served):
    scorer, port = served
    chat = bool(scorer.encoder.tokenizer.chat_template)
    prompt = PROMPTS[chat]
    texts = [rendered(scorer, prompt, r)[0] for r in RESPONSES[:3]]
    expected = expected_scores(scorer, prompt, RESPONSES[:3])

    answer = score(port, "/classify", {"model": "a/model", "input": texts})
    assert answer["object"] == "list"
    assert answer["model"] == "a/model"
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert all(one["num_classes"] == 1 for one in answer["data"])
    equal([one["probs"][0] for one in answer["data"]], expected)
    lengths = [len(scorer.encoder.tokenizer(text).input_ids) for text in texts]
    assert answer["usage"]["total_tokens"] == sum(lengths)

    one = score(port, "/classify", {"input": texts[0]})
    equal(one["data"][0]["probs"], expected[:1])
    messages = [*PROMPTS[2], bot("A tower.")]
    (one,) = score(port, "/classify", {"messages": messages})["data"]
    equal(one["probs"], expected_scores(scorer, PROMPTS[2], ["A tower."]))
    (one,) = score(port, "/classify", {"input": " x" * 100})["data"]
    assert (one["probs"], one["problem"]) == ([None], "longer than max_seq_len")
    assert ask(port, "/classify", {"model": "other", "input": "a"})[0] == 404


GOOD = {"prompt": "Q", "responses": ["a"]}
CONVERSATION = {"prompt": [user("Q")], "responses": ["a"]}
BAD = {
    "no JSON": ("/score", b"{", "no JSON"),
    "no UTF-8": ("/score", b"\xff\xfe", ""),
    "nested": ("/score", b"[" * 200_000, ""),
    "a list": ("/score", [], "expected a JSON object"),
    "null": ("/score", b"null", "expected a JSON object"),
    "no responses": ("/score", {"prompt": "Q"}, "responses: Field required"),
    "none": ("/score", {"prompt": "Q", "responses": []}, "responses: .* at least 1"),
    "a number": ("/score", {"prompt": 3, "responses": [1]}, "^prompt: .* string or .* list$"),
    "no message": ("/score", {"prompt": ["Q"], "responses": ["a"]}, r"^prompt\.0: .* dictionary$"),
    "unknown": ("/score", {**GOOD, "temperature": 1}, "temperature"),
    "NUL": ("/score", {"prompt": "a\0", "responses": ["a"]}, "NUL byte"),
    "surrogate": ("/score", {"prompt": "a\ud800", "responses": ["a"]}, "lone surrogate"),
    "too long": ("/score", {"prompt": "a" * 1_000_001, "responses": ["a"]}, "at most 1000000"),
    "too many": ("/score", {"prompt": "Q", "responses": ["a"] * 1001}, "at most 1000"),
    "too much in all": (
        "/score",
        {"prompt": "Q " * 10_000, "responses": ["a"] * 1000},
        "characters with the prompt before each; expected at most 8,388,608",
    ),
    "mixed": ("/score", {"prompt": "Q", "responses": [[bot("a")]]}, "the prompt is text"),
    "no content": ("/score", {"prompt": [{"role": "user"}], "responses": ["a"]}, "content"),
    "an image": (
        "/score",
        {"prompt": [user([{"type": "image_url", "url": "file:///x"}])], "responses": ["a"]},
        "expected parts of the type text",
    ),
    "tools": ("/score", {**GOOD, "tools": ["find"]}, "tools"),
    "tools of a text": ("/score", {**GOOD, "tools": [{"name": "find"}]}, "no place for tools"),
    "NaN": ("/score", {**CONVERSATION, "tools": [{"x": math.nan}]}, "finite"),
    "no queries": ("/get_reward", {"query": []}, "query"),
    "blank": ("/get_reward", {"query": [" "]}, "query 1 is empty"),
    "prompts": ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, "1 queries but 2 prompts"),
    "both": ("/classify", {"input": "a", "messages": [user("a"), bot("b")]}, "either"),
    "neither": ("/classify", {}, "either"),
    "token ids": ("/classify", {"input": [1, 2]}, r"^input\.0: "),
    "too many inputs": ("/classify", {"input": ["a"] * 1001}, "^input: .* at most 1000"),
    "sigmoid": ("/classify", {"input": "a", "use_activation": True}, "use_activation"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(served, name):
    path, body, message = BAD[name]
    _, port = served
    status, answer, _ = ask(port, path, body)
    assert status == 422, answer
    assert re.search(message, answer["detail"]), answer
    assert len(answer["detail"]) < 300


def test_what_the_chat_template_refuses(scorers, monkeypatch):
    scorer = scorers["chat"]
    template = "{{ raise_exception('roles must alternate') }}"
    monkeypatch.setattr(scorer.encoder.tokenizer, "chat_template", template)
    with serving(scorer) as (_, port):
        status, answer, _ = ask(port, "/score", {"prompt": [user("Q")], "responses": ["a"]})
    assert (status, answer["detail"]) == (422, "chat template: roles must alternate")


def test_paths_and_methods(served):
    _, port = served
    assert ask(port, "/nothing", GOOD)[0] == 404
    assert ask(port, "/score")[0] == 405


def test_health(served):
    scorer, port = served
    _, answer, _ = ask(port, "/health")
    assert answer["model"] == "a/model"
    assert answer["text"]["end_token"] == scorer.encoder.settings.end_token
    assert answer["text"]["max_seq_len"] == LIMIT
    assert answer["limits"]["max_queue"] == 8192
    assert answer["checks"] is None  # in no folder


def test_a_token(scorers, monkeypatch):
    monkeypatch.setenv("REWARD_SERVER_TOKEN", "sesame ü")
    with serving(scorers["texts"]) as (_, port):
        assert ask(port, "/health")[0] == 200
        for given in (None, "Bearer open", "sesame ü", "Bearer sesame ", "bearer"):
            headers = {"Authorization": given.encode()} if given else {}
            status, _, said = ask(port, "/score", GOOD, headers=headers)
            assert (status, said["WWW-Authenticate"]) == (401, "Bearer")
        for given in ("Bearer sesame ü", "bearer sesame ü"):
            headers = {"Authorization": given.encode()}
            assert ask(port, "/score", GOOD, headers=headers)[0] == 200


def raw(port, *parts):
    """Send parts of a request that never ends; returns the answer, behind which nothing comes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while received := connection.recv(4096):
            answer += received
    return answer


HEAD = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_a_body_that_is_too_large(served, monkeypatch):
    _, port = served
    monkeypatch.setattr(gate, "MAX_BODY", 1000)
    monkeypatch.setattr(gate, "LINGER_SECONDS", 0.05)
    assert raw(port, HEAD + b"Content-Length: 1001\r\n\r\n").startswith(b"HTTP/1.1 413")
    chunk = b"190\r\n" + b" " * 400 + b"\r\n"
    chunked = raw(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
    assert chunked.startswith(b"HTTP/1.1 413")
    assert ask(port, "/score", GOOD)[0] == 200


@pytest.mark.parametrize("path", ["/score", "/nothing"])
def test_who_sends_too_much_before_reading_gets_the_answer(served, path):
    _, port = served
    body = b" " * 40_000_000
    assert ask(port, path, body)[0] == (413 if path == "/score" else 404)


def test_a_body_that_is_too_slow(served, monkeypatch):
    _, port = served
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    assert raw(port, HEAD + b"Content-Length: 10\r\n\r\n{").startswith(b"HTTP/1.1 408")


class Held:
    """A model that waits until it may go on."""

    def __init__(self, model):
        self.model, self.batches = model, []
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.batches.append(len(batch.end_index))
        self.entered.set()
        self.go.wait()
        return self.model(batch)


@pytest.fixture
def held(scorers, monkeypatch):
    """A scorer whose model is held."""
    scorer = scorers["texts"]
    model = Held(scorer.model)
    monkeypatch.setattr(scorer, "model", model)
    yield scorer
    model.go.set()


def in_thread(answers, *args):
    thread = threading.Thread(target=lambda: answers.append(ask(*args)))
    thread.start()
    return thread


def test_a_full_queue_refuses_at_once(held):
    answers = []
    with serving(held, "--max_queue", 2) as (_, port):
        thread = in_thread(answers, port, "/score", GOOD)
        held.model.entered.wait()
        status, answer, headers = ask(port, "/score", {"prompt": "Q", "responses": ["a", "b"]})
        assert (status, headers["Retry-After"]) == (429, "1")
        assert "--max_queue" in answer["detail"]
        held.model.go.set()
        thread.join()
    assert answers[0][0] == 200


def test_the_work_of_a_client_that_went_away_is_dropped(held):
    answers = []
    with serving(held) as (server, port):
        thread = in_thread(answers, port, "/score", GOOD)
        held.model.entered.wait()
        body = json.dumps({"prompt": "Q", "responses": ["b", "c"]}).encode()
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while ask(port, "/health")[1]["waiting"] < 3:
            time.sleep(0.01)
        gone.close()
        while len(server.server_state.connections) > 1:
            time.sleep(0.01)
        held.model.go.set()
        thread.join()
        while ask(port, "/health")[1]["waiting"]:
            time.sleep(0.01)
    assert answers[0][0] == 200
    assert held.model.batches == [1]


@pytest.mark.parametrize("value", [math.nan, "CUDA out of memory. Tried to allocate", "broken"])
def test_an_error_of_the_model_is_answered_and_the_next_request_is_scored(
    scorers, monkeypatch, value, capsys
):
    scorer = scorers["texts"]
    model = scorer.model

    def fail(batch):
        if isinstance(value, str):
            raise RuntimeError(value)
        return torch.full((len(batch.end_index),), value)

    with serving(scorer) as (_, port):
        monkeypatch.setattr(scorer, "model", fail)
        status, answer, _ = ask(port, "/score", GOOD)
        assert status == 500
        assert "Traceback" not in json.dumps(answer)
        assert "broken" not in answer["detail"]
        monkeypatch.setattr(scorer, "model", model)
        assert ask(port, "/score", GOOD)[0] == 200
    capsys.readouterr()


def test_many_clients_at_once_get_their_own_scores(served):
    scorer, port = served
    pairs = make_pairs(40)
    expected = [expected_scores(scorer, p["prompt"], [p["chosen"], *TEXTS[:2]]) for p in pairs]
    answers = {}

    def client(numbers):
        for number in numbers:
            body = {"prompt": pairs[number]["prompt"]}
            body["responses"] = [pairs[number]["chosen"], *TEXTS[:2]]
            answers[number] = score(port, "/score", body)["scores"]

    threads = [threading.Thread(target=client, args=[range(i, 40, 8)]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, scores in enumerate(expected):
        equal(answers[number], scores)
