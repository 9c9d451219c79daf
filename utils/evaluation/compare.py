"""Two evaluations of the same rows side by side: is one model better, or is it chance?"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import scipy  # loads its parts when they are first used, which only --compare does
from rich.console import Console
from rich.text import Text

from utils.data.comparison import ranked_pairs
from utils.evaluation.records import read_records
from utils.evaluation.statistics import clustered_interval
from utils.output.files import write_whole
from utils.output.tables import (
    Layout,
    figure,
    interval,
    markdown_code,
    markdown_table,
    print_table,
    with_total,
)
from utils.settings import InputError

COUNTS = 11  # of a row (_count)
CAVEAT = (
    "The interval is clustered by prompt, so it accounts for pairs that share one. McNemar's p "
    "does not: with more than two answers to a prompt, or repeated prompts, it is too small. It "
    "takes tied scores as not right, where the accuracy counts them half."
)
LAYOUTS = (
    Layout(
        "Accuracy",
        "Ties of scores count half.",
        {
            "pairs": lambda m: f"{m['pairs']:,}",
            "A": lambda m: figure(m["accuracy_a"]),
            "B": lambda m: figure(m["accuracy_b"]),
            "B - A": lambda m: figure(m["difference"], "+.3f"),
            "95 %\ninterval": lambda m: interval(m["difference_low"], m["difference_high"]),
            "McNemar\np": lambda m: figure(m["mcnemar_p"], ".2g"),
        },
    ),
    Layout(
        "Pairs that are strictly right",
        "Left out: pairs that one or both could not score, or whose answers are identical to "
        "one. Agreement: share of pairs that both rank right, both wrong, or both tied.",
        {
            "both": lambda m: f"{m['both_right']:,}",
            "only A": lambda m: f"{m['only_a']:,}",
            "only B": lambda m: f"{m['only_b']:,}",
            "neither": lambda m: f"{m['neither_right']:,}",
            "left\nout": lambda m: f"{m['left_out']:,}",
            "agreement": lambda m: figure(m["agreement"]),
        },
    ),
)


def compare(folder_a: str | Path, folder_b: str | Path) -> dict:
    """Compare two models on the same rows, pair by pair.

    The difference of accuracies (B minus A, ties count half) has a 95 % interval over clusters, the
    prompts (estimates.clustered_interval). McNemar's test (McNemar 1947, Psychometrika 12) is the
    exact two-sided binomial one on the pairs that one model ranks strictly right and the other does
    not. It takes pairs as independent, which those of one prompt are not; the interval does not.

    Both files are read in step. 88 bytes a row are kept in memory, twice that for several sources.

    Args:
        folder_a: --output_dir of one evaluation, with scores.jsonl.
        folder_b: of the other one.

    Returns:
        a, b: the folders. dropped: rows that one or both models dropped.
        results: by source, sorted, and "all" if there are several: prompts; pairs; left_out
        (pairs that one or both could not score, or whose answers have the same tokens for one);
        accuracy_a, accuracy_b, difference, difference_low, difference_high (None without a pair,
        the interval also with only one prompt); both_right, only_a, only_b, neither_right
        (pairs, strictly right); mcnemar_p; agreement: share of pairs with the same outcome:
        right, wrong or tied.

    Raises:
        InputError: a file is missing or broken, or the rows differ.
    """
    counts: defaultdict[str, array] = defaultdict(lambda: array("q"))
    dropped = 0
    both_records = zip_longest(_records(folder_a), _records(folder_b))
    for number, (a, b) in enumerate(both_records, 1):
        _check_same(number, a, b, folder_a, folder_b)
        dropped += "dropped" in a or "dropped" in b
        counts[a["source"]].extend(_count(a, b))
    if not counts:
        raise InputError(f"{folder_a} and {folder_b}: scores.jsonl has no line")
    rows = {
        source: np.frombuffer(counts[source], dtype=np.int64).reshape(-1, COUNTS)
        for source in sorted(counts)
    }
    rows = with_total(rows, partial(np.concatenate, list(rows.values())))
    return {
        "a": str(folder_a),
        "b": str(folder_b),
        "dropped": dropped,
        "results": {source: _summarize(own) for source, own in rows.items()},
    }


def _records(folder: str | Path) -> Iterator[dict]:
    """The lines of a folder's scores.jsonl, one by one."""
    path = Path(folder) / "scores.jsonl"
    if not path.is_file():
        raise InputError(
            f"{path} is missing: --compare takes two folders that rw_eval.py --output_dir wrote"
        )
    try:
        yield from chain.from_iterable(read_records(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: a line is not JSON ({error}): finish that evaluation with --resume"
        ) from None


def _check_same(
    number: int, a: dict | None, b: dict | None, folder_a: str | Path, folder_b: str | Path
) -> None:
    """Raise InputError unless line `number` is of the same row in both files."""
    advice = "--compare needs two evaluations of the same --data_path"
    if a is None or b is None:
        short, long = (folder_a, folder_b) if a is None else (folder_b, folder_a)
        raise InputError(
            f"{short}: scores.jsonl ends after {number - 1:,} lines, the one of {long} goes on: "
            f"{advice}; finish one that was cut with --resume"
        )
    dropped = "dropped" in a or "dropped" in b  # then its ranks are not known
    for name in ("index", "source") if dropped else ("index", "source", "ranks"):
        if a[name] != b[name]:
            raise InputError(
                f"line {number:,} of scores.jsonl: {name} is {a[name]!r} in {folder_a} and "
                f"{b[name]!r} in {folder_b}: {advice}"
            )


def _pairs(record: dict) -> frozenset[tuple[int, int]]:
    """Better and worse answer of each pair whose answers have different tokens."""
    ranks = tuple(record["ranks"])
    return _pairs_of(ranks, tuple(record.get("copies", range(len(ranks)))))


@lru_cache(maxsize=2**16)  # most rows are like others
def _pairs_of(ranks: tuple[int, ...], copies: tuple[int, ...]) -> frozenset[tuple[int, int]]:
    return frozenset(map(tuple, ranked_pairs(ranks, [[copy] for copy in copies]).tolist()))


def _count(a: dict, b: dict) -> list[int]:
    """Key of the prompt; pairs left out; judged pairs by the outcome of A, then of B (3 x 3)."""
    pairs_a, pairs_b = _pairs(a), _pairs(b)  # none in a dropped row
    outcomes = [0] * 9
    for i, j in pairs_a & pairs_b:
        ours, theirs = ((record["scores"][i], record["scores"][j]) for record in (a, b))
        if None not in (*ours, *theirs):
            outcomes[3 * _outcome(*ours) + _outcome(*theirs)] += 1
    prompt = a.get("prompt", 0) % 2**63  # in the range of int64
    return [prompt, len(pairs_a | pairs_b) - sum(outcomes), *outcomes]


def _outcome(better: float, worse: float) -> int:
    """2 right, 1 tied, 0 wrong."""
    return 2 if better > worse else int(better == worse)


def _summarize(rows: np.ndarray) -> dict:
    """The figures of a group; rows: int64 [R, 11], of `_count`."""
    judged = rows[rows[:, 2:].any(axis=1)]
    outcomes = judged[:, 2:].reshape(-1, 3, 3)
    total, worth = outcomes.sum(axis=0), np.array([0, 0.5, 1])
    pairs, only_a, only_b = int(total.sum()), int(total[2, :2].sum()), int(total[:2, 2].sum())
    prompts, cluster = np.unique(judged[:, 0], return_inverse=True)
    gains = np.bincount(cluster, (outcomes.sum(axis=1) - outcomes.sum(axis=2)) @ worth)
    sizes = np.bincount(cluster, outcomes.sum(axis=(1, 2)))
    low, high = clustered_interval(gains, sizes) if len(prompts) > 1 else (None, None)
    p = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0

    def share(number: float) -> float | None:
        return float(number / pairs) if pairs else None

    return {
        "prompts": len(prompts),
        "pairs": pairs,
        "left_out": int(rows[:, 1].sum()),
        "accuracy_a": share(total.sum(axis=1) @ worth),
        "accuracy_b": share(total.sum(axis=0) @ worth),
        "difference": share(gains.sum()),
        "difference_low": low,
        "difference_high": high,
        "both_right": int(total[2, 2]),
        "only_a": only_a,
        "only_b": only_b,
        "neither_right": int(total[:2, :2].sum()),
        "mcnemar_p": float(p) if pairs else None,
        "agreement": share(np.trace(total)),
    }


def verdict(comparison: dict) -> str:
    """One sentence: which model is better, if these data can show it.

    The interval of the difference decides. Where it has no width, since the difference is the same
    for each prompt, McNemar's p must be below 0.05.
    """
    *_, result = comparison["results"].values()
    if result["difference"] is None:
        return "No pair was judged by both models."
    low, high, p = result["difference_low"], result["difference_high"], result["mcnemar_p"]
    ends = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    evidence = f"{result['difference']:+.3f}{ends}, McNemar p = {p:.2g}"
    if low is None or low <= 0 <= high or (low == high and p >= 0.05):
        return f"No difference that these data can show: B - A = {evidence}"
    return f"{'B' if low > 0 else 'A'} is better: B - A = {evidence}"


def print_comparison(comparison: dict) -> None:
    """Print what `compare` returned as tables, and the verdict."""
    console = Console()
    for name in ("a", "b"):
        console.print(Text(f"{name.upper()}: {comparison[name]}"))
    console.print()
    for layout in LAYOUTS:
        print_table(layout.fill(comparison["results"]))
    if comparison["dropped"]:
        console.print(Text(f"{comparison['dropped']:,} rows were dropped by one or both models"))
    console.print(Text(CAVEAT))
    console.print(Text(verdict(comparison), style="bold"))


def write_comparison(folder: str | Path, comparison: dict) -> None:
    """Write what `compare` returned as compare.json and compare.md, into a new or old folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Comparison of two reward models",
        f"- A: {markdown_code(comparison['a'])}\n- B: {markdown_code(comparison['b'])}\n"
        f"- Rows dropped by one or both: {comparison['dropped']:,}",
        f"**{verdict(comparison)}**",
        CAVEAT,
        *(markdown_table(layout.fill(comparison["results"])) for layout in LAYOUTS),
    ]
    text = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    write_whole(folder / "compare.json", text)
    write_whole(folder / "compare.md", "\n\n".join(parts) + "\n")
