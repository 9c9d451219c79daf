"""Whole programs beside each other: main.py, and TRL's own script, as their users start them.

    python benchmarks/programs.py --tokenizer facebook/opt-350m --data_path PAIRS \
        --eval_data_path PAIRS --hidden_size 512 --num_layers 4

Both train a random model of the given shape for an epoch of the same pairs and evaluate it on the
same others: main.py before and after, as it always does, TRL after. Imports, tokenising, loading,
saving and main.py's checks of the saved model count. Needs trl. A round is one run of each, and a
line of --output; those of the same flags and machine that are there are not run again, so that the
command can be cut.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import transformers

from benchmarks.contestants import add_shape_flags, shape_config
from benchmarks.quality import find_lines, read_lines, write_line
from benchmarks.throughput import machine

ROOT = Path(__file__).parents[1]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Time main.py and TRL's reward script as whole programs, in turn.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or hub name")
    add("--data_path", required=True, help="JSON lines of chosen and rejected, to train on")
    add("--eval_data_path", required=True, help="the same, to evaluate on")
    add_shape_flags(parser, hidden_size=512)
    add("--batch_size", type=int, default=16, help="pairs a step")
    add("--max_seq_len", type=int, default=512, help="tokens of prompt and answer")
    add("--rounds", type=int, default=5, help="runs of each program")
    add(
        "--output",
        default=str(Path(__file__).with_suffix(".jsonl")),
        help="a line for each round",
    )
    return parser.parse_args()


def main(args) -> None:
    """Write model and data, let the programs run in turn, print the table."""
    # Rounds belong together if nothing differs that could move their time.
    asked = {name: value for name, value in vars(args).items() if name not in ("rounds", "output")}
    identity = {**asked, **machine()}

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(args, place)
        for number in range(len(find_lines(args.output, **identity)), args.rounds):
            seconds = {n: seconds_of(c) for n, c in commands(args, place, number).items()}
            lines = read_lines(place / f"ours{number}" / "metrics.jsonl")
            steps = [line["seconds"] for line in lines if "seconds" in line]
            seconds["main.py's steps"] = round(steps[-1], 2)
            write_line(args.output, {**identity, "seconds": seconds})

    rounds = [line["seconds"] for line in find_lines(args.output, **identity)]
    ratios = [one["TRL"] / one["main.py"] for one in rounds]
    print(f"\n{len(rounds)} rounds, {machine()}\n\n| | s |\n|---|---|")
    for name in rounds[0]:
        print(f"| {name} | {statistics.median(one[name] for one in rounds):.1f} |")
    print(f"\nmain.py is faster by {statistics.median(ratios):.2f} (the median of the rounds)")


def prepare(args, folder: Path) -> None:
    """Write the model, and the pairs in files that both programs find."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    work = {"vocabulary": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    transformers.set_seed(0)
    config = shape_config(args, work)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    for name, path in (("train", args.data_path), ("test", args.eval_data_path)):
        pairs = datasets.load_dataset("json", data_files=path, split="train")
        pairs.to_json(folder / "data" / f"{name}.jsonl")


def commands(args, folder: Path, number: int) -> dict[str, list]:
    """The two command lines."""
    common = {
        "model_name_or_path": folder / "model",
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 5e-5,
        "seed": number,
    }
    ours = {
        "data_path": folder / "data",
        "max_seq_len": args.max_seq_len,
        "data_output_path": folder / f"cache{number}",
        "output_dir": folder / f"ours{number}",
    }
    trl = {
        "dataset_name": folder / "data",
        "max_length": args.max_seq_len,
        "num_train_epochs": 1,
        "eval_strategy": "epoch",
        "output_dir": folder / f"trl{number}",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,  # its default, far slower on a CPU
        "gradient_checkpointing": False,  # its default trades a third more time for memory
    }

    def words(flags: dict) -> list[str]:
        return [word for name, value in flags.items() for word in (f"--{name}", str(value))]

    return {
        "main.py": [sys.executable, ROOT / "main.py", *words(common | ours)],
        "TRL": [sys.executable, "-m", "trl.scripts.reward", *words(common | trl)],
    }


def seconds_of(command: list) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


if __name__ == "__main__":
    main(parse_arguments())
