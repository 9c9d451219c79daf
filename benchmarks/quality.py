"""What training on a pretrained model is worth: accuracy over seeds, ours and TRL's from one start.

    python benchmarks/quality.py --model SMOLLM2 --name hh_harmless \
        --data_path TRAIN --eval_data_path EVAL --peer trl

For each seed the model gets a new head; main.py trains an epoch from there, and with --peer trl so
does TRL's RewardTrainer (trl_trainer.py), whose model is also looked at on the way, above all after
the time that main.py has taken. rw_eval.py scores all of them. Every finished run is a line of
--output, and is not run again: the command can be cut at any time and goes on where it was, main.py
in mid-epoch. The table of all lines is printed, and stands beside them as .md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import scipy
import torch

from utils.data.tokenization import TextSettings, prepare_tokenizer
from utils.model import pretrained
from utils.output.files import write_whole
from utils.output.pictures import ACCENT, DARK, picture

ROOT = Path(__file__).parents[1]
OURS, TRL, TRL_EQUAL_TIME = "main.py", "TRL", "TRL, after the same time"
MOMENTS = (0.25, 0.5, 0.75, 1.0, 2.0)  # of the time of main.py, at which TRL's model is looked at
OUR_STYLE = {"color": DARK, "marker": "o"}
THEIR_STYLE = {"color": ACCENT, "marker": "^", "linestyle": "--"}

# Runs that differ in nothing but the seed make one line of the table.
IDENTITY = ("data", "trainer", "learning_rate", "flags")
# Of what rw_eval.py reports, what a run's line keeps.
FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "loss", "ece", "temperature", "pairs")
LENGTHS = ("longer_accuracy", "shorter_accuracy", "prefers_longer", "correlation")
# Of a run's line, what the table gives as the mean over the seeds.
AVERAGED = (
    *("accuracy_low", "accuracy_high", "longer_accuracy", "shorter_accuracy"),
    *("loss", "ece", "seconds", "peak_gib"),
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train from a pretrained model with several seeds, evaluate, tabulate.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of the language model")
    add("--name", required=True, help="of the data, for the table")
    add("--data_path", required=True, help="comparisons to train on")
    add("--eval_data_path", required=True, help="comparisons to evaluate on")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the head and the data's order")
    add("--learning_rates", type=float, nargs="+", default=[2e-5], help="peak rates to train at")
    add("--batch_size", type=int, default=16, help="comparisons a step")
    add("--max_seq_len", type=int, default=512, help="tokens of prompt and answer")
    add("--flags", default="", help="more flags for main.py, in one word")
    add("--peer", choices=("trl",), help="another trainer, where the data are pairs")
    add("--peer_micro_batch", type=int, default=4, help="pairs that it takes at a time")
    add("--cut_peer", action="store_true", help="end it after the time that main.py has taken")
    add("--more", nargs="*", default=[], help="files that main.py's models are evaluated on, too")
    add("--picture", type=Path, help="PNG of accuracy against time, with --peer, to write")
    add("--folder", default="output/quality", help="for models and training states")
    add(
        "--output",
        default=str(Path(__file__).with_suffix(".jsonl")),
        help="a line for each run of this model",
    )
    return parser.parse_args()


def main(args) -> None:
    """Run what has no line yet, one after the other."""
    pretrained.quieten_libraries()
    for rate in args.learning_rates:
        for seed in args.seeds:
            run_ours(args, rate, seed)
            for path in args.more:
                evaluate_more(args, rate, seed, path)
            if args.peer:
                run_trl(args, rate, seed)

    table = tabulate(read_lines(args.output))
    write_whole(Path(args.output).with_suffix(".md"), table)
    print(table)
    if args.picture:
        draw(*runs_to_draw(args), args.picture)


def run_ours(args, rate: float, seed: int) -> None:
    """Train with main.py, and evaluate with rw_eval.py."""
    identity = identify(args, OURS, rate)
    if find_lines(args.output, **identity, seed=seed):
        return

    folder = run_folder(args, identity, seed)
    flags = {
        "model_name_or_path": make_start(args, seed),
        "data_path": args.data_path,
        "eval_data_path": args.eval_data_path,
        "per_device_train_batch_size": args.batch_size,
        "max_seq_len": args.max_seq_len,
        "learning_rate": rate,
        "seed": seed,
        "output_dir": folder,
        "save_interval": 20,
        "save_total_limit": 1,
        "resume_from_checkpoint": "latest",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    start("main.py", *words, *args.flags.split())

    seconds, peak, curve = 0.0, 0.0, []
    for line in read_lines(folder / "metrics.jsonl"):
        seconds = line.get("seconds", seconds)
        peak = line.get("peak_memory_gib", peak)
        if "eval_accuracy" in line:
            curve.append([round(seconds, 2), line["eval_accuracy"], line["eval_loss"]])

    figures = {"seconds": round(seconds, 2), "peak_gib": round(peak, 2), "curve": curve}
    figures |= evaluate(folder, args.eval_data_path)
    write_line(args.output, {**identity, "seed": seed, **figures})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a short run has none


def evaluate_more(args, rate: float, seed: int, path: str) -> None:
    """Evaluate a model that main.py has trained on other comparisons than its own."""
    identity = identify(args, OURS, rate)
    more = {**identity, "data": f"{args.name}, on {Path(path).name.split('.')[0]}"}
    if find_lines(args.output, **more, seed=seed):
        return

    [run] = find_lines(args.output, **identity, seed=seed)
    figures = evaluate(run_folder(args, identity, seed), path)
    write_line(args.output, {**run, **more, **figures, "curve": []})


def run_trl(args, rate: float, seed: int) -> None:
    """Train with TRL, and evaluate its models of several moments with rw_eval.py."""
    [ours] = find_lines(args.output, **identify(args, OURS, rate), seed=seed)
    equal_time, end = (identify(args, name, rate) for name in (TRL_EQUAL_TIME, TRL))
    if find_lines(args.output, **(equal_time if args.cut_peer else end), seed=seed):
        return

    folder = run_folder(args, end, seed)
    moments = [share * ours["seconds"] for share in MOMENTS if share <= 1 or not args.cut_peer]
    words = [
        *("--model", make_start(args, seed), "--data_path", args.data_path, "--output_dir", folder),
        *("--batch_size", args.batch_size, "--micro_batch", args.peer_micro_batch),
        *("--max_seq_len", args.max_seq_len, "--learning_rate", rate, "--seed", seed),
        *("--seconds", *moments),
    ]
    if not (folder / "done").exists():
        start("benchmarks/trl_trainer.py", *words, *(["--cut"] if args.cut_peer else []))
        (folder / "done").touch()

    curve = ours["curve"][:1]
    names = [f"at_{number}" for number in range(len(moments))]
    for place in names if args.cut_peer else [*names, "at_end"]:
        if not (folder / place).exists():
            continue  # it has ended before
        figures = json.loads((folder / f"{place}.json").read_text(encoding="utf-8"))
        figures |= evaluate(folder / place, args.eval_data_path)
        curve.append([figures["seconds"], figures["accuracy"], figures["loss"]])
        if place == f"at_{MOMENTS.index(1.0)}":
            write_line(args.output, {**equal_time, "seed": seed, **figures, "curve": curve})
    if not args.cut_peer:
        write_line(args.output, {**end, "seed": seed, **figures, "curve": curve})


def identify(args, trainer: str, rate: float) -> dict:
    """What runs of a line of the table have in common."""
    flags = f"--per_device_train_batch_size {args.batch_size} {args.flags}".strip()
    return {"data": args.name, "trainer": trainer, "learning_rate": rate, "flags": flags}


def run_folder(args, identity: dict, seed: int) -> Path:
    """Where a run writes."""
    words = [*map(str, identity.values()), str(seed)]
    return Path(args.folder) / "_".join("".join(filter(str.isalnum, word)) for word in words)


def make_start(args, seed: int) -> Path:
    """The model with the head that main.py would draw, as a folder that both trainers load.

    Its padding token is no token of a text: Transformers' head, which TRL trains, scores what
    stands before the first padding.
    """
    folder = Path(args.folder) / f"start_{seed}"
    if (folder / "config.json").is_file():
        return folder

    torch.manual_seed(seed)
    tokenizer = pretrained.load_tokenizer(args.model)
    end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
    config = pretrained.load_config(args.model)
    model, _ = pretrained.load_model(args.model, config, tokenizer, new_head=True)
    weights = model.model.state_dict()
    settings = asdict(TextSettings(end_token, args.max_seq_len))
    pretrained.save_model(model, weights, tokenizer, settings, str(folder))
    return folder


def start(program: str, *words: object) -> None:
    """Run a program of this repository, as users do; if it ends with an error, end with it."""
    done = subprocess.run([sys.executable, ROOT / program, *map(str, words)])
    if done.returncode:
        raise SystemExit(done.returncode)


def evaluate(model: Path, data: str) -> dict:
    """What rw_eval.py reports of a model on comparisons."""
    folder = model / f"evaluation_{Path(data).name.split('.')[0]}"
    place = ("--output_dir", folder, "--overwrite_output_dir")
    start("rw_eval.py", "--model_name_or_path", model, "--data_path", data, *place)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    results = list(report["results"].values())[-1]
    return {name: results[name] for name in FIGURES} | {
        name: results["length"][name] for name in LENGTHS
    }


def read_lines(path: str | Path) -> list[dict]:
    """The values of a file of JSON lines; none if it is not there."""
    if not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def find_lines(path: str, **wanted: object) -> list[dict]:
    """The lines with these values; none if no such run has finished."""
    return [line for line in read_lines(path) if wanted.items() <= line.items()]


def write_line(path: str, line: dict) -> None:
    """Add a finished run."""
    lines = [*read_lines(path), line]
    write_whole(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


def tabulate(lines: list[dict]) -> str:
    """Means over the seeds with 95 % intervals, a row for each kind of run, as Markdown."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in IDENTITY), []).append(line)

    text = (
        "| data | trainer | rate | flags | seeds | accuracy | clustered by prompt | longer better "
        "| shorter better | loss | ECE | s | GiB |\n" + 13 * "|---" + "|\n"
    )
    for (data, trainer, rate, flags), runs in sorted(groups.items()):
        means = {name: statistics.mean(run[name] for run in runs) for name in AVERAGED}
        text += (
            f"| {data} | {trainer} | {rate:g} | {flags} | {len(runs)} "
            f"| {mean_and_interval([run['accuracy'] for run in runs])} "
            f"| {means['accuracy_low']:.3f} to {means['accuracy_high']:.3f} "
            f"| {means['longer_accuracy']:.3f} | {means['shorter_accuracy']:.3f} "
            f"| {means['loss']:.3f} | {means['ece']:.3f} | {means['seconds']:,.0f} "
            f"| {means['peak_gib']:.1f} |\n"
        )
    return text


def runs_to_draw(args) -> tuple[list[dict], list[dict]]:
    """Our runs at the first rate and TRL's: whole ones, and those that ended at equal time."""
    ours, whole, cut = (
        find_lines(args.output, **identify(args, name, args.learning_rates[0]))
        for name in (OURS, TRL, TRL_EQUAL_TIME)
    )
    seeds = {run["seed"] for run in whole}
    return ours, whole + [run for run in cut if run["seed"] not in seeds]


def draw(ours: list[dict], theirs: list[dict], path: Path) -> None:
    """Accuracy against the minutes of training, a curve for each run, as a PNG."""
    with picture(path) as figure:
        axes = figure.subplots()
        for runs, label, style in ((ours, OURS, OUR_STYLE), (theirs, TRL, THEIR_STYLE)):
            curves = [[(seconds / 60, y) for seconds, y, _ in run["curve"]] for run in runs]
            plot_runs(axes, curves, label, style)

        axes.set(xlabel="training time (minutes)", ylabel="accuracy on unseen prompts")
        axes.legend(loc="lower right", title="one epoch, a line a seed", alignment="left")


def plot_runs(axes, curves: list[list[tuple[float, float]]], label: str, style: dict) -> None:
    """The points of several runs as curves of one style, with one entry in the legend."""
    for number, points in enumerate(curves):
        axes.plot(*zip(*points, strict=True), label=None if number else label, **style)


def mean_and_interval(values: list[float], form: str = ".3f") -> str:
    """The mean of the seeds and, where there are several, half of its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return format(mean, form)
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:{form}} ± {half:{form}}"


if __name__ == "__main__":
    main(parse_arguments())
