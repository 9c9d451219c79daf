"""Rows in, scored records out: a record is a line of scores.jsonl."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from utils import distributed
from utils.data.comparison import Comparison, shorten
from utils.data.sources.files import parse_row
from utils.data.token_rows import Reason
from utils.data.tokenization import WRITE_IT
from utils.evaluation.rows import OpenSource, Window, windows
from utils.evaluation.scoring import Scorer

WINDOW = 512  # rows that are sorted by length together

# Makes a line of a comparison and its scores, or None.
Form = Callable[[Comparison, list[float | None]], dict | None]
Scored = tuple[dict, dict | None]  # the record of a row and a form's line


def score_windows(
    scorer: Scorer, sources: Iterable[OpenSource], start: int, form: Form | None = None
) -> Iterator[list[Scored]]:
    """Score rows, every rank its share of each window.

    Args:
        scorer: of this rank.
        sources: of the rows.
        start: number of the first row that is wanted.
        form: None makes no lines.

    Yields:
        On the first rank all rows of a window, on the others none of them.
    """
    bar = distributed.progress(desc="Scoring", unit=" rows", initial=start)
    for window in windows(sources, WINDOW, start):
        parts = distributed.gather_on_main(_score_window(scorer, window, form))
        scored = sorted(chain(*parts), key=lambda pair: pair[0]["index"])

        # Of a window that was begun, all rows are scored: in the same batches as before.
        scored = [pair for pair in scored if pair[0]["index"] >= start]
        bar.update(len(scored))
        yield scored

    bar.close()


def _score_window(scorer: Scorer, window: Window, form: Form | None) -> list[Scored]:
    """This rank's share of a window; the arguments are those of `score_windows`."""
    good = []
    scored: list[Scored] = []
    numbered = enumerate(window.rows, window.first)
    for index, raw in islice(numbered, distributed.rank(), None, distributed.world_size()):
        try:
            row = parse_row(raw)
            good.append((index, row.get("id"), window.read(row)))
        except ValueError as error:
            record = drop_record(index, window.source.name, Reason.MALFORMED, str(error))
            scored.append((record, None))

    rows = scorer([comparison for _, _, comparison in good])
    end_tokens = len(scorer.encoder.end_ids)

    for (index, row_id, comparison), row in zip(good, rows, strict=True):
        record = make_record(index, row_id, comparison, row, end_tokens)
        line = form(comparison, row["scores"]) if form else None
        line = {"index": index, "source": comparison.source, **line} if line else None
        scored.append((record, line))
    return scored


def make_record(
    index: int, row_id: object, comparison: Comparison, row: dict, end_tokens: int
) -> dict:
    """The line of scores.jsonl for a comparison.

    Args:
        index: number of the row over all inputs.
        row_id: the row's own `id`, or None.
        comparison: what was scored.
        row: of the scorer (scoring.Scorer), with `scores`.
        end_tokens: tokens at the end of each sequence that are not the answer's.

    Returns:
        index, source, prompt (a hash that equal prompts share), ranks, scores and lengths (tokens
        of the answers), with None where an answer could not be scored. Where there is something to
        say, also votes, id, copies: for each answer the first one with the same tokens, and
        unrendered: a part of the prompt that the chat template does not write. If no answer could
        be scored, `dropped` says why, and `problem` what is malformed or not written.
    """
    if not row["answers"]:
        return drop_record(index, comparison.source, row["dropped"], row["problem"])

    record = {
        "index": index,
        "source": comparison.source,
        "prompt": row["prompt_key"],
        "ranks": list(comparison.ranks),
        "scores": row["scores"],
        "lengths": [None] * len(row["scores"]),
    }

    first: dict[tuple, int] = {}
    copies = list(range(len(row["scores"])))
    kept = zip(row["answers"], row["input_ids"], row["answer_starts"], strict=True)
    for answer, ids, start in kept:
        record["lengths"][answer] = len(ids) - start - end_tokens
        copies[answer] = first.setdefault(tuple(ids), answer)
    if copies != list(range(len(copies))):
        record["copies"] = copies

    if comparison.votes is not None:
        record["votes"] = list(comparison.votes)
    if row_id is not None:
        record["id"] = _as_json(row_id)
    if row["unrendered"]:
        record["unrendered"] = row["unrendered"]
    return record


def _as_json(row_id: Any) -> Any:
    """An id, which can be any value of a table; as text where JSON has no word for it."""
    try:
        json.dumps(row_id, allow_nan=False)
        return row_id
    except (TypeError, ValueError, RecursionError):
        return shorten(row_id) if isinstance(row_id, (list, dict)) else str(row_id)


def drop_record(index: int, source: str, reason: str, problem: str) -> dict:
    """The line of scores.jsonl for a row that has no score; the arguments are its entries."""
    record = {"index": index, "source": source, "ranks": [], "scores": [], "dropped": reason}
    return {**record, "problem": problem} if problem else record


@dataclass
class RowCounts:
    """What became of the rows.

    Attributes:
        read: all of them.
        scored: those with a scored answer.
        dropped: the others, by reason.
        answers_left_out: answers without a score, of rows that have one.
        unrendered: rows that were scored without a part of their prompt, by the part.
        first_problem: of the first malformed row, with its number counted from 1.
        first_unrendered: the same of what the chat template does not write.
    """

    read: int = 0
    scored: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    answers_left_out: int = 0
    unrendered: dict[str, int] = field(default_factory=dict)
    first_problem: str = ""
    first_unrendered: str = ""

    def add(self, records: list[dict]) -> None:
        """Count some records."""
        self.read += len(records)
        for record in records:
            reason, part = record.get("dropped"), record.get("unrendered")
            where = f"row {record['index'] + 1}: {part or record.get('problem')}"

            if reason:
                self.dropped[reason] = self.dropped.get(reason, 0) + 1
            else:
                self.scored += 1
                self.answers_left_out += record["scores"].count(None)
            if part:
                self.unrendered[part] = self.unrendered.get(part, 0) + 1

            if reason == Reason.MALFORMED:
                self.first_problem = self.first_problem or where
            if part or reason == Reason.NOT_RENDERED:
                self.first_unrendered = self.first_unrendered or where

    def __str__(self) -> str:
        parts = [f"{self.read:,} rows, {self.scored:,} scored"]
        parts += [f"{number:,} dropped ({reason})" for reason, number in self.dropped.items()]
        if self.answers_left_out:
            parts.append(f"{self.answers_left_out:,} answers left out (empty or too long)")
        if self.first_problem:
            parts.append(f"first malformed: {self.first_problem}")
        for part, number in self.unrendered.items():
            parts.append(f"{number:,} scored without {part}, {Reason.NOT_RENDERED}")
        if self.first_unrendered:
            parts.append(f"first {Reason.NOT_RENDERED}: {self.first_unrendered}: {WRITE_IT}")
        return ", ".join(parts)
