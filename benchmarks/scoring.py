"""Time to score answers: rw_eval.py's way and Transformers' text-classification pipeline.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --tokenizer facebook/opt-350m --data_path comparisons.jsonl \
        --hidden_size 512 --num_layers 4

A reward model of the given shape with random weights scores the same comparisons in each round,
tokenisation included: with utils.evaluation.scoring.Scorer, and with the pipeline in several batch
sizes, which gets each answer once as prompt, answer and end token. Every contestant lives in a
process of its own, and they take turns, so that what else the machine does hits all of them alike.
Their scores must agree.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers

from benchmarks.contestants import Contestant, add_shape_flags, random_model
from utils import distributed
from utils.data.comparison import Comparison
from utils.data.packing import make_collator
from utils.data.sources.files import parse_row
from utils.data.sources.names import parse_place
from utils.data.tokenization import ComparisonTokenizer, TextSettings
from utils.demo import write_demo
from utils.evaluation.rows import open_source, windows
from utils.evaluation.scoring import Scorer
from utils.model import pretrained

OURS = "rw_eval.py"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Time the scoring of answers, side by side with Transformers' pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data_path", help="comparisons, in any layout that rw_eval.py takes (default: the demo's)"
    )
    add("--tokenizer", help="folder or hub name (default: the demo's)")
    add_shape_flags(parser, hidden_size=256)
    add("--max_seq_len", type=int, default=2048, help="tokens; longer comparisons are left out")

    add("--comparisons", type=int, default=16, help="scored in a round; each round has others")
    add("--rounds", type=int, default=5, help="measured turns of each contestant")
    add("--pipeline_batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="answers")
    add("--output", help="JSON file for all figures")
    return parser.parse_args()


def main(args) -> None:
    """Write the model, let the contestants take turns, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = prepare(args, Path(folder))
        names = [OURS, *(f"pipeline, batches of {size}" for size in args.pipeline_batch_sizes)]
        results = take_turns(args, names, Path(folder) / "model", rounds)
    report(args, names, results)


def prepare(args, folder: Path) -> list[list]:
    """Write the model; return the comparisons of a round to warm up and of each measured one."""
    if args.tokenizer is None or args.data_path is None:
        write_demo(folder / "demo")
    source = args.tokenizer or str(folder / "demo" / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    work = {"vocabulary": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    random_model(args, work).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    path = args.data_path or str(folder / "demo" / "data" / "test.jsonl")
    encoder = ComparisonTokenizer(
        tokenizer, TextSettings(tokenizer.eos_token, args.max_seq_len, overlength="drop")
    )
    opened = open_source(parse_place(path))
    found = [w.read(parse_row(row)) for w in windows([opened], 512) for row in w.rows]
    kept = [
        Comparison(c.prompt, [c.responses[i] for i in row["answers"]], row["answers"], c.source)
        for c, row in zip(found, encoder.rows(found), strict=True)
        if row["answers"]  # those that are neither empty nor too long
    ]

    order = np.random.default_rng(0).permutation(len(kept))
    number = args.comparisons
    rounds = [order[i * number : (i + 1) * number] for i in range(args.rounds + 1)]
    if len(rounds[-1]) < number:
        sys.exit(f"{path}: {len(kept)} comparisons are too few for --rounds x --comparisons")
    return [[kept[i] for i in numbers] for numbers in rounds]


def take_turns(args, names: list[str], model: Path, rounds: list[list]) -> list[dict]:
    """Seconds and scores of each contestant in each measured round."""
    contestants = {name: Contestant(name, contest, args, name, model) for name in names}
    results = [
        {name: contestant.ask(comparisons) for name, contestant in contestants.items()}
        for comparisons in rounds
    ]
    for contestant in contestants.values():
        contestant.dismiss()
    return results[1:]  # the first one loads and warms up


def contest(args, name: str, model: Path, pipe) -> None:
    """The life of a contestant: score what comes, say how long it took."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    score = make_scorer(args, model) if name == OURS else make_pipeline(name, model)
    for comparisons in iter(pipe.recv, None):
        started = time.perf_counter()
        scores = score(comparisons)
        pipe.send({"seconds": time.perf_counter() - started, "scores": scores})


def make_scorer(args, model: Path):
    """Scores as rw_eval.py does."""
    distributed.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, tokenizer = pretrained.load_config(str(model)), pretrained.load_tokenizer(str(model))
    encoder = ComparisonTokenizer(tokenizer, TextSettings(tokenizer.eos_token, args.max_seq_len))
    loaded, _ = pretrained.load_model(str(model), config, tokenizer, layout="packed")
    collate = make_collator(encoder, "packed")
    scorer = Scorer(loaded.to(device).eval(), encoder, collate, device, packed=True)
    return lambda comparisons: [s for row in scorer(comparisons) for s in row["scores"]]


def make_pipeline(name: str, model: Path):
    """Scores as Transformers' pipeline does."""
    size = int(name.split()[-1])
    pipeline = transformers.pipeline(
        "text-classification", model=str(model), function_to_apply="none", batch_size=size
    )
    end = pipeline.tokenizer.eos_token

    def score(comparisons) -> list[float]:
        texts = [c.prompt + seam(c.prompt, r) + r + end for c in comparisons for r in c.responses]
        return [result["score"] for result in pipeline(texts)]

    return score


def seam(prompt: str, response: str) -> str:
    """What stands between prompt and answer."""
    return "" if prompt[-1:].isspace() or response[:1].isspace() else " "


def report(args, names: list[str], results: list[dict]) -> None:
    """Check that the scores agree; print medians and ratios."""
    for result in results:
        for name in names[1:]:
            np.testing.assert_allclose(
                result[name]["scores"], result[OURS]["scores"], atol=1e-3, err_msg=name
            )

    summary = {}
    for name in names:
        ratios = [r[name]["seconds"] / r[OURS]["seconds"] for r in results]
        rates = [len(r[name]["scores"]) / r[name]["seconds"] for r in results]
        summary[name] = {
            "answers_per_second": statistics.median(rates),
            "rw_eval_is_faster_by": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }

    print("| | answers/s | rw_eval.py is faster by | lowest to highest round |\n|---|---|---|---|")
    for name, line in summary.items():
        rate, ratio, low, high = line.values()
        print(f"| {name} | {rate:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |")

    if args.output:
        rounds = [{n: r[n]["seconds"] for n in names} for r in results]
        figures = {"arguments": vars(args), "summary": summary, "rounds": rounds}
        Path(args.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(parse_arguments())
