"""An evaluation: rows are scored, metrics printed, and scores and report written."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from utils import distributed
from utils.evaluation.line_file import LineFile
from utils.evaluation.metrics import Tallies
from utils.evaluation.records import RowCounts, score_windows
from utils.evaluation.report import benchmark_table, print_results, write_evaluation
from utils.evaluation.rows import OpenSource
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import ScorerSettings
from utils.output.tables import print_table
from utils.settings import InputError


def evaluate(
    args: ScorerSettings,
    scorer: Scorer,
    sources: list[OpenSource],
    file: LineFile,
    score_benchmark: Callable[[list[dict]], dict] | None = None,
) -> None:
    """Score rows and print the metrics; write scores.jsonl and the report if there is a folder.

    Args:
        file: scores.jsonl; the lines that it has count too.
        score_benchmark: what a benchmark makes of all records; None: the rows are of none.

    Raises:
        InputError: no answer has a score.
    """
    counts, tallies = RowCounts(), Tallies(args.label)
    records: list[dict] = []  # of a benchmark, which is small

    def add(part: list[dict]) -> None:
        counts.add(part)
        tallies.add(part)
        if score_benchmark:
            records.extend(part)

    for part in file.read():
        add(part)
    for scored in score_windows(scorer, sources, file.start):
        part = [record for record, _ in scored]
        file.write(part)
        add(part)

    if not distributed.is_main():
        return
    print(counts)
    if not counts.scored:
        raise InputError(f"{', '.join(s.path for s in sources)}: no row has an answer to score")

    report: dict[str, Any] = {
        "model": args.model_name_or_path,
        "data": [source.path for source in sources],
        "settings": asdict(scorer.encoder.settings),
        "label": args.label,
        "rows": asdict(counts),
        "results": tallies.results(),
        "benchmark": score_benchmark(records) if score_benchmark else None,
    }

    print_results(report["results"])
    if report["benchmark"]:
        print_table(benchmark_table(report["benchmark"]))
    if file.path:
        write_evaluation(file.path.parent, report)
        print(f"scores.jsonl, report.md, report.json and pictures are in {file.path.parent}")
