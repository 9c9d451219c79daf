"""Rows of data sets, one window after another: no matter how many, they are never held at once."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from utils.data.comparison import Comparison
from utils.data.formats.columns import parse_columns
from utils.data.formats.layouts import Reader
from utils.data.formats.reading import plan_reading
from utils.data.sources.files import PEEK, RawRow, open_splits, train_and_test
from utils.data.sources.names import Source, named, parse_place
from utils.evaluation.settings import InputSettings

STANDARD_INPUT = "-"


class OpenSource(NamedTuple):
    """The rows of one file, folder or hub data set, and what makes comparisons of them.

    Attributes:
        path: as the user gave it.
        name: what `reader` gets as name of the source.
        rows: as they stand on disk.
        reader: makes a comparison of a row and the name; ValueError for a bad row.
        note: a sentence about the columns that are read; "" of a benchmark.
    """

    path: str
    name: str
    rows: Iterable[RawRow]
    reader: Reader
    note: str = ""


class Window(NamedTuple):
    """Some rows that follow each other.

    Attributes:
        first: number of the first one, counted from 0 over all sources.
        rows: as they stand on disk.
        source: that they are of.
    """

    first: int
    rows: list[RawRow]
    source: OpenSource

    def read(self, row: dict) -> Comparison:
        """The comparison of a row (files.parse_row); ValueError for a bad one."""
        try:
            return self.source.reader(row, self.source.name)
        except KeyError as error:  # rows of a later part of a file may lack a column
            raise ValueError(f"no column {error}") from error


def open_data(args: InputSettings, chat: bool) -> list[OpenSource]:
    """Open all that --data_path names (`open_source`), each under a name of its own."""
    columns = parse_columns(args.columns)
    sources = named(map(parse_place, args.data_path or ()))
    return [open_source(replace(s, format=args.format, columns=columns), chat) for s in sources]


def open_source(source: Source, chat: bool = False) -> OpenSource:
    """Open the test split of a source, or all of it where it has none.

    Args:
        source: of the path "-", the standard input, with one JSON object a line.
        chat: whether text prompts become messages (--apply_chat_template).

    Raises:
        InputError: it cannot be read, or its columns are not understood.
    """
    beginning: Iterable[RawRow]
    rows: Iterable[RawRow]
    if source.path == STANDARD_INPUT:
        path, name = "standard input", "stdin"
        lines = (line for line in sys.stdin.buffer if line.strip())
        first = list(islice(lines, PEEK))
        beginning, rows = first, chain(first, lines)
    else:
        path, name = source.place, source.name or source.default_name
        texts = source.columns.texts() if source.columns else ()
        splits = open_splits(source.path, source.subset, source.revision, texts=texts)
        train, test = train_and_test(splits, path)
        beginning = rows = train if test is None else test

    reading = plan_reading(
        beginning, path, columns=source.columns, layout=source.format, ranked=False, chat=chat
    )
    return OpenSource(path, name, rows, *reading)


def windows(sources: Iterable[OpenSource], size: int, start: int = 0) -> Iterator[Window]:
    """Cut sources into windows, always at the same places.

    Args:
        sources: one after another; a window has rows of one.
        size: rows in a window; the last one of a source may be smaller.
        start: windows that end before this row are passed over.

    Raises:
        InputError: a file cannot be read.
    """
    first = 0
    for source in sources:
        rows = iter(source.rows)
        while window := list(islice(rows, size)):
            if first + len(window) > start:
                yield Window(first, window, source)
            first += len(window)
