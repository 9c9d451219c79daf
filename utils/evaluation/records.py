"""What is written for each row that was scored: scores.jsonl, or data made with the scores."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from utils import distributed
from utils.data.comparison import MAX_DEPTH, Comparison, shorten
from utils.data.sources.files import parse_row
from utils.data.token_rows import Reason
from utils.data.tokenization import WRITE_IT
from utils.evaluation.rows import Stream, Window, windows
from utils.evaluation.scoring import Scorer
from utils.settings import InputError

WINDOW = 512  # rows that are sorted by length together

# Makes a line of a comparison and its scores, or None.
Form = Callable[[Comparison, list[float | None]], dict | None]
Scored = tuple[dict, dict | None]  # the record of a row and a form's line


def score_windows(
    scorer: Scorer, streams: Iterable[Stream], start: int, form: Form | None = None
) -> Iterator[list[Scored]]:
    """Score rows, every rank its share of each window.

    Args:
        scorer: of this rank.
        streams: the rows.
        start: number of the first row that is wanted.
        form: None makes no lines.

    Yields:
        On the first rank all rows of a window, on the others none of them.
    """
    bar = distributed.progress(desc="Scoring", unit=" rows", initial=start)
    for window in windows(streams, WINDOW, start):
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
            scored.append(
                (drop_record(index, window.stream.name, Reason.MALFORMED, str(error)), None)
            )
    end_tokens = len(scorer.encoder.end_ids)
    rows = scorer([comparison for _, _, comparison in good])
    for (index, row_id, comparison), row in zip(good, rows, strict=True):
        line = form(comparison, row["scores"]) if form else None
        line = {"index": index, "source": comparison.source, **line} if line else None
        scored.append((make_record(index, row_id, comparison, row, end_tokens), line))
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
        record["id"] = as_json(row_id)
    if row["unrendered"]:
        record["unrendered"] = row["unrendered"]
    return record


def as_json(value: Any, depth: int = 0) -> Any:
    """A value of a table as JSON has it: dates, decimals, bytes and the like become text.

    NaN and the infinities, for which JSON has no word, become null, also within lists and dicts.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if depth < MAX_DEPTH and isinstance(value, (list, tuple, set)):
        return [as_json(part, depth + 1) for part in value]
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {str(key): as_json(part, depth + 1) for key, part in value.items()}
    return shorten(value) if isinstance(value, (list, tuple, set, dict)) else str(value)


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
            if "dropped" in record:
                reason = record["dropped"]
                self.dropped[reason] = self.dropped.get(reason, 0) + 1
                where = f"row {record['index'] + 1}: {record.get('problem')}"
                if reason == Reason.MALFORMED:
                    self.first_problem = self.first_problem or where
                elif reason == Reason.NOT_RENDERED:
                    self.first_unrendered = self.first_unrendered or where
            else:
                self.scored += 1
                self.answers_left_out += record["scores"].count(None)
                if part := record.get("unrendered"):
                    self.unrendered[part] = self.unrendered.get(part, 0) + 1
                    where = f"row {record['index'] + 1}: {part}"
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


def best_of_n(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """The prompt with the answer of the highest score; None if no answer has one."""
    scored = _scored(comparison, scores)
    if not scored:
        return None
    score, best = max(scored, key=lambda pair: pair[0])
    return {"prompt": comparison.prompt, "response": best, "score": score}


def as_pair(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """The answers of the highest and the lowest score, as main.py reads them; None if equal."""
    scored = _scored(comparison, scores)
    if len({score for score, _ in scored}) < 2:
        return None
    high, best = max(scored, key=lambda pair: pair[0])
    low, worst = min(scored, key=lambda pair: pair[0])
    pair = {"prompt": comparison.prompt, "chosen": best, "rejected": worst}
    return {**pair, "score_chosen": high, "score_rejected": low}


def as_scores(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """All answers with their scores, as main.py reads them; None if no answer has one."""
    scored = _scored(comparison, scores)
    if not scored:
        return None
    values, answers = zip(*scored, strict=True)
    return {"prompt": comparison.prompt, "responses": list(answers), "scores": list(values)}


# The data that scores can make, by the flags that ask for them.
FORMS: dict[str, Form] = {"best_of_n": best_of_n, "as_pairs": as_pair, "as_scores": as_scores}


class LineFile:
    """JSON lines, each with the `index` of its row, that a later run can go on with.

    Attributes:
        start: number of the first row that has no line yet.
        written: lines of this run.

    The first rank writes; the others know where it goes on.

    Args:
        path: of the file.
        resume: whether to keep the lines that are there; else the file begins anew.
        file: written to where there is no path; None writes nothing.
    """

    def __init__(self, path: Path | None, resume: bool = False, file: TextIO | None = None):
        self.path, self.file = path, file
        self.start = self.written = 0
        if path is not None:
            if distributed.is_main():
                if resume and path.exists():
                    self.start = _cut_last_line(path)
                self.file = path.open("a" if resume else "w", encoding="utf-8")
            self.start = distributed.from_main(self.start)

    def state(self) -> str:
        """What has been written, and how to go on with it."""
        if self.path is None or not self.path.stat().st_size:
            return f"{self.written:,} lines were written" if self.written else "nothing was written"
        with self.path.open("rb") as file:
            lines = sum(1 for _ in file)
        return f"{self.path} has {lines:,} lines, and --resume goes on"

    def read(self) -> Iterator[list[dict]]:
        """The lines that an earlier run has written, some at a time; of the first rank alone."""
        if self.path and self.start and distributed.is_main():
            yield from read_records(self.path)

    def write(self, lines: list[dict]) -> None:
        """Append lines, if there is a file."""
        if self.file and lines:
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            self.file.write(text)
            self.file.flush()
            self.written += len(lines)


def score_records(
    scorer: Scorer, streams: Iterable[Stream], file: LineFile
) -> Iterator[list[dict]]:
    """The records that the file has, then those of the other rows, which are added to it."""
    yield from file.read()
    for scored in score_windows(scorer, streams, file.start):
        records = [record for record, _ in scored]
        file.write(records)
        yield records


def _cut_last_line(path: Path) -> int:
    """Cut what a kill left incomplete, and return the row to go on with."""
    with path.open("rb+") as file:
        end, last = 0, None
        for line in file:
            if line.endswith(b"\n"):
                end, last = end + len(line), line
        file.truncate(end)
    try:
        return json.loads(last)["index"] + 1 if last else 0
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: its last line is none of an evaluation: give --overwrite_output_dir instead "
            "of --resume"
        ) from None


def read_records(path: Path, size: int = 4096) -> Iterator[list[dict]]:
    """The lines of a scores.jsonl, so many at a time."""
    with path.open(encoding="utf-8") as file:
        lines = map(json.loads, file)
        while records := list(islice(lines, size)):
            yield records


def _scored(comparison: Comparison, scores: list[float | None]) -> list[tuple[float, object]]:
    """The score and the answer, of those that have a score."""
    both = zip(scores, comparison.responses, strict=True)
    return [(score, answer) for score, answer in both if score is not None]
