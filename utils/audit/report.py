"""The audit of the data for people: a summary on the screen; audit.md, audit.json, rows.jsonl."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from utils.audit.findings import Finding, find_findings
from utils.audit.pictures import draw_audit
from utils.data.audit import Audit, Matches
from utils.output.files import whole_file, write_whole
from utils.output.tables import (
    TOTAL,
    TableTemplate,
    TextTable,
    interval_text,
    markdown_code,
    markdown_report,
    number_text,
    percent_text,
    print_table,
)

PICTURES = {
    "lengths.png": "Tokens of what trains, before any cutting: prompts, answers of the ranked "
    "pairs, and whole sequences. What lies right of the line is cut or dropped.",
    "length_gap.png": "How often the longer answer is the better one, by how much longer it is. "
    "Far from 0.5, a model can learn length instead of quality.",
}


def _share(count: int, of: int) -> str:
    return percent_text(count / of if of else None)


def _leaks(result: dict) -> str:
    return number_text(result.get("leaks"), ",")  # there are none among what trains


def _spread(get: Callable[[dict], dict | None]) -> dict[str, Callable[[dict], str]]:
    """Columns of the results of a histogram."""

    def show(key: str, form: str) -> Callable[[dict], str]:
        return lambda result: number_text((get(result) or {}).get(key), form)

    return {
        "mean": show("mean", ",.1f"),
        "median": show("median", ","),
        "95 %": show("p95", ","),
        "largest": show("max", ","),
    }


def _lengths(name: str, title: str, unit: str) -> TableTemplate:
    note = f"Tokens before any cutting; one count {unit}."
    return TableTemplate(title, note, _spread(lambda r: r["lengths"][name]))


SUMMARY = TableTemplate(
    "Data",
    "",
    {
        "rows": lambda r: f"{r['rows']:,}",
        "left\nout": lambda r: f"{r['rows'] - r['comparisons']:,}",
        "dupli-\ncates": lambda r: f"{r['duplicates']:,}",
        "contra-\ndictory": lambda r: f"{r['contradictions']:,}",
        "on both\nsides": _leaks,
        "cut": lambda r: _share(r["cut"]["rows"], r["rows"]),
        "longer\nbetter": lambda r: percent_text(r["longer_better"]["share"]),
    },
)
REPEATS = TableTemplate(
    "Repeats and contradictions",
    "Comparisons that repeat an earlier one of their side (prompt, answers and ranking); that "
    "rank two answers the other way round than another one of their side and prompt; and those "
    "to evaluate whose prompt trains.",
    {
        "duplicates": lambda r: f"{r['duplicates']:,}",
        "contradictory": lambda r: f"{r['contradictions']:,}",
        "on both sides": _leaks,
    },
)
CUT = TableTemplate(
    "Cut",
    "Rows that are longer than --max_seq_len and were cut, and the tokens that the longest "
    "sequence of each lost.",
    {
        "rows": lambda r: f"{r['cut']['rows']:,}",
        "share": lambda r: _share(r["cut"]["rows"], r["rows"]),
        **_spread(lambda r: r["cut"]["tokens"]),
    },
)
LENGTH_LAYOUTS = (
    _lengths("prompt", "Prompts", "a comparison"),
    _lengths("better", "Better answers", "a ranked pair"),
    _lengths("worse", "Worse answers", "a ranked pair"),
    _lengths("sequence", "Whole sequences", "an answer with its prompt"),
)
LONGER = TableTemplate(
    "Length of the better answer",
    "How often the longer answer is the better one, over ranked pairs of different lengths in "
    "tokens, with a 95 % interval (Wilson's, one trial a comparison).",
    {
        "ranked pairs": lambda r: f"{r['pairs']:,}",
        "of different lengths": lambda r: f"{r['longer_better']['pairs']:,}",
        "longer better": lambda r: number_text(r["longer_better"]["share"]),
        "interval": lambda r: interval_text(r["longer_better"]["low"], r["longer_better"]["high"]),
    },
)
TOKENS = TableTemplate(
    "Tokens of an epoch",
    "Packed: what the answers of a comparison share is computed once. Separate: as if every "
    "answer were a row of its own.",
    {
        "packed": lambda r: f"{r['tokens']['packed']:,}",
        "separate": lambda r: f"{r['tokens']['separate']:,}",
    },
)


def print_audit(audit: Audit, seconds: float | None = None) -> list[Finding]:
    """Print a summary: a line a source, the tokens, the time, and the findings; return these.

    Args:
        audit: of the data.
        seconds: that training is estimated to take; None if that is not known.
    """
    results, findings = audit_results(audit), find_findings(audit)
    print_table(SUMMARY.fill({result["path"]: result for result in results}, "path"))
    marks = [f"{'!!' if one.serious else '!'} {one.sentence}" for one in findings]
    for line in [*_work(results, seconds), *marks]:
        Console().print(Text(line))
    return findings


def write_audit(
    folder: str | Path, audit: Audit, settings: dict, seconds: float | None = None
) -> list[Path]:
    """Write audit.md, audit.json, rows.jsonl and the pictures; each file is whole at any moment.

    Args:
        folder: is made if it is missing.
        audit: of the data.
        settings: what the audit holds for, ready for JSON; with max_seq_len.
        seconds: as in `print_audit`.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results, findings = audit_results(audit), find_findings(audit)
    pictures = draw_audit(audit.total("training"), settings["max_seq_len"], folder)
    pairs = audit.total("evaluation").pairs
    report = {
        "settings": settings,
        "findings": [asdict(finding) for finding in findings],
        "results": results,
        "evaluation_pairs": pairs,
        "leaked_prompts": len(audit.repeats.leaked_prompts),
        "estimated_seconds": seconds,
    }
    evaluation = f"Pairs to evaluate: {pairs:,}."
    text = markdown_report(
        "Audit of the data",
        [*_work(results, seconds), evaluation, "Every defect of every row is in rows.jsonl."],
        [f"{'**Serious**: ' if one.serious else ''}{one.sentence}" for one in findings],
        audit_tables(results),
        {path.name: PICTURES[path.name] for path in pictures},
        settings,
    )
    with whole_file(folder / "rows.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for defect in _defects(audit):  # there may be millions
            file.write(json.dumps(defect) + "\n")
    values = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return [
        write_whole(folder / "audit.json", values),
        write_whole(folder / "audit.md", text),
        folder / "rows.jsonl",
        *pictures,
    ]


def audit_results(audit: Audit) -> list[dict]:
    """All figures of each source, and of each side that has several, with `path` and `side`.

    Paths are different ones: a second one of the same name is numbered.
    """
    results: list[dict] = []
    repeats = audit.repeats
    for side, sources in audit.sources.items():
        matches = {
            "duplicates": repeats.duplicates[side],
            "contradictions": repeats.contradictions[side],
            **({"leaks": repeats.leaks} if side == "evaluation" else {}),
        }
        parts = [(source.path, source.figures) for source in sources]
        counts = {
            name: np.bincount(one.path, minlength=len(parts)).tolist()
            for name, one in matches.items()
        }
        total = f"{TOTAL} ({side})"
        if len(parts) > 1:
            parts.append((total, audit.total(side)))
            counts = {name: [*count, sum(count)] for name, count in counts.items()}
        for number, (path, figures) in enumerate(parts):
            is_total = number == len(sources)
            taken = [result["path"] for result in results]
            if path in taken or (path == total and not is_total):
                path = f"{path} ({side}, {number + 1})"
            own = {name: count[number] for name, count in counts.items()}
            results.append({"path": path, "side": side, **figures.results(), **own})
    return results


def _defects(audit: Audit) -> Iterator[dict]:
    """Every defect of every row."""
    for sources in audit.sources.values():
        for source in sources:
            for reason, rows in source.dropped_rows.items():
                details = source.problems.get(reason) or ["left out"] * len(rows)
                for row, detail in zip(rows.tolist(), details, strict=True):
                    yield {"path": source.path, "row": row, "defect": reason, "detail": detail}
            for part, rows in source.unrendered.items():
                fields = {"defect": "part of the prompt not rendered", "detail": part}
                yield from ({"path": source.path, "row": row, **fields} for row in rows.tolist())
    repeats, left = audit.repeats, audit.left
    opposite = "{other} ranks two of its answers the other way round"
    for side in audit.sources:
        pairs = repeats.duplicates[side], left.duplicates[side]
        yield from _repeated(*pairs, "exact duplicate", "repeats {other}")
        pairs = repeats.contradictions[side], left.contradictions[side]
        yield from _repeated(*pairs, "contradictory labels", opposite)
    trains = "{other} trains its prompt"
    yield from _repeated(repeats.leaks, left.leaks, "prompt on both sides", trains)


def _repeated(matches: Matches, left: Matches, defect: str, text: str) -> Iterator[dict]:
    """Of what trains and evaluates, then of what was removed or cannot be used."""
    yield from _matched(left, defect, text)
    yield from _matched(matches.without(left), defect, f"{text}; left out")


def _matched(matches: Matches, defect: str, text: str) -> Iterator[dict]:
    columns = (matches.path, matches.row, matches.other_path, matches.other_row)
    for path, row, other_path, other_row in zip(*map(np.ndarray.tolist, columns), strict=True):
        detail = text.format(other=f"row {other_row} of {matches.other_paths[other_path]}")
        yield {"path": matches.paths[path], "row": row, "defect": defect, "detail": detail}


def audit_tables(results: list[dict]) -> list[TextTable]:
    """Rows, repeats, cutting, lengths, length against quality, tokens, and the sources column."""
    layouts = [_rows_layout(results), REPEATS, CUT, *LENGTH_LAYOUTS, LONGER, TOKENS]
    groups = {result["path"]: result for result in results}
    side = {"side": lambda r: r["side"]}
    tables = [one._replace(columns=side | one.columns).fill(groups, "path") for one in layouts]
    return [*tables, _sources_table(results)]


def _rows_layout(results: list[dict]) -> TableTemplate:
    def count(reason: str) -> Callable[[dict], str]:
        return lambda r: f"{r['dropped'].get(reason, 0):,}"

    columns = {"read": lambda r: f"{r['rows']:,}", "usable": lambda r: f"{r['comparisons']:,}"}
    reasons = sorted({reason for result in results for reason in result["dropped"]})
    return TableTemplate(
        "Rows",
        "What was read, what can train, and what is left out, by reason.",
        columns | {reason: count(reason) for reason in reasons},
    )


def _sources_table(results: list[dict]) -> TextTable:
    rows = [
        (result["path"], markdown_code(name), f"{count:,}", _share(count, result["rows"]))
        for result in results
        for name, count in result["sources"].items()
    ]
    note = "Rows by where they say that they come from."
    return TextTable("Sources", note, ("path", "source", "rows", "share"), rows)


def _work(results: list[dict], seconds: float | None) -> list[str]:
    """Sentences on the tokens of all that trains, and on the time, if that is known."""
    tokens = [result["tokens"] for result in results if result["side"] == "training"][-1]
    work = [
        f"Tokens to train: {tokens['packed']:,} an epoch with what answers share computed once, "
        f"{tokens['separate']:,} as if every answer were a row of its own."
    ]
    if seconds:
        sizes = ((3600 * 48, 86400, "days"), (5400, 3600, "hours"), (90, 60, "minutes"))
        divisor, unit = next((size[1:] for size in sizes if seconds >= size[0]), (1, "seconds"))
        work.append(
            f"Estimated time: {seconds / divisor:.2g} {unit} for all epochs, without evaluations, "
            "from the time of single layers on this device."
        )
    return work
