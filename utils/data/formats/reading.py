"""How a table is read: by which layout, under which names, and what is not read."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import NamedTuple

from utils.data.comparison import MAX_NAME, Comparison
from utils.data.formats.columns import ColumnMap
from utils.data.formats.layouts import LAYOUTS, Reader, find_reader, known_layouts
from utils.data.formats.unread_columns import Survey, survey_rows
from utils.data.sources.files import PEEK, RawRow, find_columns
from utils.settings import InputError


class Reading(NamedTuple):
    """How the rows of a table are read.

    Attributes:
        reader: `reader(row, source) -> Comparison`, ValueError for a bad row.
        note: a sentence about the columns that are read and those that are not.
    """

    reader: Reader
    note: str


def plan_reading(
    rows: Iterable[RawRow],
    path: str,
    columns: ColumnMap | None = None,
    layout: str | None = None,
    *,
    ranked: bool = True,
    chat: bool = False,
) -> Reading:
    """Find the layout of a table by its first rows, and see that no text of them is lost.

    Args:
        rows: of the table; they are begun several times.
        path: the table, for messages.
        columns: new names (--columns); None: as they are.
        layout, ranked, chat: as in `layouts.find_reader`.

    Raises:
        InputError: no layout fits, a column is not there, or text of the conversation is not read.
    """
    found = find_columns(islice(rows, PEEK), path)
    columns = (columns or ColumnMap()).of_table(found, path)
    renamed = columns.rename(dict.fromkeys(found))
    reader = find_reader(list(renamed), path, ranked, layout, chat)
    (layout,) = reader.args

    survey = survey_rows(islice(rows, PEEK), reader, columns)
    shown = {column: f"{name}={column}" for name, column in columns.names}
    read = ", ".join(shown.get(column, column) for column in found if column in survey.used)
    if lost := survey.lost:
        raise InputError(
            f"{path}: {', '.join(lost)}: not read, but text of the conversation as it seems (the "
            f"layout {layout} reads {read}). {_remedy(survey, layout)}. Known layouts: "
            f"{known_layouts(ranked)}"
        )

    others = ", ".join(column for column in found if column not in {*survey.used, "id"})
    note = f"{path}: layout {layout}; read: {read}; not read: {others or 'none'}"
    for column in survey.nameless:
        note += f" ({column} names no row where it is no text of at most {MAX_NAME} characters)"
    return Reading(partial(_read_renamed, reader, columns) if columns.names else reader, note)


def _remedy(survey: Survey, layout: str) -> str:
    """What to do about columns that are lost; a name that can hold the values of the first one."""
    lost = survey.lost
    asks = "chosen" in LAYOUTS[layout].texts  # and may have any column of readers.PROMPTS
    name, below = "system", ""  # which any layout may have

    if survey.is_bare and asks:
        name = "prompt"
    elif lost[0] in survey.other:
        name = "history" if asks and survey.other[lost[0]] else ""
    elif asks:
        below = (
            "; text that stands below a question is the input of an instruction, as in --columns "
            f"instruction=QUESTION input={lost[0]}"
        )

    say = f"Say what it is, as in --columns {name}={lost[0]}, or" if name else "Make text of it, or"
    ignored = ",".join(lost)
    return f"{say} --columns ignore={ignored} if it is no part of the conversation{below}"


def _read_renamed(reader: Reader, columns: ColumnMap, row: dict, source: str) -> Comparison:
    return reader(columns.rename(row), source)
