"""Tokenise synthetic comparisons into the cache, beside the bare tokenizer on the same texts.

    python benchmarks/tokenization.py --comparisons 1000000 --folder /tmp/million

Both run in as many processes, a stretch of the rows with one, then with the other. The bare
tokenizer gets texts, keeps nothing and writes nothing. The rows stay in --folder, so that main.py
can be started on them.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a core for each process

import transformers

from utils.data.cache import load_source
from utils.data.sources.names import Source
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.demo import write_demo

CHUNK = 2000  # texts that the bare tokenizer gets at once
SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "in", "o", "ul")]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Tokenise synthetic comparisons, beside the bare tokenizer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--comparisons", type=int, default=100_000, help="pairs that are written and tokenised")
    add("--num_workers", type=int, default=2, help="processes that tokenise")
    add("--rounds", type=int, default=4, help="stretches of the rows, each timed both ways")
    add("--tokenizer", help="folder or hub name (default: the demo's)")
    add("--folder", help="where rows and cache go (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    """Time all stretches both ways and print the sums."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        if args.tokenizer is None:
            write_demo(folder / "demo")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            args.tokenizer or str(folder / "demo" / "model")
        )

        end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
        encoder = ComparisonTokenizer(tokenizer, TextSettings(end_token))
        contestants = {
            "cache": partial(run_cache, encoder=encoder, folder=folder / "cache"),
            "bare": partial(run_bare, tokenizer=tokenizer),
        }

        seconds = dict.fromkeys(contestants, 0.0)
        for number, file in enumerate(write_rows(folder, args.comparisons, args.rounds)):
            for name in sorted(contestants, reverse=bool(number % 2)):
                started = time.perf_counter()
                contestants[name](file, workers=args.num_workers)
                seconds[name] += time.perf_counter() - started

        report(args, seconds)


def write_rows(folder: Path, number: int, files: int) -> list[Path]:
    """Pairs of made-up words, as JSON lines in several files; about 700 characters each."""
    chance = random.Random(0)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(5000)]

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(least, most)))

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"rows-{part}.jsonl" for part in range(files)]
    for part, path in enumerate(paths):
        with path.open("w", encoding="utf-8") as file:
            for _ in range(part * number // files, (part + 1) * number // files):
                row = {"prompt": f"Human: {text(5, 60)} Assistant:"}
                row |= {"chosen": f" {text(5, 70)}", "rejected": f" {text(5, 70)}"}
                file.write(json.dumps(row) + "\n")
    return paths


def run_cache(file: Path, encoder: ComparisonTokenizer, folder: Path, workers: int) -> None:
    """What main.py does at its first start."""
    load_source(Source(str(file), file.stem), encoder, str(folder), workers)


def run_bare(file: Path, tokenizer, workers: int) -> None:
    """The tokenizer alone, on the texts that are run: prompt with answer."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _set_tokenizer, (tokenizer,)) as pool:
        waiting, texts = [], []
        for line in file.open(encoding="utf-8"):
            row = json.loads(line)
            texts += [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
            if len(texts) >= CHUNK:
                waiting.append(pool.submit(_tokenize, texts))
                texts = []
            if len(waiting) > 2 * workers:
                waiting.pop(0).result()
        waiting.append(pool.submit(_tokenize, texts))
        for result in waiting:
            result.result()


def _set_tokenizer(tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _tokenize(texts: list[str]) -> int:
    return sum(map(len, _tokenizer(texts).input_ids)) if texts else 0


def report(args, seconds: dict[str, float]) -> None:
    """Print rates, their ratio, and the largest memory of a process."""
    for name, elapsed in seconds.items():
        rate = args.comparisons / elapsed / args.num_workers
        print(f"{name}: {elapsed:.1f} s, {rate:,.0f} comparisons a second and process")
    print(
        f"rate of the cache by that of the bare tokenizer: {seconds['bare'] / seconds['cache']:.3f}"
    )
    own, children = (
        resource.getrusage(who).ru_maxrss / 2**20  # Linux counts KiB
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"largest resident memory: {own:.2f} GiB this process, {children:.2f} GiB a worker")


if __name__ == "__main__":
    main()
