"""Rows of data sets, one window after another: no matter how many, they are never held at once."""

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from utils.data.comparison import Comparison
from utils.data.formats.columns import ColumnMap
from utils.data.formats.layouts import Reader
from utils.data.formats.reading import plan_reading
from utils.data.sources.files import BUILDERS, PEEK, RawRow, Rows, open_splits, train_and_test
from utils.data.sources.names import parse_place
from utils.settings import InputError

STANDARD_INPUT = "-"


class Stream(NamedTuple):
    """The rows of one file, folder or hub data set.

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
        first: number of the first one, counted from 0 over all streams.
        rows: as they stand on disk.
        stream: that they are of.
    """

    first: int
    rows: list[RawRow]
    stream: Stream

    def read(self, row: dict) -> Comparison:
        """The comparison of a row (files.parse_row); ValueError for a bad one."""
        try:
            return self.stream.reader(row, self.stream.name)
        except KeyError as error:  # rows of a later part of a file may lack a column
            raise ValueError(f"no column {error}") from error


def open_stream(
    path: str,
    layout: str | None = None,
    columns: ColumnMap | None = None,
    chat: bool = False,
    name: str | None = None,
) -> Stream:
    """Open what --data_path names; of a folder or hub name the test split, if it has one.

    Args:
        path: local path or hub name, as `parse_place` reads it; "-" is the standard input with one
            JSON object a line.
        layout: name of the layout (formats.py); None: found by the columns.
        columns: new names of columns; None: as they are.
        chat: whether text prompts become messages (--apply_chat_template).
        name: of rows that name no source; None: the file's.

    Raises:
        InputError: it cannot be read, or its columns are not understood.
    """
    if path == STANDARD_INPUT:
        lines = (line for line in sys.stdin.buffer if line.strip())
        first = list(islice(lines, PEEK))
        path = "standard input"
        reading = plan_reading(first, path, columns, layout, ranked=False, chat=chat)
        return Stream(path, "stdin", chain(first, lines), *reading)
    texts = columns.texts() if columns else ()
    source = parse_place(path)
    splits = open_splits(source.path, source.subset, source.revision, texts=texts)
    train, test = train_and_test(splits, path)
    rows = train if test is None else test
    reading = plan_reading(rows, path, columns, layout, ranked=False, chat=chat)
    return Stream(path, name or source.default_name, rows, *reading)


def open_benchmark(path: str, split: str | None, read: Reader, files: str = "*") -> list[Stream]:
    """Open a benchmark, each file of a local folder on its own.

    Args:
        path: local file or folder, or hub name, as `parse_place` reads it.
        split: which one of a hub data set.
        read: the benchmark's reader. The name that it gets is a local file's path within the
            folder, without the suffix.
        files: pattern of the names of a folder's files that belong to it.

    Raises:
        InputError: it cannot be read.
    """
    if not os.path.exists(path):
        source = parse_place(path)
        parts = open_splits(source.path, source.subset, source.revision)
        if split not in parts:
            raise InputError(f"{path}: has the splits {', '.join(parts)}; expected {split}")
        return [Stream(path, path, parts[split], read)]
    found = [Path(path)] if os.path.isfile(path) else sorted(Path(path).rglob(files))
    found = [f for f in found if Path(f.name.removesuffix(".gz")).suffix in BUILDERS]
    if not found:
        raise InputError(f"{path}: no file {files} that ends in {', '.join(BUILDERS)} (or .gz)")
    streams = []
    for file in found:
        place = file.relative_to(path) if os.path.isdir(path) else Path(file.name)
        name = str(place.with_name(place.name.split(".")[0]))
        streams.append(Stream(str(file), name, Rows(str(file), (str(file),)), read))
    return streams


def windows(streams: Iterable[Stream], size: int, start: int = 0) -> Iterator[Window]:
    """Cut streams into windows, always at the same places.

    Args:
        streams: one after another; a window has rows of one.
        size: rows in a window; the last one of a stream may be smaller.
        start: windows that end before this row are passed over.

    Raises:
        InputError: a file cannot be read.
    """
    first = 0
    for stream in streams:
        rows = iter(stream.rows)
        while window := list(islice(rows, size)):
            if first + len(window) > start:
                yield Window(first, window, stream)
            first += len(window)
