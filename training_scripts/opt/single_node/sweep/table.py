"""The table of a sweep: a row for each run, as Markdown and as CSV.

    python table.py SWEEP            # writes SWEEP/sweep.md and SWEEP/sweep.csv
    python table.py --finished RUN   # exit code 0 if the run is finished, else 1

A run is a folder such as SWEEP/stage2-offload_cpu-lr1e-5. run_sweep.sh leaves the exit code of its
last try in `exit_code` there, and main.py the rest.
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

RUN = re.compile(r"stage(\d+)-offload_(\w+)-lr(.+)")
STOPPED = (130, 143)  # main.py saved its training state after a signal
# Column and, in Markdown, its title and the format of its numbers.
COLUMNS = {
    "zero_stage": ("ZeRO stage", ""),
    "offload": ("offload", ""),
    "learning_rate": ("learning rate", ""),
    "eval_accuracy": ("evaluation accuracy", ".4f"),
    "comparisons_per_second": ("comparisons/s", ".1f"),
    "peak_memory_gib": ("peak memory (GiB)", ".2f"),
    "status": ("status", ""),
}


def read_exit_code(run: Path) -> int | None:
    """The exit code of a run's last try; None if there is none, as after a power cut."""
    file = run / "exit_code"
    text = file.read_text() if file.exists() else ""
    return int(text) if text else None


def is_finished(run: Path) -> bool:
    """Whether a run ended well and its folder holds a model."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    has_model = (run / "config.json").exists() and any((run / name).exists() for name in weights)
    return has_model and read_exit_code(run) == 0


def status(run: Path) -> str:
    """How a run stands, in words."""
    code = read_exit_code(run)
    if is_finished(run):
        return "finished"
    if code is None:
        return "unfinished"
    if code in STOPPED:
        return "stopped"
    return f"failed, exit code {code}" if code else "no model"


def measure(run: Path) -> dict:
    """Accuracy, speed and memory of a run, from its metrics.jsonl; what is missing is left out.

    The accuracy is that of the saved model: the last one, or with --save_best the best one. The
    speed is the median over the training lines without the first tenth, at least one line.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    arguments = json.loads((run / "training_args.json").read_text())["arguments"]
    accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    speeds = [x["comparisons_per_second"] for x in lines if "comparisons_per_second" in x]
    speeds = speeds[max(1, len(speeds) // 10) :]
    peaks = [line["peak_memory_gib"] for line in lines if "peak_memory_gib" in line]
    row = {}
    if accuracies:
        row["eval_accuracy"] = max(accuracies) if arguments["save_best"] else accuracies[-1]
    if speeds:
        row["comparisons_per_second"] = statistics.median(speeds)
    if peaks:
        row["peak_memory_gib"] = max(peaks)
    return row


def read_rows(sweep: Path) -> list[dict]:
    """A row for each run, by stage, offload and learning rate; numbers of finished runs alone."""
    rows = []
    for run in sweep.iterdir():
        if match := RUN.fullmatch(run.name):
            stage, offload, rate = match.groups()
            row = {"zero_stage": stage, "offload": offload, "learning_rate": rate}
            measured = measure(run) if is_finished(run) else {}
            rows.append({**row, **measured, "status": status(run)})
    return sorted(rows, key=_order)


def write_table(sweep: Path) -> None:
    """Write sweep.csv and sweep.md; there the best accuracy is bold."""
    rows = read_rows(sweep)
    with (sweep / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    best = max((row["eval_accuracy"] for row in rows if "eval_accuracy" in row), default=None)
    table = [[title for title, _ in COLUMNS.values()], ["---"] * len(COLUMNS)]
    table += [[_cell(name, row.get(name), best) for name in COLUMNS] for row in rows]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    (sweep / "sweep.md").write_text(text, encoding="utf-8")


def _order(row: dict) -> tuple:
    try:
        rate = float(row["learning_rate"])
    except ValueError:
        rate = float("inf")
    return int(row["zero_stage"]), row["offload"] != "no", row["offload"], rate


def _cell(name: str, value, best: float | None) -> str:
    if value is None:
        return ""
    text = format(value, COLUMNS[name][1])
    return f"**{text}**" if name == "eval_accuracy" and value == best else text


if __name__ == "__main__":
    if sys.argv[1] == "--finished":
        sys.exit(not is_finished(Path(sys.argv[2])))
    write_table(Path(sys.argv[1]))
