"""What --data_path and --eval_data_path name: files, folders, hub names, in what shares."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from utils.data.comparison import MAX_NAME
from utils.data.formats.columns import ColumnMap, parse_columns, read_columns
from utils.data.formats.layouts import FORMATS
from utils.settings import InputError

SHARE = re.compile(r"(.+):(\d+\.\d*|\.\d+|\d+)")


@dataclass(frozen=True)
class Source:
    """One entry of --data_path, or of `sources` in a YAML file that it names.

    Attributes:
        path: local file or folder, or hub name, perhaps with a folder of that data set.
        name: of its rows in tables, where they name no source themselves.
        weight: share of what is drawn in an epoch, relative to the others; None: no mixing.
        cap: comparisons that are taken at most, a fixed random sample; None: all.
        split: the one to train; None: that named train, and a test split evaluates.
        subset: configuration, as the README of the folder or data set lists it.
        format: name of the layout; None: found by the columns.
        columns: new names of its columns; None: as they are.
        revision: branch, tag or commit of a hub data set.
    """

    path: str
    name: str = ""
    weight: float | None = None
    cap: int | None = None
    split: str | None = None
    subset: str | None = None
    format: str | None = None
    columns: ColumnMap | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        for entry in ("path", "name", "split", "subset", "revision"):
            value = getattr(self, entry)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{self.path}: {entry} is {value!r}; expected text")
        if self.format not in (None, *FORMATS):
            raise InputError(
                f"{self.path}: format is {self.format!r}; expected one of {', '.join(FORMATS)}"
            )
        if self.revision and os.path.exists(self.path):
            raise InputError(
                f"{self.place}: {self.path} is on this disk; only data sets of the hub have "
                f"revisions, such as {self.revision}"
            )
        weight, cap = self.weight, self.cap  # their types are compared since True is an int
        if weight is not None and not (type(weight) in (int, float) and 0 < weight < math.inf):
            raise InputError(f"{self.path}: weight is {weight!r}; expected a number above 0")
        if cap is not None and not (type(cap) is int and cap > 0):
            raise InputError(f"{self.path}: cap is {cap!r}; expected a whole number above 0")

    @property
    def place(self) -> str:
        """Where the data are, as the command line names it."""
        return spell_place(self.path, self.revision, self.subset)

    @property
    def default_name(self) -> str:
        """What rows that name no source are called after: a local file or folder, or the hub's."""
        if not os.path.exists(self.path):
            return self.place
        return spell_place(Path(self.path).name.split(".")[0], None, self.subset)

    @property
    def repository(self) -> str | None:
        """OWNER/NAME on the hub; None of what is on this disk."""
        return None if os.path.exists(self.path) else "/".join(self.path.split("/")[:2])


def spell_place(path: str, revision: str | None, subset: str | None) -> str:
    """PATH@REVISION#SUBSET, the other way round than `parse_place`."""
    return path + (f"@{revision}" if revision else "") + (f"#{subset}" if subset else "")


def parse_place(word: str) -> Source:
    """Read PATH, NAME@REVISION, PATH#SUBSET or NAME@REVISION#SUBSET; what exists is a path."""
    path, revision, subset = _split_place(word)
    return Source(path, revision=revision, subset=subset)


def parse_word(word: str) -> Source:
    """Read a place, perhaps with a weight or a cap behind it: PLACE:0.3, PLACE:5000."""
    match = None if os.path.exists(word) else SHARE.fullmatch(word)
    if not match:
        return parse_place(word)
    source, number = parse_place(match[1]), match[2]
    if number.isdigit():
        return replace(source, cap=int(number))
    return replace(source, weight=float(number))


def parse_sources(
    words: Sequence[str],
    flag: str,
    layout: str | None = None,
    columns: Sequence[str] | None = None,
) -> list[Source]:
    """Read what a flag names.

    Args:
        words: each a place (`parse_place`), perhaps with a weight (`PLACE:0.3`) or a cap
            (`PLACE:5000`), or a YAML file whose `sources` is a list with the attributes of Source.
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
        sources += _read_yaml(Path(word)) if is_yaml else [parse_word(word)]

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
    return named(
        [
            replace(source, format=source.format or layout, columns=source.columns or new_names)
            for source in sources
        ]
    )


def _split_place(word: str, folder: Path = Path()) -> tuple[str, str | None, str | None]:
    """The path, revision and subset that a place spells; what exists in the folder is a path."""

    def cut(text: str, mark: str) -> tuple[str, str | None]:
        before, _, after = text.partition(mark)
        is_path = os.path.exists(folder / text) or not before or not after or mark in after
        return (text, None) if is_path else (before, after)

    path, subset = cut(word, "#")
    path, revision = cut(path, "@")
    return path, revision, subset


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
        sources.append(_read_entry(entry, file.parent))
    return sources


def _read_entry(entry: dict, folder: Path) -> Source:
    """A source of a YAML file in this folder, from which its path is meant."""
    path, revision, subset = _split_place(os.path.expanduser(entry["path"]), folder)
    spelled = {"revision": revision, "subset": subset}
    for name, value in spelled.items():
        if value and name in entry:
            raise InputError(f"{entry['path']}: its {name} stands here and in an entry; give one")
    if "columns" in entry:
        entry["columns"] = read_columns(entry["columns"], entry["path"])
    beside = folder / path
    return Source(**spelled | entry | {"path": str(beside) if beside.exists() else path})


def named(sources: Iterable[Source]) -> list[Source]:
    """Sources with a name each: the file's, or where two would share it, the whole path."""
    sources = list(sources)
    short = [source.default_name for source in sources]
    often = Counter(short)
    return [
        replace(s, name=s.name or (name if often[name] == 1 else s.place[-MAX_NAME:]))
        for s, name in zip(sources, short, strict=True)
    ]
