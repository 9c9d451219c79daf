"""Accuracy against training time: packed K-wise ranking, and TRL on the same data as pairs.

    python benchmarks/accuracy_over_time.py --tokenizer T --data_path TRAIN --eval_data_path EVAL

Both trainers start from the same random OPT (2 layers, width 128) and see each comparison once:
ours through main.py, TRL as the pairs that the ranking explodes into, since its RewardTrainer
takes no others. Each trains on one thread of the CPU; evaluations are not timed. Needs trl.
Writes accuracy_over_time.json and .md beside this file, and docs/accuracy_over_time.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
import transformers

from benchmarks.contestants import explode
from benchmarks.quality import OUR_STYLE, THEIR_STYLE, mean_and_interval, plot_runs
from utils.data.cache import load_source
from utils.data.packing import make_collator
from utils.data.sampling import Grouping, evaluation_plan
from utils.data.sources.names import Source
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.evaluation.scoring import evaluate_batches
from utils.model.reward_model import RewardModel
from utils.output.pictures import picture
from utils.training.plan import PlannedBatches

ROOT = Path(__file__).parents[1]
RATE, WARMUP = 1e-3, 0.1
CURVES = {
    "packed": ("packed, 11 answers ranked", OUR_STYLE),
    "TRL": ("TRL, exploded pairs", THEIR_STYLE),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Accuracy against training time, ours and TRL's.")
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or hub name")
    add("--data_path", required=True, help="ranked comparisons to train")
    add("--eval_data_path", required=True, help="comparisons to evaluate")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of weights, head and data order")
    return parser.parse_args()


def main(args) -> None:
    """Train both with each seed, then draw and tabulate."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            start = make_start(tokenizer, seed, Path(folder) / f"start{seed}")
            for trainer, run in (("packed", run_packed), ("TRL", run_trl)):
                lines = run(args, start, seed, Path(folder) / f"{trainer}{seed}")
                results += [{"trainer": trainer, "seed": seed, **line} for line in lines]
                print(results[-1], flush=True)

    path = Path(__file__).with_suffix(".json")
    path.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n", encoding="utf-8")
    path.with_suffix(".md").write_text(tabulate(results), encoding="utf-8")
    draw(results, ROOT / "docs" / "accuracy_over_time.png")


def make_start(tokenizer, seed: int, folder: Path) -> Path:
    """A random OPT with a scalar head."""
    transformers.set_seed(seed)
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=512,
        dropout=0.0,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )

    model = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=129**-0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_packed(args, start: Path, seed: int, folder: Path) -> list[dict]:
    """One epoch with main.py, in steps of 4 comparisons."""
    flags = {
        "model_name_or_path": start,
        "data_path": args.data_path,
        "eval_data_path": args.eval_data_path,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": RATE,
        "warmup_ratio": WARMUP,
        "eval_interval": 10,
        "seed": seed,
        "output_dir": folder,
    }

    words = [f"--{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, ROOT / "main.py", *words], check=True, env=environment)

    lines, seconds = [], 0.0
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        seconds = line.get("seconds", seconds)
        if "eval_accuracy" in line:
            lines.append(point(line["step"], line["epoch"], seconds, line["eval_accuracy"]))
    return lines


def run_trl(args, start: Path, seed: int, folder: Path) -> list[dict]:
    """One epoch with TRL's RewardTrainer, in steps of 16 pairs, on the same token ids."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
    encoder = ComparisonTokenizer(tokenizer, TextSettings(end_token, max_seq_len=512))
    train, test = (
        load_source(Source(path, "data"), encoder, str(folder.with_name("cache")))[0].filter(
            lambda dropped: not dropped, input_columns="dropped"
        )
        for path in (args.data_path, args.eval_data_path)
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(start)
    plan = evaluation_plan(Grouping.of(test, "padded", batch_size=1))
    batches = PlannedBatches(test, plan, make_collator(encoder, "padded"))

    def accuracy() -> float:
        return evaluate_batches(RewardModel(model), batches, torch.device("cpu"))["accuracy"]

    lines = [point(0, 0.0, 0.0, accuracy())]

    class Clock(transformers.TrainerCallback):
        """Times the steps and evaluates after some; on one thread CPU time is undisturbed time."""

        seconds = 0.0

        def on_step_begin(self, *_, **__):
            self.started = time.process_time()

        def on_step_end(self, _, state, *__, **___):
            self.seconds += time.process_time() - self.started
            step, last = state.global_step, state.max_steps
            if step in (8, 15, 30, 60, 120) or step % 250 == 0 or step == last:
                lines.append(point(step, step / last, self.seconds, accuracy()))

    config = RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        num_train_epochs=1,
        max_length=512,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,  # its default trades a third more time for memory
        seed=seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    RewardTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(explode(train)),
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    return lines


def point(step: int, epoch: float, seconds: float, accuracy: float) -> dict:
    """A point of a curve."""
    return {"step": step, "epoch": epoch, "seconds": round(seconds, 2), "accuracy": accuracy}


def curves(results: list[dict], trainer: str) -> list[list[dict]]:
    """The points of each seed."""
    seeds = sorted({line["seed"] for line in results})
    return [[r for r in results if (r["trainer"], r["seed"]) == (trainer, s)] for s in seeds]


def accuracy_at(curve: list[dict], seconds: float) -> float:
    """The accuracy of the last evaluation up to a time."""
    return [line["accuracy"] for line in curve if line["seconds"] <= seconds][-1]


def tabulate(results: list[dict]) -> str:
    """Means over the seeds, with 95 % intervals, at the end and at equal times, as Markdown."""
    packed, trl = curves(results, "packed"), curves(results, "TRL")
    finish = statistics.mean(curve[-1]["seconds"] for curve in packed)
    rows = [
        ("packed, after one epoch", [curve[-1] for curve in packed]),
        ("TRL, after one epoch", [curve[-1] for curve in trl]),
    ]

    text = "| | training seconds on one core | accuracy, mean of the seeds | each seed |\n"
    text += "|---|---|---|---|\n"
    for name, ends in rows:
        seconds = statistics.mean(line["seconds"] for line in ends)
        text += line_of(name, seconds, [line["accuracy"] for line in ends])

    for share in (0.25, 0.5, 1.0):
        time_ = share * finish
        for name, group in (("packed", packed), ("TRL", trl)):
            text += line_of(
                f"{name}, after {share:.0%} of packed's time",
                time_,
                [accuracy_at(curve, time_ * 1.05) for curve in group],
            )

    best = max(statistics.mean(a) for a in zip(*(best_so_far(c) for c in trl), strict=True))
    return text + f"\nTRL's best evaluation, mean of the seeds: {best:.4f}\n"


def best_so_far(curve: list[dict]) -> list[float]:
    """The highest accuracy up to each evaluation."""
    return [max(line["accuracy"] for line in curve[: i + 1]) for i in range(len(curve))]


def line_of(name: str, seconds: float, values: list[float]) -> str:
    """A row of the table."""
    each = ", ".join(f"{value:.4f}" for value in values)
    return f"| {name} | {seconds:.0f} | {mean_and_interval(values, '.4f')} | {each} |\n"


def draw(results: list[dict], path: Path) -> None:
    """Accuracy against the time, a line for each seed, as a PNG."""
    with picture(path) as figure:
        axes = figure.subplots()
        for trainer, (label, style) in CURVES.items():
            points = [
                [(max(line["seconds"], 0.5), line["accuracy"]) for line in curve]
                for curve in curves(results, trainer)
            ]
            plot_runs(axes, points, label, {**style, "linewidth": 1.8, "markersize": 6})

        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(
            xlabel="training time (seconds on one core; the start stands at 0.5)",
            ylabel="accuracy on unseen prompts\n(share of pairs)",
        )
        axes.legend(loc="lower right", title="one epoch, a line a seed", alignment="left")


if __name__ == "__main__":
    main(parse_arguments())
