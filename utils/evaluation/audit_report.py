"""The audit of the data for people: a summary on the screen; audit.md, audit.json, rows.jsonl."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from utils.data.audit import Audit, Matches
from utils.data.figures import LENGTHS
from utils.data.tokenization import MALFORMED
from utils.evaluation.audit_findings import Finding, find_findings
from utils.evaluation.audit_plots import draw_audit
from utils.evaluation.tables import (
    TextTable,
    figure,
    interval,
    markdown_code,
    markdown_table,
    print_table,
    write_whole,
)

PICTURES = {
    "lengths.png": "Tokens of what trains, before any cutting: prompts, answers of the ranked "
    "pairs, and whole sequences. What lies right of the line is cut or dropped.",
    "length_gap.png": "How often the longer answer is the better one, by how much longer it is. "
    "Far from 0.5, a model can learn length instead of quality.",
}


def print_audit(audit: Audit, seconds: float | None = None) -> list[Finding]:
    """Print a summary: a line a source, what should worry people, the tokens and the time.

    Args:
        audit: of the data.
        seconds: that training is estimated to take.

    Returns:
        The findings.
    """
    results, findings = audit_results(audit), find_findings(audit)
    print_table(_summary_table(results))
    lines = [_tokens(results), *([_time(seconds)] if seconds else [])]
    marks = [f"{'!!' if one.serious else '!'} {one.sentence}" for one in findings]
    for line in [*lines, *marks]:
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
    report = {
        "settings": settings,
        "findings": [asdict(finding) for finding in findings],
        "results": results,
        "evaluation_pairs": audit.total("evaluation").pairs,
        "leaked_prompts": len(audit.repeats.leaked_prompts),
        "estimated_seconds": seconds,
    }
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return [
        write_whole(folder / "audit.json", text),
        write_whole(folder / "audit.md", _markdown(report, [path.name for path in pictures])),
        _write_rows(folder / "rows.jsonl", audit),
        *pictures,
    ]


def audit_results(audit: Audit) -> list[dict]:
    """All figures of each source, and of each side that has several, with `path` and `side`.

    Paths are different ones: a second one of the same name is numbered.
    """
    results, repeats = [], audit.repeats
    for side, sources in audit.sources.items():
        matches = {
            "duplicates": repeats.duplicates[side],
            "contradictions": repeats.contradictions[side],
            **({"leaks": repeats.leaks} if side == "evaluation" else {}),
        }
        parts = [(source.path, source.figures) for source in sources]
        counts = {
            name: np.bincount(one.path, minlength=len(parts)) for name, one in matches.items()
        }
        if len(parts) > 1:
            parts.append((f"all ({side})", audit.total(side)))
            counts = {name: np.append(count, count.sum()) for name, count in counts.items()}
        for number, (path, figures) in enumerate(parts):
            if path in [result["path"] for result in results]:
                path = f"{path} ({side}, {number + 1})"
            own = {name: int(count[number]) for name, count in counts.items()}
            results.append({"path": path, "side": side, **figures.results(), **own})
    return results


def _defects(audit: Audit) -> Iterator[dict]:
    """Every defect of every row."""
    for side in audit.sources.values():
        for source in side:
            for reason, rows in source.dropped_rows.items():
                details = source.problems if reason == MALFORMED else ["left out"] * len(rows)
                for row, detail in zip(rows.tolist(), details, strict=True):
                    yield {"path": source.path, "row": row, "defect": reason, "detail": detail}
    repeats = audit.repeats
    for side in audit.sources:
        text = "repeats {other}"
        yield from _matched(repeats.duplicates[side], "exact duplicate", text)
        text = "{other} ranks two of its answers the other way round"
        yield from _matched(repeats.contradictions[side], "contradictory labels", text)
    text = "{other} trains its prompt; removed from the evaluation"
    yield from _matched(repeats.leaks, "prompt on both sides", text)


def _matched(matches: Matches, defect: str, text: str) -> Iterator[dict]:
    columns = (matches.path, matches.row, matches.other_path, matches.other_row)
    for path, row, other_path, other_row in zip(*map(np.ndarray.tolist, columns), strict=True):
        other = f"row {other_row} of {matches.other_paths[other_path]}"
        detail = text.format(other=other)
        yield {"path": matches.paths[path], "row": row, "defect": defect, "detail": detail}


def _write_rows(path: Path, audit: Audit) -> Path:
    """One line a defect, written while they are found: there may be millions."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for defect in _defects(audit):
            file.write(json.dumps(defect) + "\n")
    os.replace(partial, path)
    return path


def _markdown(report: dict, pictures: Sequence[str]) -> str:
    """audit.md."""
    results, seconds = report["results"], report["estimated_seconds"]
    findings = [
        f"- {'**Serious**: ' if one['serious'] else ''}{one['sentence']}"
        for one in report["findings"]
    ]
    facts = [_tokens(results), *([_time(seconds)] if seconds else [])]
    facts.append(f"Pairs to evaluate: {report['evaluation_pairs']:,}.")
    parts = [
        "# Audit of the data",
        "\n".join(f"- {fact}" for fact in facts),
        "## What to look out for",
        "\n".join(findings) or "Nothing crossed a threshold.",
        "Every defect of every row is in rows.jsonl.",
        *map(markdown_table, audit_tables(results)),
        "## Pictures" if pictures else "",
        *(f"{PICTURES[name]}\n\n![{name}]({name})" for name in pictures),
        "## Settings",
        f"```json\n{json.dumps(report['settings'], indent=2)}\n```",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def audit_tables(results: list[dict]) -> list[TextTable]:
    """Rows, repeats, cutting, lengths, length against quality, tokens, and the sources column."""
    return [
        _dropped_table(results),
        _repeats_table(results),
        _cut_table(results),
        *(_length_table(results, name) for name in LENGTHS),
        _longer_table(results),
        _tokens_table(results),
        _sources_table(results),
    ]


def _summary_table(results: list[dict]) -> TextTable:
    columns = {
        "rows": lambda r: f"{r['rows']:,}",
        "left\nout": lambda r: f"{r['rows'] - r['comparisons']:,}",
        "dupli-\ncates": lambda r: f"{r['duplicates']:,}",
        "contra-\ndictory": lambda r: f"{r['contradictions']:,}",
        "on both\nsides": lambda r: f"{r['leaks']:,}" if "leaks" in r else "-",
        "cut": lambda r: _share(r["cut"]["rows"], r["rows"]),
        "longer\nbetter": lambda r: _percent(r["longer_better"]["share"]),
    }
    return _table(results, "Data", "", columns, side=False)


def _dropped_table(results: list[dict]) -> TextTable:
    reasons = sorted({reason for result in results for reason in result["dropped"]})
    columns = {
        "read": lambda r: f"{r['rows']:,}",
        "usable": lambda r: f"{r['comparisons']:,}",
        **{
            reason: lambda r, reason=reason: f"{r['dropped'].get(reason, 0):,}"
            for reason in reasons
        },
    }
    note = "What was read, what can train, and what is left out, by reason."
    return _table(results, "Rows", note, columns)


def _repeats_table(results: list[dict]) -> TextTable:
    return _table(
        results,
        "Repeats and contradictions",
        "Comparisons that repeat an earlier one of their side (prompt, answers and ranking); that "
        "rank two answers the other way round than another one of their side and prompt; and those "
        "to evaluate whose prompt trains.",
        {
            "duplicates": lambda r: f"{r['duplicates']:,}",
            "contradictory": lambda r: f"{r['contradictions']:,}",
            "on both sides": lambda r: f"{r['leaks']:,}" if "leaks" in r else "-",
        },
    )


def _cut_table(results: list[dict]) -> TextTable:
    return _table(
        results,
        "Cut",
        "Rows that are longer than --max_seq_len and were cut, and the tokens that the longest "
        "sequence of each lost.",
        {
            "rows": lambda r: f"{r['cut']['rows']:,}",
            "share": lambda r: _share(r["cut"]["rows"], r["rows"]),
            **_spread(lambda r: r["cut"]["tokens"]),
        },
    )


def _length_table(results: list[dict], name: str) -> TextTable:
    titles = {
        "prompt": ("Prompts", "a comparison"),
        "better": ("Better answers", "a ranked pair"),
        "worse": ("Worse answers", "a ranked pair"),
        "sequence": ("Whole sequences", "an answer with its prompt"),
    }
    title, unit = titles[name]
    columns = _spread(lambda r: r["lengths"][name])
    return _table(results, title, f"Tokens before any cutting; one count {unit}.", columns)


def _longer_table(results: list[dict]) -> TextTable:
    return _table(
        results,
        "Length of the better answer",
        "How often the longer answer is the better one, over ranked pairs of different lengths in "
        "tokens, with a 95 % interval (Wilson's, one trial a comparison).",
        {
            "ranked pairs": lambda r: f"{r['pairs']:,}",
            "of different lengths": lambda r: f"{r['longer_better']['pairs']:,}",
            "longer better": lambda r: figure(r["longer_better"]["share"]),
            "interval": lambda r: interval(r["longer_better"]["low"], r["longer_better"]["high"]),
        },
    )


def _tokens_table(results: list[dict]) -> TextTable:
    return _table(
        results,
        "Tokens of an epoch",
        "Packed: what the answers of a comparison share is computed once. Separate: as if every "
        "answer were a row of its own.",
        {
            "packed": lambda r: f"{r['tokens']['packed']:,}",
            "separate": lambda r: f"{r['tokens']['separate']:,}",
        },
    )


def _sources_table(results: list[dict]) -> TextTable:
    rows = [
        (result["path"], markdown_code(name), f"{count:,}", _share(count, result["rows"]))
        for result in results
        for name, count in result["sources"].items()
    ]
    note = "Rows by where they say that they come from."
    return TextTable("Sources", note, ("path", "source", "rows", "share"), rows)


def _table(
    results: list[dict],
    title: str,
    note: str,
    columns: dict[str, Callable[[dict], str]],
    side: bool = True,
) -> TextTable:
    if side:
        columns = {"side": lambda r: r["side"], **columns}
    rows = [(r["path"], *(value(r) for value in columns.values())) for r in results]
    return TextTable(title, note, ("path", *columns), rows)


def _spread(get: Callable[[dict], dict | None]) -> dict[str, Callable[[dict], str]]:
    """Columns of the results of a histogram."""
    names = {"mean": "mean", "median": "median", "95 %": "p95", "largest": "max"}

    def show(result: dict, key: str) -> str:
        spread = get(result)
        return "-" if spread is None else f"{spread[key]:,.{int(key == 'mean')}f}"

    return {name: partial(show, key=key) for name, key in names.items()}


def _tokens(results: list[dict]) -> str:
    """A sentence on the tokens of all that trains."""
    tokens = [result["tokens"] for result in results if result["side"] == "training"][-1]
    return (
        f"Tokens to train: {tokens['packed']:,} an epoch with what answers share computed once, "
        f"{tokens['separate']:,} as if every answer were a row of its own."
    )


def _time(seconds: float) -> str:
    sizes = ((3600 * 48, 86400, "days"), (5400, 3600, "hours"), (90, 60, "minutes"))
    divisor, unit = next((size[1:] for size in sizes if seconds >= size[0]), (1, "seconds"))
    return (
        f"Estimated time: {seconds / divisor:.2g} {unit} for all epochs, without evaluations, from "
        "the time of single layers on this device."
    )


def _share(count: int, of: int) -> str:
    return _percent(count / of if of else None)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
