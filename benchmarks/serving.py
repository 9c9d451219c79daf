"""Answers a second of this project's server, vLLM's and OpenRLHF's, side by side in one run.

    python benchmarks/serving.py --model_name_or_path output --data_path transcripts.jsonl

Each server has the same model in fp32, and they take turns: while one of them answers, the others
stand still. In a turn it gets requests of one prompt and K answers each, from clients who ask again
as soon as they are answered. No prompt comes twice, so that what a server computes once is the
prompt of a request, not what it has seen before. All get the same texts, and the table says by how
much their scores differ.

The others' environments are those of consumers.py, made at the first run. The data must be plain
text whose answers begin with a space, as those of hh-rlhf do: servers that take whole texts find
the same tokens then.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.servers import OURS, PEERS, Question, Server, contestants
from benchmarks.throughput import machine
from utils.data.sources.files import parse_row
from utils.data.sources.names import parse_place
from utils.data.tokenization import leading_text
from utils.evaluation.rows import open_source, windows
from utils.output.tables import markdown_grid


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Time servers of a reward model, side by side in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_name_or_path", type=Path, required=True, help="folder that main.py saved")
    add("--data_path", required=True, help="comparisons of plain text, as rw_eval.py takes them")
    add("--prompt_tokens", type=int, nargs=2, default=[100, 200], help="least and most of a prompt")
    add("--answer_tokens", type=int, nargs=2, default=[50, 100], help="least and most of an answer")

    add("--answers", type=int, nargs="+", default=[1, 8, 64], help="K: answers of a request")
    add("--requests", type=int, nargs="+", default=[32, 12, 3], help="of a turn, for each K")
    add("--clients", type=int, default=16, help="who ask at once, if there are as many requests")
    add("--rounds", type=int, default=3, help="turns of each server for each K")

    add("--peers", nargs="*", choices=PEERS, default=PEERS, help="who else takes part")
    add("--environments", type=Path, default=Path("output/environments"), help="where they are")
    add("--log", type=Path, default=Path(os.devnull), help="takes what the servers write")
    add("--output", type=Path, help="JSON file for all figures")
    return parser.parse_args()


@dataclass(frozen=True)
class Turn:
    """What a server did in a turn.

    Attributes:
        name: of the server.
        answers: K.
        seconds: from the first request to the last answer.
        latencies: seconds of each request.
        scores: of each request K.
    """

    name: str
    answers: int
    seconds: float
    latencies: list[float]
    scores: list[list[float]]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers * len(self.latencies) / self.seconds


def main(args: argparse.Namespace) -> None:
    """Start all servers, let them answer in turn, print the table."""
    folder = args.model_name_or_path.resolve()
    texts = Texts(args, folder)

    # Whoever stops this program stops the servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    with ExitStack() as stack:
        log = stack.enter_context(args.log.open("w"))
        servers = []
        for contestant in contestants(folder):
            if contestant.name in (OURS, *args.peers):
                print(f"{contestant.name} starts ...", file=sys.stderr, flush=True)
                server = Server(contestant, args.environments.resolve(), log)
                servers.append(stack.enter_context(server))
                for answers in args.answers:
                    take_turn(server, texts.draw(1, answers), 1)  # to warm up

        turns = take_turns(args, servers, texts)
        labels = {server.name: server.label for server in servers}
        hits = {server.name: server.prefix_cache_hits() for server in servers}
    report(args, turns, labels, hits)


class Texts:
    """Draws questions from comparisons: each prompt once, with answers to any of them.

    Args:
        args: the command line.
        folder: of the model, whose tokenizer counts.
    """

    def __init__(self, args: argparse.Namespace, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.leading = leading_text(tokenizer)
        self.end = config["reward_settings"]["end_token"]

        comparisons = [
            window.read(parse_row(row))
            for window in windows([open_source(parse_place(args.data_path))], 1000)
            for row in window.rows
        ]
        prompts = [one.prompt for one in comparisons]
        answers = [answer for one in comparisons for answer in one.responses]
        self.prompts = fitting(tokenizer, prompts, *args.prompt_tokens)
        self.answers = fitting(tokenizer, answers, *args.answer_tokens)

        needed = len(args.answers) * (1 + len(args.peers)) + args.rounds * sum(args.requests)
        if len(self.prompts) < needed or len(self.answers) < max(args.answers):
            raise SystemExit(
                f"{args.data_path}: {len(self.prompts)} prompts and {len(self.answers)} answers "
                f"of such lengths; expected {needed} and {max(args.answers)}"
            )
        self.random = random.Random(0)
        self.random.shuffle(self.prompts)

    def draw(self, requests: int, answers: int) -> list[Question]:
        """Questions that nobody had yet."""
        return [
            Question(
                self.prompts.pop(),
                self.random.sample(self.answers, answers),
                self.leading,
                self.end,
            )
            for _ in range(requests)
        ]


def fitting(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], least: int, most: int
) -> list[str]:
    """Different texts of so many tokens."""
    texts = list(dict.fromkeys(texts))
    tokens = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [text for text, number in zip(texts, tokens, strict=True) if least <= number <= most]


def take_turns(args: argparse.Namespace, servers: Sequence[Server], texts: Texts) -> list[Turn]:
    """All rounds; the servers' order changes from one to the next."""
    turns = []
    for number in range(args.rounds):
        for answers, requests in zip(args.answers, args.requests, strict=True):
            questions = texts.draw(requests, answers)
            for server in servers[:: -1 if number % 2 else 1]:
                turn = take_turn(server, questions, args.clients)
                turns.append(turn)
                print(
                    f"round {number + 1}, K = {answers}: {turn.name} {turn.rate:.1f} answers/s",
                    file=sys.stderr,
                    flush=True,
                )
    return turns


def take_turn(server: Server, questions: Sequence[Question], clients: int) -> Turn:
    """Let a server answer, while the others stand still."""
    bodies = [json.dumps(server.contestant.ask(question)).encode() for question in questions]
    shares = [bodies[client::clients] for client in range(clients)]

    with server.turn(), ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        parts = list(pool.map(partial(ask, server), shares))
        seconds = time.perf_counter() - started

    answered = [parts[i % clients][i // clients] for i in range(len(bodies))]
    latencies, scores = zip(*answered, strict=True)
    answers = len(questions[0].answers)
    return Turn(server.name, answers, seconds, list(latencies), list(scores))


def ask(server: Server, bodies: Sequence[bytes]) -> list[tuple[float, list[float]]]:
    """What a client does: one request after the other, of each the seconds and the scores."""
    connection = server.connect()
    answered = []
    for body in bodies:
        started = time.perf_counter()
        scores = server.score(connection, body)
        answered.append((time.perf_counter() - started, scores))
    connection.close()
    return answered


def summarize(turns: Sequence[Turn], ours: Sequence[Turn]) -> dict:
    """The figures of one server for one K, beside ours for the same questions."""
    rates = [turn.rate for turn in turns]
    ratios = [own.rate / turn.rate for own, turn in zip(ours, turns, strict=True)]
    p50, p99 = np.percentile([one for turn in turns for one in turn.latencies], [50, 99])
    scores, expected = (
        np.concatenate([np.ravel(t.scores) for t in side]) for side in (turns, ours)
    )
    return {
        "server": turns[0].name,
        "answers": turns[0].answers,
        "answers_per_second": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "ours_is_faster_by": statistics.median(ratios),
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99,
        "scores_differ_by": float(np.abs(scores - expected).max()),
    }


def report(args: argparse.Namespace, turns: Sequence[Turn], labels: dict, hits: dict) -> None:
    """Print the medians as a Markdown table; write everything to --output.

    Args:
        args: the command line.
        turns: of all servers.
        labels: what each server is called.
        hits: the share of tokens that a server found in its prefix cache; None if it has none.
    """
    groups = {
        (name, answers): [t for t in turns if (t.name, t.answers) == (name, answers)]
        for answers in args.answers
        for name in labels
    }
    summary = [summarize(group, groups[OURS, k]) for (_, k), group in groups.items()]

    print(f"\n{describe(args)}\n")
    print(tabulate(summary, labels))
    for name, share in hits.items():
        if share is not None:
            print(f"\n{labels[name]} found {share:.0%} of all tokens in its prefix cache.")

    if args.output:
        record = {
            "arguments": {name: str(value) for name, value in vars(args).items()},
            "machine": machine(),
            "servers": labels,
            "prefix_cache_hits": hits,
            "summary": summary,
            "turns": [asdict(turn) for turn in turns],
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def tabulate(summary: Sequence[dict], labels: dict) -> str:
    """The figures as a Markdown table."""
    header = ("server", "K", "answers/s", "ours is faster by", "p50 ms", "p99 ms", "scores differ")
    lines = [
        (
            labels[line["server"]],
            str(line["answers"]),
            f"{line['answers_per_second']:.1f} ({line['least']:.1f}-{line['most']:.1f})",
            f"{line['ours_is_faster_by']:.2f}",
            f"{line['p50_ms']:.0f}",
            f"{line['p99_ms']:.0f}",
            f"{line['scores_differ_by']:.0e}",
        )
        for line in summary
    ]
    return markdown_grid([header, ("---", *["---:"] * 6), *lines])


def describe(args: argparse.Namespace) -> str:
    """One line on what was measured."""
    requests = ", ".join(map(str, args.requests))
    return (
        f"Prompts of {'-'.join(map(str, args.prompt_tokens))} tokens, answers of "
        f"{'-'.join(map(str, args.answer_tokens))}; {requests} requests a turn from up to "
        f"{args.clients} clients; medians of {args.rounds} rounds (and their range); {machine()}"
    )


if __name__ == "__main__":
    main(parse_arguments())
