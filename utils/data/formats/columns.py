"""--columns: which column of a table stands for which of a layout, and which are left out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from utils.data.formats.layouts import ALIASES, KNOWN_COLUMNS, TEXT_COLUMNS
from utils.settings import InputError

IGNORE = "ignore"


@dataclass(frozen=True)
class ColumnMap:
    """New names of a table's columns.

    Attributes:
        names: (name, column) of each that gets the name of a layout's column. What has the name
            already is not read.
        ignored: columns that are no part of the conversation.
    """

    names: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def texts(self) -> tuple[str, ...]:
        """Columns that hold text under their new names, as TEXT_COLUMNS has them."""
        return tuple(column for name, column in self.names if name in TEXT_COLUMNS)

    def of_table(self, columns: list[str], path: str) -> "ColumnMap":
        """The same for a table with these columns, with the other names that columns go by.

        Raises:
            InputError: a column is not there.
        """
        named = [column for _, column in self.names]
        missing = [column for column in (*named, *self.ignored) if column not in columns]
        if missing:
            raise InputError(
                f"{path}: --columns names {', '.join(missing)}, but the columns are "
                f"{', '.join(columns)}. A YAML file in --data_path gives each source its own "
                "`columns`"
            )
        taken = {*columns, *(name for name, _ in self.names)}
        others = [
            (name, other)
            for other, name in ALIASES.items()
            if other in columns and name not in taken and other not in (*named, *self.ignored)
        ]
        return ColumnMap((*self.names, *others), self.ignored)

    def rename(self, row: Mapping) -> dict:
        """A row, or columns with whatever they hold, under the new names."""
        if not self.names and not self.ignored:
            return dict(row)
        gone = {*self.ignored, *(part for pair in self.names for part in pair)}
        renamed = {column: value for column, value in row.items() if column not in gone}
        return renamed | {name: row[column] for name, column in self.names if column in row}


def parse_columns(words: Iterable[str] | None) -> ColumnMap | None:
    """Read the words of --columns; None if there are none, InputError if they mean nothing."""
    if not words:
        return None
    entries = []
    for word in words:
        name, _, column = word.partition("=")
        if not name or not column:
            raise InputError(
                f"--columns {word}: expected NAME=COLUMN, as in prompt=question, or "
                f"{IGNORE}=COLUMN[,COLUMN]"
            )
        entries.append((name, column))
    return _read_entries(entries, "--columns")


def read_columns(value: object, path: str) -> ColumnMap:
    """Read `columns` of a source in a YAML file, {name: column}; InputError if it is none."""
    where = f"{path}: columns"
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r:.60}; expected {{prompt: question}} and the like")
    return _read_entries(value.items(), where)


def _read_entries(given: Iterable[tuple], where: str) -> ColumnMap:
    """The new names of (name, column); of those to ignore, several may be a list or A,B."""
    entries = []
    for name, column in given:
        if name == IGNORE and isinstance(column, str):
            column = column.split(",")
        parts = column if name == IGNORE and isinstance(column, list) else [column]
        entries += [(name, part) for part in parts]
    if bad := [f"{n}: {c}" for n, c in entries if not isinstance(n, str) or not isinstance(c, str)]:
        raise InputError(f"{where} has {', '.join(bad)}; expected names of columns")

    entries = [(name.strip(), column.strip()) for name, column in entries]
    names = [(name, column) for name, column in entries if name != IGNORE]
    ignored = [column for name, column in entries if name == IGNORE]
    for name, column in names:
        if name not in KNOWN_COLUMNS:
            raise InputError(
                f"{where}: {name}={column} gives a name that no layout reads; expected {IGNORE} "
                f"or one of {', '.join(KNOWN_COLUMNS)}"
            )

    for what, seen in (
        ("is given", [name for name, _ in names]),
        ("gets a name", [column for _, column in entries]),
    ):
        if twice := [part for part, count in Counter(seen).items() if count > 1]:
            raise InputError(f"{where}: {', '.join(twice)} {what} twice; expected once")
    return ColumnMap(tuple(names), tuple(ignored))
