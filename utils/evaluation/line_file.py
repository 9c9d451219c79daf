"""JSON lines that a run which was cut can go on with, and their reading."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.settings import InputError


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


def read_records(path: Path, size: int = 4096) -> Iterator[list[dict]]:
    """The lines of a scores.jsonl, so many at a time."""
    with path.open(encoding="utf-8") as file:
        lines = map(json.loads, file)
        while records := list(islice(lines, size)):
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
