"""The audit of the data that a run was given: it only reads what was decided about them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from utils.audit.findings import find_findings
from utils.audit.report import SUMMARY, work_sentences, write_audit
from utils.audit.results import audit_results, total_of
from utils.audit.rows import TRAINING, read_data
from utils.data.row_selection import Split
from utils.output.tables import print_table


def audit(
    splits: Sequence[Split],
    settings: dict,
    *,
    folder: Path | None = None,
    estimate: Callable[[int, int, float], float] | None = None,
) -> bool:
    """Print what the data are like: a line a source, the tokens, the time, and the findings.

    Args:
        splits: of row_selection.choose_rows.
        settings: what the audit holds for, ready for JSON; with max_seq_len.
        folder: where audit.md, audit.json, rows.jsonl and pictures are written; None: nowhere.
        estimate: seconds of all epochs, from the tokens and comparisons of one and the mean length
            of a sequence; None: the time is not said.

    Returns:
        Whether something serious was found.
    """
    data = read_data(splits)
    results = audit_results(data)
    findings = find_findings(data, results)

    seconds = None
    total = total_of(results, TRAINING)
    comparisons = int((data.rows["used"] & data.rows["training"]).sum())
    if estimate and total and comparisons:
        length = total["lengths"]["sequence"]["mean"]
        seconds = estimate(total["tokens"]["packed"], comparisons, length)

    print_table(SUMMARY.fill({result["path"]: result for result in results}, "path"))
    marks = [f"{'!!' if one.serious else '!'} {one.sentence}" for one in findings]
    for line in [*work_sentences(results, seconds), *marks]:
        Console().print(Text(line))
    if folder:
        write_audit(folder, data, results, findings, settings=settings, seconds=seconds)
    return any(finding.serious for finding in findings)
