"""What --data_path and --eval_data_path name: files, folders, hub names, in what shares."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from utils.arguments import InputError
from utils.data.column_map import ColumnMap, parse_columns, read_columns
from utils.data.comparison import MAX_NAME
from utils.data.formats import FORMATS

SHARE = re.compile(r"(.+):(\d+\.\d*|\.\d+|\d+)")


@dataclass(frozen=True)
class Source:
    """One entry of --data_path, or of `sources` in a YAML file that it names.

    Attributes:
        path: local file or folder, or hub name.
        name: of its rows in tables, where they name no source themselves.
        weight: share of what is drawn in an epoch, relative to the others; None: no mixing.
        cap: comparisons that are taken at most, a fixed random sample; None: all.
        split: the one to train; None: that named train, and a test split evaluates.
        subset: configuration of a hub data set.
        format: name of the layout; None: found by the columns.
        columns: new names of its columns; None: as they are.
    """

    path: str
    name: str = ""
    weight: float | None = None
    cap: int | None = None
    split: str | None = None
    subset: str | None = None
    format: str | None = None
    columns: ColumnMap | None = None

    def __post_init__(self) -> None:
        for entry in ("path", "name", "split", "subset"):
            value = getattr(self, entry)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{self.path}: {entry} is {value!r}; expected text")
        if self.format not in (None, *FORMATS):
            raise InputError(
                f"{self.path}: format is {self.format!r}; expected one of {', '.join(FORMATS)}"
            )
        weight, cap = self.weight, self.cap  # their types are compared since True is an int
        if weight is not None and not (type(weight) in (int, float) and 0 < weight < math.inf):
            raise InputError(f"{self.path}: weight is {weight!r}; expected a number above 0")
        if cap is not None and not (type(cap) is int and cap > 0):
            raise InputError(f"{self.path}: cap is {cap!r}; expected a whole number above 0")


def parse_sources(
    words: Sequence[str],
    flag: str,
    layout: str | None = None,
    columns: Sequence[str] | None = None,
) -> list[Source]:
    """Read what a flag names.

    Args:
        words: each `PATH`, `PATH:0.3` (a weight), `PATH:5000` (a cap) or a YAML file whose
            `sources` is a list with the attributes of Source.
        flag: --data_path or --eval_data_path, for messages.
        layout: --format, for the sources that do not name theirs.
        columns: --columns, for the sources that do not name theirs.

    Returns:
        The sources; all have a weight or none.

    Raises:
        InputError: an entry is not understood.
    """
    sources: list[Source] = []
    for word in words:
        is_yaml = word.endswith((".yaml", ".yml"))
        sources += _read_yaml(Path(word)) if is_yaml else [_parse_word(word)]
    weighted = [source.path for source in sources if source.weight is not None]
    without = [source.path for source in sources if source.weight is None]
    if weighted and flag == "--eval_data_path":
        raise InputError(
            f"{flag}: {weighted[0]} has a weight; an evaluation takes all rows, or so many "
            "(PATH:500)"
        )
    if weighted and without:
        raise InputError(
            f"{flag}: {weighted[0]} has a weight, but {without[0]} has none: give all of them one "
            "(PATH:0.3), or none; PATH:5000 without a point takes so many comparisons"
        )
    new_names = parse_columns(columns)
    return _named(
        [
            replace(source, format=source.format or layout, columns=source.columns or new_names)
            for source in sources
        ]
    )


def source_name(path: str) -> str:
    """What rows that name no source are called after: a local file or folder, or the hub name."""
    return Path(path).name.split(".")[0] if os.path.exists(path) else path


def _parse_word(word: str) -> Source:
    match = None if os.path.exists(word) else SHARE.fullmatch(word)
    if not match:
        return Source(word)
    path, number = match.groups()
    return Source(path, cap=int(number)) if number.isdigit() else Source(path, weight=float(number))


def _read_yaml(file: Path) -> list[Source]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: no such file (--data_path, --eval_data_path)") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{file}: no YAML: {' '.join(str(error).split())}") from error
    entries = content.get("sources") if isinstance(content, dict) else None
    known = [entry.name for entry in fields(Source)]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: expected `sources:` and under it a list of entries with a path")
    sources = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise InputError(f"{file}: entry {number} is {entry!r:.60}; expected one with a path")
        if unknown := [str(name) for name in entry if name not in known]:
            raise InputError(
                f"{file}: entry {number} has {', '.join(unknown)}; known are {', '.join(known)}"
            )
        entry["path"] = os.path.expanduser(entry["path"])
        if (beside := file.parent / entry["path"]).exists():
            entry["path"] = str(beside)  # a path is meant from where the file is
        if "columns" in entry:
            entry["columns"] = read_columns(entry["columns"], entry["path"])
        sources.append(Source(**entry))
    return sources


def source_names(paths: Sequence[str]) -> list[str]:
    """As `source_name` of each, or where two would share one, their whole paths."""
    short = [source_name(path) for path in paths]
    often = Counter(short)
    named = zip(paths, short, strict=True)
    return [name if often[name] == 1 else path[-MAX_NAME:] for path, name in named]


def _named(sources: list[Source]) -> list[Source]:
    names = source_names([source.path for source in sources])
    named = zip(sources, names, strict=True)
    return [replace(source, name=source.name or name) for source, name in named]
