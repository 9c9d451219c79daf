"""Two evaluations of the same rows side by side: is one model better, or is it chance?"""

import json
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path
from sys import intern

import numpy as np
import pandas as pd
import scipy  # loads its parts when they are first used, which only --compare does
from rich.console import Console
from rich.text import Text

from utils.evaluation.line_file import read_records
from utils.evaluation.score_tables import answer_pairs, is_pair, read_answers
from utils.evaluation.settings import ScorerSettings
from utils.evaluation.statistics import clustered_interval
from utils.output.files import check_folder, write_whole
from utils.output.tables import (
    TableTemplate,
    count_at,
    interval_text,
    markdown_code,
    markdown_table,
    number_at,
    print_table,
    with_total,
)
from utils.settings import InputError

LINES_AT_ONCE = 1024  # whose pairs are in memory together
CAVEAT = (
    "The interval is clustered by prompt, so it accounts for pairs that share one. McNemar's p "
    "does not: with more than two answers to a prompt, or repeated prompts, it is too small. It "
    "takes tied scores as not right, where the accuracy counts them half."
)
PAIRED_TABLES = (
    TableTemplate(
        "Accuracy",
        "Ties of scores count half.",
        {
            "pairs": count_at("pairs"),
            "A": number_at("accuracy_a"),
            "B": number_at("accuracy_b"),
            "B - A": number_at("difference", form="+.3f"),
            "95 %\ninterval": lambda m: interval_text(m["difference_low"], m["difference_high"]),
            "McNemar\np": number_at("mcnemar_p", form=".2g"),
        },
    ),
    TableTemplate(
        "Pairs that are strictly right",
        "Left out: pairs that one or both could not score, or whose answers are identical to "
        "one. Agreement: share of pairs that both rank right, both wrong, or both tied.",
        {
            "both": count_at("both_right"),
            "only A": count_at("only_a"),
            "only B": count_at("only_b"),
            "neither": count_at("neither_right"),
            "left\nout": count_at("left_out"),
            "agreement": number_at("agreement"),
        },
    ),
)


def compare_models(args: ScorerSettings) -> None:
    """Print the two evaluations of --compare side by side, and write that if there is a folder."""
    if args.output_dir:
        check_folder(args.output_dir, "--output_dir")
        if (Path(args.output_dir) / "compare.json").exists() and not args.overwrite_output_dir:
            raise InputError(
                f"{args.output_dir}: holds a comparison already: give --overwrite_output_dir to "
                "replace it, or another --output_dir"
            )

    comparison = compare_evaluations(*args.compare)
    print_comparison(comparison)
    if args.output_dir:
        write_comparison(args.output_dir, comparison)


def compare_evaluations(folder_a: str | Path, folder_b: str | Path) -> dict:
    """Compare two models on the same rows, pair by pair.

    The difference of accuracies (B minus A, ties count half) has a 95 % interval over clusters, the
    prompts (statistics.clustered_interval). McNemar's test (McNemar 1947, Psychometrika 12) is the
    exact two-sided binomial one on the pairs that one model ranks strictly right and the other does
    not. It takes pairs as independent, which those of one prompt are not; the interval does not.

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
    parts, sources, dropped = [], set(), 0
    lines = enumerate(zip_longest(_read_lines(folder_a), _read_lines(folder_b)), 1)
    while some := list(islice(lines, LINES_AT_ONCE)):
        records_a, records_b = [], []
        for number, (a, b) in some:
            _check_same(number, a, b, folder_a, folder_b)
            sources.add(a["source"])
            dropped += "dropped" in a or "dropped" in b
            records_a.append(_without_scores(a, b) if "dropped" in a else a)
            records_b.append(_without_scores(b, a) if "dropped" in b else b)

        parts.append(_outcomes(records_a, records_b))

    if not parts:
        raise InputError(f"{folder_a} and {folder_b}: scores.jsonl has no line")

    pairs = pd.concat(parts)
    places = pairs.groupby("source").indices
    results = {source: _summarize(pairs.iloc[places.get(source, [])]) for source in sorted(sources)}
    return {
        "a": str(folder_a),
        "b": str(folder_b),
        "dropped": dropped,
        "results": with_total(results, lambda: _summarize(pairs)),
    }


def _read_lines(folder: str | Path) -> Iterator[dict]:
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


def _without_scores(dropped: dict, other: dict) -> dict:
    """A record that one model dropped, with the answers that the other model's record has."""
    return {**other, **dropped, "ranks": other["ranks"], "scores": [None] * len(other["scores"])}


def _outcomes(records_a: list[dict], records_b: list[dict]) -> pd.DataFrame:
    """A row for each pair that at least one of the models has.

    `source`; `prompt`, a key; `a` and `b`, what each model made of it: 1 right, 0.5 tied, 0 wrong,
    NaN if it could not score both answers or if they have the same tokens for it.
    """
    answers_a, answers_b = read_answers(records_a), read_answers(records_b)
    better, worse = answer_pairs(answers_a)
    pair_a, pair_b = (is_pair(answers, better, worse) for answers in (answers_a, answers_b))
    chosen = pair_a | pair_b

    def outcome(answers: pd.DataFrame, pair: np.ndarray) -> np.ndarray:
        margin = answers.score.to_numpy()[better] - answers.score.to_numpy()[worse]
        return np.where(pair, (1 + np.sign(margin)) / 2, np.nan)[chosen]

    prompts = np.array([r.get("prompt", 0) % 2**64 for r in records_a], dtype=np.uint64)
    sources = np.array([intern(record["source"]) for record in records_a], dtype=object)
    comparison = answers_a.comparison.to_numpy()[better[chosen]]
    return pd.DataFrame(
        {
            "source": sources[comparison],
            "prompt": prompts[comparison],
            "a": outcome(answers_a, pair_a),
            "b": outcome(answers_b, pair_b),
        }
    )


def _summarize(pairs: pd.DataFrame) -> dict:
    """The metrics of some of the rows that `_outcomes` returns."""
    judged = pairs.dropna()
    a, b = judged.a.to_numpy(), judged.b.to_numpy()
    right_a, right_b = a == 1, b == 1
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0

    prompts, cluster = np.unique(judged.prompt, return_inverse=True)
    low = high = None
    if len(prompts) > 1:
        low, high = clustered_interval(np.bincount(cluster, b - a), np.bincount(cluster))

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return {
        "prompts": len(prompts),
        "pairs": len(judged),
        "left_out": len(pairs) - len(judged),
        "accuracy_a": mean(a),
        "accuracy_b": mean(b),
        "difference": mean(b - a),
        "difference_low": low,
        "difference_high": high,
        "both_right": int((right_a & right_b).sum()),
        "only_a": only_a,
        "only_b": only_b,
        "neither_right": int((~right_a & ~right_b).sum()),
        "mcnemar_p": float(p) if len(judged) else None,
        "agreement": mean(a == b),
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
    """Print what `compare_evaluations` returned as tables, and the verdict."""
    console = Console()
    for name in ("a", "b"):
        console.print(Text(f"{name.upper()}: {comparison[name]}"))
    console.print()

    for table in PAIRED_TABLES:
        print_table(table.fill(comparison["results"]))

    if comparison["dropped"]:
        console.print(Text(f"{comparison['dropped']:,} rows were dropped by one or both models"))
    console.print(Text(CAVEAT))
    console.print(Text(verdict(comparison), style="bold"))


def write_comparison(folder: str | Path, comparison: dict) -> None:
    """Write what `compare_evaluations` returned as compare.json and compare.md into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Comparison of two reward models",
        f"- A: {markdown_code(comparison['a'])}\n- B: {markdown_code(comparison['b'])}\n"
        f"- Rows dropped by one or both: {comparison['dropped']:,}",
        f"**{verdict(comparison)}**",
        CAVEAT,
        *(markdown_table(table.fill(comparison["results"])) for table in PAIRED_TABLES),
    ]
    text = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    write_whole(folder / "compare.json", text)
    write_whole(folder / "compare.md", "\n\n".join(parts) + "\n")
