"""Results as text for people: tables on the screen, report.md and report.json, warnings."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from utils.evaluation.pictures import draw_pictures
from utils.output.files import write_whole
from utils.output.tables import (
    RULE,
    TableTemplate,
    TextTable,
    count_at,
    interval_text,
    markdown_code,
    markdown_report,
    number_at,
    number_text,
    percent_text,
    print_table,
)

CAPTIONS = {
    "scores.png": "Scores of the better and of the worse answer of each pair. The less the two "
    "shapes overlap, the better; a lone spike means that many answers get the same score.",
    "calibration.png": "How often the model is right against how sure it is, sigmoid(|margin|). "
    "Points on the diagonal are well calibrated; below it the model is too sure, above it too "
    "cautious. Trust points with many pairs (lower panel).",
    "length.png": "Accuracy against how much longer the better answer is than the worse one. A "
    "flat line is good; a line that rises from left to right means that the model likes long "
    "answers.",
    "sources.png": "Accuracy of each source with its 95 % interval. A bar whose interval crosses "
    "the line at 0.5 may be chance.",
}

ACCURACY_TABLE = TableTemplate(
    "Accuracy",
    "Share of pairs whose better answer has the higher score; equal scores (ties) count half. "
    "The 95 % interval knows that pairs of one prompt resemble each other. Margin: better "
    "minus worse score. Loss: Bradley-Terry, in nats.",
    {
        "pairs": count_at("pairs"),
        "accuracy": number_at("accuracy"),
        "95 %\ninterval": lambda m: interval_text(m["accuracy_low"], m["accuracy_high"]),
        "ties": count_at("ties"),
        "margin": number_at("margin"),
        "loss": number_at("loss"),
    },
)
RANKING_TABLE = TableTemplate(
    "Ranking of more than two answers",
    "Kendall's tau: 1 if scores order the answers as the ranks do, 0 at random. Best of K: how "
    "often the highest score is on a best answer; by chance: for a random choice. MRR: mean of "
    "1 / (place of the best answer).",
    {
        "compari-\nsons": count_at("comparisons"),
        "answers\nup to": count_at("answers"),
        "tau": number_at("kendall_tau"),
        "best\nof K": number_at("best_of_k"),
        "by\nchance": number_at("best_of_k_chance"),
        "MRR": number_at("mrr"),
    },
)
CALIBRATION_TABLE = TableTemplate(
    "Calibration",
    "Is sigmoid(margin) the chance to be right? Brier score (0 is perfect, 0.25 says nothing), "
    "expected calibration error (0 is perfect), and the temperature that scores should be "
    "divided by: 1 is calibrated, more is too sure, less too cautious; none if no pair is "
    "wrong, or most are.",
    {
        "Brier\nscore": number_at("brier"),
        "calibration\nerror": number_at("ece"),
        "temper-\nature": number_at("temperature", form=".3g"),
    },
)
LENGTH_TABLE = TableTemplate(
    "Length of the answers",
    "Accuracy where the longer or the shorter answer is the better one, in tokens; how often "
    "the longer answer scores higher; Pearson's correlation r of score and length over "
    "answers, and of their differences over pairs. Accuracies far apart mean that length "
    "counts.",
    {
        "longer\nbetter": number_at("length", "longer_accuracy"),
        "shorter\nbetter": number_at("length", "shorter_accuracy"),
        "prefers\nlonger": number_at("length", "prefers_longer"),
        "r,\nanswers": number_at("length", "correlation"),
        "r,\npairs": number_at("length", "pair_correlation"),
    },
)
SCORES_TABLE = TableTemplate(
    "Scores",
    "Of all scored answers: mean, standard deviation, median, and the scores below which 5 % "
    "and 95 % of them lie.",
    {
        "mean": number_at("score_mean"),
        "standard\ndeviation": number_at("score_std"),
        "5 %": number_at("score_percentiles", "5"),
        "median": number_at("score_percentiles", "50"),
        "95 %": number_at("score_percentiles", "95"),
    },
)


def print_scores(prompt: str, labelled: Sequence[tuple[str, str, float]]) -> None:
    """Print the answers to one prompt with their scores; the best score stands out.

    Args:
        prompt: shown above the answers.
        labelled: a label, the answer and its score, for each answer.
    """
    table = Table(box=RULE, pad_edge=False, show_lines=True)
    table.add_column("answer")
    table.add_column("text", ratio=1, overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)

    best = max(score for _, _, score in labelled)
    for label, text, score in labelled:
        style = "bold green" if score == best and len(labelled) > 1 else ""
        table.add_row(Text(label), Text(text.strip()), f"{score:.4f}", style=style)

    console = Console()
    console.print(Text(prompt.strip(), style="bold"), overflow="fold")
    console.print(table)


def print_results(results: dict[str, dict]) -> None:
    """Print the metrics of each source and what is suspicious about them.

    Args:
        results: metrics by group (metrics.Tallies), "all" last if there are several sources.
    """
    for table in result_tables(results):
        print_table(table)
    for warning in find_warnings(results, most=3):
        Console().print(Text(f"! {warning}"))


def benchmark_table(benchmark: dict) -> TextTable:
    """Scores of a benchmark by section and overall; RM-Bench's also by difficulty.

    Args:
        benchmark: name, sections (score by name), overall, and so on (benchmarks.Benchmark).
    """
    scores = {**benchmark["sections"], "overall": benchmark["overall"]}
    difficulties = benchmark.get("difficulties", {})
    levels = list(next(iter(difficulties.values()), ()))
    rows = [
        (name, number_text(score), *(number_text(difficulties[name][level]) for level in levels))
        for name, score in scores.items()
    ]

    title = f"Benchmark {benchmark['name']}"
    if benchmark["incomplete"]:
        title += f" (not all of it: {len(benchmark['incomplete'])} subsets differ in size)"
    note = "Scores as the benchmark itself counts them: a tie of scores is no success, as a rule."
    return TextTable(title, note, ("section", "score", *levels), rows)


def result_tables(results: dict[str, dict]) -> list[TextTable]:
    """Accuracy, ranking of more than two answers, calibration, length; scores.

    Of answers that nobody ranked there is only the last one.
    """
    groups = results.values()
    if not any(metrics["pairs"] for metrics in groups):
        return [SCORES_TABLE.fill(results)]

    ranking = [RANKING_TABLE] if any(metrics["answers"] > 2 for metrics in groups) else []
    calibration = CALIBRATION_TABLE
    if any(metrics["soft_loss"] is not None for metrics in groups):
        votes = {"loss on\nvotes": number_at("soft_loss")}
        calibration = CALIBRATION_TABLE._replace(columns=CALIBRATION_TABLE.columns | votes)

    templates = [ACCURACY_TABLE, *ranking, calibration, LENGTH_TABLE, SCORES_TABLE]
    return [template.fill(results) for template in templates]


def find_warnings(
    results: dict[str, dict], most: int | None = None, show: Callable[[str], str] = str
) -> list[str]:
    """What is suspicious in plain words, each with its threshold and the groups it is true of.

    Args:
        results: metrics by group.
        most: groups to name; None names all.
        show: makes of a group's name what is written.
    """
    found: dict[str, list[str]] = {}
    *sources, whole = results
    for source in (whole, *sources):
        for text, value in _suspicions(results[source]):
            found.setdefault(text, []).append(f"{show(source)} ({value})")

    return [
        f"{text}: {', '.join(groups[:most])}"
        + (f" and {len(groups) - most} more" if most and len(groups) > most else "")
        for text, groups in found.items()
    ]


def _suspicions(metrics: dict) -> Iterator[tuple[str, str]]:
    """Warnings, each with the number that gives rise to it."""
    yield from _suspicious_scores(metrics)

    pairs, low, high = metrics["pairs"], metrics["accuracy_low"], metrics["accuracy_high"]
    if pairs < 100:
        if pairs:
            yield "Fewer than 100 pairs, so accuracy, calibration and length are rough", f"{pairs}"
        return

    if low is not None and low <= 0.5 <= high:
        text = "The interval of the accuracy includes 0.5, so the model may as well be guessing"
        yield text, interval_text(low, high)
    if high is not None and high < 0.5:
        text = "The whole interval of the accuracy is below 0.5; are the ranks the wrong way round?"
        yield text, interval_text(low, high)

    if metrics["ties"] > 0.05 * pairs:
        text = "More than 5 % of the pairs have equal scores; --dtype fp32 tells more apart"
        yield text, percent_text(metrics["ties"] / pairs)

    temperature = metrics["temperature"]
    if temperature is not None and not 0.5 <= temperature <= 2:
        text = "The temperature is outside 0.5 to 2, so sigmoid(margin) is no chance to be right"
        yield f"{text}; divide scores by it where that counts", f"{temperature:.3g}"

    yield from _suspicious_length(metrics["length"])


def _suspicious_scores(metrics: dict) -> Iterator[tuple[str, str]]:
    mean, deviation = metrics["score_mean"], metrics["score_std"]
    if mean is None:
        return

    percentiles = metrics["score_percentiles"]
    if deviation < 0.01 or percentiles["25"] == percentiles["75"]:
        yield (
            "The scores are constant or saturated (standard deviation below 0.01, or the middle "
            "half is one number)",
            f"{deviation:.2g}",
        )

    if abs(mean) > max(1, 2 * deviation):
        yield (
            "The scores are not centred (mean more than 1 and more than two standard deviations "
            "from 0); subtract the mean before reinforcement learning",
            f"{mean:.3g}",
        )


def _suspicious_length(length: dict) -> Iterator[tuple[str, str]]:
    """Only of pairs with unequal lengths."""
    longer, shorter = length["longer_pairs"], length["shorter_pairs"]
    if not longer or not shorter:
        return

    prefers = length["prefers_longer"]
    of_longer, of_shorter = length["longer_accuracy"], length["shorter_accuracy"]
    if abs(prefers - 0.5) > 0.2 and min(of_longer, of_shorter) < 0.5:
        liked, other = ("longer", "shorter") if prefers > 0.5 else ("shorter", "longer")
        yield (
            f"The scores follow length: the {liked} answer scores higher in more than 70 % of the "
            f"pairs, and where the {other} one is better, accuracy is below 0.5",
            f"{max(prefers, 1 - prefers):.3f}, {min(of_longer, of_shorter):.3f}",
        )

    accuracy = (of_longer * longer + of_shorter * shorter) / (longer + shorter)
    rule = max(longer, shorter) / (longer + shorter)
    if accuracy < rule + 0.02:
        yield (
            "The model is at most hardly better than the rule that the longer answer wins, or the "
            "shorter one (accuracy less than 0.02 above that of the better rule)",
            f"{accuracy:.3f}, rule {rule:.3f}",
        )


def write_evaluation(folder: str | Path, report: dict) -> list[Path]:
    """Write report.json, report.md and its pictures; each file is whole at any moment.

    Args:
        folder: is made if it is missing.
        report: model, data, settings, label, rows, results (metrics by group), benchmark or None.

    Returns:
        The files.

    Raises:
        ValueError: the report holds a NaN or an infinity, for which JSON has no word.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    results, benchmark = report["results"], report["benchmark"]
    pictures = draw_pictures(results, folder)
    warnings = find_warnings(results, show=markdown_code)
    text = markdown_report(
        "Evaluation of a reward model",
        facts=_facts(report),
        warnings=[*warnings, *_more_warnings(report["rows"], benchmark)],
        tables=[*([benchmark_table(benchmark)] if benchmark else []), *result_tables(results)],
        pictures={path.name: CAPTIONS[path.name] for path in pictures},
        settings=report["settings"],
    )
    values = json.dumps(report, indent=2, allow_nan=False) + "\n"

    return [
        write_whole(folder / "report.json", values),
        write_whole(folder / "report.md", text),
        *pictures,
    ]


def _facts(report: dict) -> list[str]:
    rows = report["rows"]
    counts = [f"{rows['read']:,} read", f"{rows['scored']:,} scored"]
    counts += [f"{number:,} dropped ({reason})" for reason, number in rows["dropped"].items()]
    return [
        f"Model: {markdown_code(report['model'])}",
        f"Data: {', '.join(map(markdown_code, report['data']))}",
        f"Rows: {', '.join(counts)}",
        f"Calibration against: {'votes' if report['label'] == 'soft' else 'ranks'}",
    ]


def _more_warnings(rows: dict, benchmark: dict | None) -> Iterator[str]:
    """Of rows and of the benchmark."""
    dropped = sum(rows["dropped"].values())
    if dropped > 0.1 * rows["read"]:
        yield f"More than 10 % of the rows were dropped: {dropped:,} of {rows['read']:,}"
    if not benchmark:
        return
    for name, (found, size) in benchmark["incomplete"].items():
        expected = f" instead of {size:,}" if size else ""
        yield f"The benchmark's {markdown_code(name)} has {found:,} scored comparisons{expected}"
    if unknown := benchmark["unknown"]:
        yield f"{unknown:,} comparisons are in no subset that the benchmark has"
