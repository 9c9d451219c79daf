"""The audit of the data for people: audit.md, audit.json, rows.jsonl and pictures."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from utils.audit.findings import Finding, evaluation_pairs, leaked_prompts
from utils.audit.pictures import draw_audit
from utils.audit.results import lengths_of, total_of
from utils.audit.rows import CUT, TRAINING, AuditedData
from utils.output.files import whole_file, write_whole
from utils.output.tables import (
    TableTemplate,
    TextTable,
    count_at,
    interval_text,
    markdown_code,
    markdown_report,
    number_at,
    percent_text,
)

PICTURES = {
    "lengths.png": "Tokens of what trains, before any cutting: prompts, answers of the ranked "
    "pairs, and whole sequences. What lies right of the line is cut or dropped.",
    "length_gap.png": "How often the longer answer is the better one, by how much longer it is. "
    "Far from 0.5, a model can learn length instead of quality.",
}


def _spread_columns(*path: str) -> dict[str, Callable[[dict], str]]:
    return {
        "mean": number_at(*path, "mean", form=",.1f"),
        "median": count_at(*path, "median"),
        "95 %": count_at(*path, "p95"),
        "largest": count_at(*path, "max"),
    }


def _share(count: int, of: int) -> str:
    return percent_text(count / of if of else None)


def _share_cut(result: dict) -> str:
    return _share(result["cut"]["rows"], result["rows"])


SUMMARY = TableTemplate(
    "Data",
    "",
    {
        "rows": count_at("rows"),
        "left\nout": lambda r: f"{r['rows'] - r['comparisons']:,}",
        "dupli-\ncates": count_at("duplicates"),
        "contra-\ndictory": count_at("contradictions"),
        "on both\nsides": count_at("leaks"),
        "cut": _share_cut,
        "longer\nbetter": lambda r: percent_text(r["longer_better"]["share"]),
    },
)
LENGTH_TABLES = [
    ("Prompts", "prompt", "a comparison"),
    ("Better answers", "better", "a ranked pair"),
    ("Worse answers", "worse", "a ranked pair"),
    ("Whole sequences", "sequence", "an answer with its prompt"),
]
TABLES = [
    TableTemplate(
        "Repeats and contradictions",
        "Comparisons that repeat an earlier one of their side (prompt, answers and ranking); that "
        "rank two answers the other way round than another one of their side and prompt; and those "
        "to evaluate whose prompt trains.",
        {
            "duplicates": count_at("duplicates"),
            "contradictory": count_at("contradictions"),
            "on both sides": count_at("leaks"),
        },
    ),
    TableTemplate(
        "Cut",
        "Rows that are longer than --max_seq_len and were cut, and the tokens that the longest "
        "sequence of each lost.",
        {"rows": count_at("cut", "rows"), "share": _share_cut, **_spread_columns("cut", "tokens")},
    ),
    *(
        TableTemplate(
            title, f"Tokens before any cutting; one count {unit}.", _spread_columns("lengths", name)
        )
        for title, name, unit in LENGTH_TABLES
    ),
    TableTemplate(
        "Length of the better answer",
        "How often the longer answer is the better one, over ranked pairs of different lengths in "
        "tokens, with a 95 % interval (Wilson's, one trial a comparison).",
        {
            "ranked pairs": count_at("pairs"),
            "of different lengths": count_at("longer_better", "pairs"),
            "longer better": number_at("longer_better", "share"),
            "interval": lambda r: interval_text(
                r["longer_better"]["low"], r["longer_better"]["high"]
            ),
        },
    ),
    TableTemplate(
        "Tokens of an epoch",
        "Packed: what the answers of a comparison share is computed once. Separate: as if every "
        "answer were a row of its own.",
        {"packed": count_at("tokens", "packed"), "separate": count_at("tokens", "separate")},
    ),
]


def write_audit(
    folder: Path,
    data: AuditedData,
    results: list[dict],
    findings: list[Finding],
    *,
    settings: dict,
    seconds: float | None = None,
) -> None:
    """Write audit.md, audit.json, rows.jsonl and the pictures; each file is whole at any moment.

    Args:
        folder: is made if it is missing.
        data: what was read.
        results: of `audit_results`.
        findings: of `find_findings`.
        settings: what the audit holds for, ready for JSON; with max_seq_len.
        seconds: that training is estimated to take; None if that is not known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = total_of(results, TRAINING)
    gaps = total["longer_better"]["gaps"] if total else []
    pictures = draw_audit(lengths_of(data, TRAINING), gaps, settings["max_seq_len"], folder)
    pairs = evaluation_pairs(results)
    report = {
        "settings": settings,
        "findings": [asdict(finding) for finding in findings],
        "results": results,
        "evaluation_pairs": pairs,
        "leaked_prompts": leaked_prompts(data),
        "estimated_seconds": seconds,
    }
    values = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "audit.json", values + "\n")

    facts = [f"Pairs to evaluate: {pairs:,}.", "Every defect of every row is in rows.jsonl."]
    text = markdown_report(
        "Audit of the data",
        facts=[*work_sentences(results, seconds), *facts],
        warnings=[f"{'**Serious**: ' if one.serious else ''}{one.sentence}" for one in findings],
        tables=_tables(results),
        pictures={path.name: PICTURES[path.name] for path in pictures},
        settings=settings,
    )
    write_whole(folder / "audit.md", text)

    defects = data.defects[data.defects["defect"] != CUT]
    places = data.rows.loc[defects["comparison"], ["split", "row"]]
    with whole_file(folder / "rows.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        lines = zip(
            places["split"], places["row"], defects["defect"], defects["detail"], strict=True
        )
        for split, row, defect, detail in lines:  # there may be millions
            line = {"path": data.splits[split][1], "row": row, "defect": defect, "detail": detail}
            file.write(json.dumps(line) + "\n")


def work_sentences(results: list[dict], seconds: float | None) -> list[str]:
    """Sentences on the tokens of all that trains, and on the time, if that is known."""
    total = total_of(results, TRAINING)
    assert total, "nothing was read to train"
    tokens = total["tokens"]
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


def _tables(results: list[dict]) -> list[TextTable]:
    """Rows, TABLES, and the rows by their column `source`."""
    reasons = sorted({reason for result in results for reason in result["dropped"]})
    columns = {"read": count_at("rows"), "usable": count_at("comparisons")}
    columns |= {reason: partial(_dropped_for, reason) for reason in reasons}
    note = "What was read, what can train, and what is left out, by reason."
    templates = [TableTemplate("Rows", note, columns), *TABLES]

    groups = {result["path"]: result for result in results}
    side = {"side": lambda r: r["side"]}
    tables = [one._replace(columns=side | one.columns).fill(groups, "path") for one in templates]

    sources = [
        (result["path"], markdown_code(name), f"{count:,}", _share(count, result["rows"]))
        for result in results
        for name, count in result["sources"].items()
    ]
    note = "Rows by where they say that they come from."
    return [*tables, TextTable("Sources", note, ("path", "source", "rows", "share"), sources)]


def _dropped_for(reason: str, result: dict) -> str:
    return f"{result['dropped'].get(reason, 0):,}"
