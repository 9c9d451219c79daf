"""Time and memory of a training step: padded to the maximum, padded to the longest, and packed.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --model SMOLLM2 --batch_size 4 --peer_batch_size 4 --peer trl
    python benchmarks/throughput.py --tokenizer facebook/opt-350m --data_path comparisons.jsonl \
        --family llama --hidden_size 2048 --num_layers 16 --dtype bf16 --peer trl

A model of the given shape with random weights, or that of --model, takes full training steps
(forward, backward, clipping, AdamW) on the same random batches in each layout. Every contestant
lives in a process of its own, and they run in turn: what else the machine does hits all of them
alike. On a CPU main.py keeps the memory that tensors free. The padded layouts stand for other
trainers, which do not; a line more shows the padded layout with it, so that what the layout gains
can be seen by itself. "packed, nothing shared" has a prompt for each answer, as OpenRLHF's
--packing_samples.
`--peer trl` adds TRL's RewardTrainer, its own loop and collator, where trl is installed; it gets
ranked data exploded into pairs, since it takes no others.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers

from benchmarks.contestants import (
    DTYPES,
    LAYOUTS,
    PACKED,
    PADDED_KEPT,
    TRL,
    Contestant,
    add_shape_flags,
    contest,
    make_config,
    synchronize,
)
from utils.data.cache import load_source
from utils.data.sources.names import Source
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.demo import write_demo
from utils.model import pretrained


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Time a training step in each batch layout, side by side in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data_path", help="comparisons, in any layout that main.py takes (default: the demo's)")
    add("--model", help="folder or hub name, in the place of a shape (default: random weights)")
    add("--tokenizer", help="folder or hub name (default: the model's, or the demo's)")
    add_shape_flags(parser, hidden_size=256)
    add("--batch_size", type=int, default=16, help="comparisons in a step")
    add("--peer_batch_size", type=int, default=16, help="pairs in a step of the peer")
    add("--max_seq_len", type=int, default=512, help="tokens of prompt and answer")

    add(
        "--layouts",
        nargs="+",
        choices=LAYOUTS,
        default=LAYOUTS,
        metavar="LAYOUT",
        help=f"some of {', '.join(LAYOUTS)}; a large model needs memory for each at a time",
    )
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="precision")
    add("--rounds", type=int, default=5, help="measured steps of each contestant")
    add("--peer", choices=("trl",), help="another trainer to time in the same run")
    add("--threads", type=int, help="CPU threads of each contestant (default: torch's)")
    add("--output", help="JSON file for all figures")
    args = parser.parse_args()
    if PACKED not in args.layouts:
        parser.error(f"--layouts needs {PACKED}, which the others are compared with")
    return args


def main(args) -> None:
    """Tokenise once, let the contestants run in turn, print the table."""
    names = [name for name in LAYOUTS if name in args.layouts]
    if torch.cuda.is_available() and PADDED_KEPT in names:
        names.remove(PADDED_KEPT)  # there all of them keep it
    if args.peer:
        names.append(TRL)

    with tempfile.TemporaryDirectory() as folder:
        work = prepare(args, Path(folder))
    rounds = measured = take_turns(args, names, work)
    if not torch.cuda.is_available():
        # The C library keeps freed memory for later, which is fast but hides what is in use: for
        # two more rounds, which are not timed, it gives everything back at once, to main.py too.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
        few = argparse.Namespace(**{**vars(args), "rounds": 2})
        measured = take_turns(few, names, work)
    report(args, work, rounds, measured)


def take_turns(args, names: list[str], work: dict) -> list[dict]:
    """The rounds; in each, every contestant takes a step twice, the second time measured."""
    contestants, rounds = {}, []
    for name in names:
        contestants[name] = Contestant(name, contest, args, name, work)
        contestants[name].answer()  # it is ready; the next one starts in peace

    for number in range(args.rounds):
        results = {name: contestant.ask(number) for name, contestant in contestants.items()}
        packed = results[PACKED]
        packed["matmul_rate"] = matmul_rate(args, work, int(packed["tokens"]))
        rounds.append(results)

    for contestant in contestants.values():
        contestant.dismiss()
    return rounds


def prepare(args, folder: Path) -> dict:
    """Tokenised comparisons of all rounds, in random order."""
    tokenizer_path = args.tokenizer or args.model
    if tokenizer_path is None or args.data_path is None:
        write_demo(folder / "demo")
        tokenizer_path = tokenizer_path or str(folder / "demo" / "model")

    tokenizer = pretrained.load_tokenizer(tokenizer_path)
    end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
    encoder = ComparisonTokenizer(tokenizer, TextSettings(end_token, args.max_seq_len))

    path = args.data_path or str(folder / "demo" / "data" / "train.jsonl")
    rows = load_source(Source(path, "data"), encoder, str(folder / "cache"))[0]
    kept = np.flatnonzero(np.asarray(rows["dropped"][:]) == "")
    order = np.random.default_rng(0).permutation(kept)[: args.batch_size * args.rounds]
    return {
        "rows": rows.select(order).to_list(),
        "vocabulary": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "tokenizer": tokenizer,
    }


def matmul_rate(args, work: dict, tokens: int) -> float:
    """FLOP/s of the plain products of a layer, forward and backward, for so many tokens."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(make_config(args, work))
    decoder = getattr(model, "decoder", model)
    flops = seconds = 0.0

    for linear in decoder.layers[0].modules():
        if isinstance(linear, torch.nn.Linear):
            shapes = (
                (tokens, linear.in_features),
                linear.weight.shape,
                (tokens, linear.out_features),
            )
            options = {"device": device, "dtype": DTYPES[args.dtype]}
            x, weight, gradient = (torch.randn(shape, **options) for shape in shapes)

            for product in (
                lambda x=x, weight=weight: x @ weight.T,
                lambda gradient=gradient, weight=weight: gradient @ weight,
                lambda gradient=gradient, x=x: gradient.T @ x,
            ):
                product()  # to warm up
                synchronize(device)

                started = time.perf_counter()
                product()
                synchronize(device)
                seconds += time.perf_counter() - started
                flops += 2 * tokens * weight.numel()
    return flops / seconds


def report(args, work: dict, rounds: list[dict], measured: list[dict]) -> None:
    """Print the medians as a Markdown table; write everything to --output.

    Args:
        args: the command line.
        work: what `prepare` made.
        rounds: of each contestant a step, timed.
        measured: the same for memory.
    """
    summary = {}
    for name in rounds[0]:
        results = [results[name] for results in rounds]
        rates = [r["comparisons"] / r["seconds"] for r in results]
        packed = [r[PACKED]["comparisons"] / r[PACKED]["seconds"] for r in rounds]
        summary[name] = {
            "seconds_per_step": statistics.median(r["seconds"] for r in results),
            "comparisons_per_step": results[0]["comparisons"],
            "comparisons_per_second": statistics.median(rates),
            "packed_is_faster_by": statistics.median(
                p / r for p, r in zip(packed, rates, strict=True)
            ),
            "tokens_per_comparison": statistics.mean(
                r["tokens"] / r["comparisons"] for r in results
            ),
            "peak_gib": max(r[name]["peak_memory"] for r in measured) / 2**30,
            "step_gib": max(r[name]["peak_memory"] - r[name]["at_rest"] for r in measured) / 2**30,
        }

    print(f"\n{describe(args, work)}\n")
    print(
        "| | s a step | comparisons/s | packed is faster by | tokens a comparison "
        "| peak GiB | of it the step's |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, line in summary.items():
        print(
            f"| {name} | {line['seconds_per_step']:.2f} | {line['comparisons_per_second']:.2f} | "
            f"{line['packed_is_faster_by']:.2f} | {line['tokens_per_comparison']:.0f} | "
            f"{line['peak_gib']:.2f} | {line['step_gib']:.2f} |"
        )

    shares = packed_shares([results[PACKED] for results in rounds])
    for name, value in shares.items():
        print(f"{name}: {value:.1%}")

    if args.output:
        record = {"arguments": vars(args), "machine": machine(), "summary": summary}
        Path(args.output).write_text(
            json.dumps({**record, "packed": shares, "rounds": rounds, "memory": measured}, indent=1)
            + "\n"
        )


def packed_shares(steps: list[dict]) -> dict[str, float]:
    """What the packed step makes of the machine."""

    def share(flops, rate):
        return statistics.median(s[flops] / s["seconds"] / s[rate] for s in steps)

    shares = {
        "model FLOP/s against torch.matmul of the same shapes": share("model_flops", "matmul_rate"),
        "products really run against it": share("matmul_flops", "matmul_rate"),
    }
    if steps[0]["peak_flops"]:
        shares["model FLOP/s against the device's peak (MFU)"] = share("model_flops", "peak_flops")
    return shares


def machine() -> dict:
    """What ran this."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    names = ("torch", "transformers", "deepspeed", "trl")
    versions = {name: version(name) for name in names if find_spec(name)}
    return {"cpu": platform.processor(), "cores": os.cpu_count(), "gpu": gpu, **versions}


def describe(args, work: dict) -> str:
    """One line on what was measured."""
    answers = statistics.mean(len(row["input_ids"]) for row in work["rows"])
    model = args.model or f"{args.family} of {args.num_layers} layers, width {args.hidden_size}"
    return (
        f"{model}, {args.dtype}; "
        f"{args.batch_size} comparisons a step of {answers:.1f} answers, at most "
        f"{args.max_seq_len} tokens; medians of {args.rounds} rounds; {machine()}"
    )


if __name__ == "__main__":
    main(parse_arguments())
