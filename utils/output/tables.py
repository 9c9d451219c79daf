"""What reports are made of: tables on the screen, and Markdown."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

TOTAL = "all"  # the row of all groups together
# A line of ASCII under the header, nothing else: it survives pipes, logs and narrow terminals.
RULE = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


class TextTable(NamedTuple):
    """A table to print or to write as Markdown.

    Attributes:
        title: what stands above it.
        note: how to read it; "" if it explains itself.
        header: C names; a new line breaks them on the screen.
        rows: of C texts each, the first one the name of the row.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class TableTemplate(NamedTuple):
    """A table without its rows: columns maps names to what makes a text of a row's figures."""

    title: str
    note: str
    columns: dict[str, Callable[[dict], str]]

    def fill(self, groups: Mapping[str, dict], first: str = "source") -> TextTable:
        """The table of groups of figures by name; `first` is the header of the names."""
        rows = [
            (name, *(text(group) for text in self.columns.values()))
            for name, group in groups.items()
        ]
        return TextTable(self.title, self.note, (first, *self.columns), rows)


def print_table(table: TextTable) -> None:
    """Print a table that fits the terminal (80 columns in a pipe); long names are shortened."""
    console = Console()
    grid = Table(box=RULE, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    grid.add_column(Text(table.header[0]), overflow="fold", vertical="bottom")
    for name in table.header[1:]:
        grid.add_column(Text(name), justify="right", no_wrap=True, vertical="bottom")

    names, *columns = zip(*table.rows, strict=True)
    width = console.width
    for name, column in zip(table.header[1:], columns, strict=True):
        width -= 2 + max(map(len, [*name.split("\n"), *column]))
    short = shorten_names(names, max(width, 12))

    for name, *values in table.rows:
        grid.add_row(Text(short[name]), *map(Text, values))

    console.print(Text(table.title, style="bold"))
    console.print(grid)
    console.print()


def markdown_report(
    title: str,
    *,
    facts: Iterable[str],
    warnings: Iterable[str],
    tables: Iterable[TextTable],
    pictures: Mapping[str, str],
    settings: dict,
) -> str:
    """A report in the order of its arguments; `pictures` maps names of files to captions."""
    parts = [
        f"# {title}",
        _bullets(facts),
        "## What to look out for",
        _bullets(warnings) or "Nothing crossed a threshold.",
        *map(markdown_table, tables),
        "## Pictures" if pictures else "",
        *(f"{caption}\n\n![{name}]({name})" for name, caption in pictures.items()),
        "## Settings",
        f"```json\n{json.dumps(settings, indent=2)}\n```",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def markdown_table(table: TextTable) -> str:
    """A table as Markdown with its title and note."""
    header = [name.replace("-\n", "").replace("\n", " ") for name in table.header]
    rows = [(markdown_code(name), *values) for name, *values in table.rows]
    grid = markdown_grid([header, ["---", *["---:"] * (len(header) - 1)], *rows])
    return "\n\n".join(filter(None, [f"## {table.title}", table.note, grid]))


def markdown_grid(lines: Iterable[Iterable[str]]) -> str:
    """Lines of a Markdown table: the header, the dashes under it, the rows."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_code(text: str) -> str:
    """A name as code, which holds no markup and breaks no table."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"


def with_total(groups: dict[str, dict], total: Callable[[], dict]) -> dict[str, dict]:
    """Groups by name, and at the end "all", what `total` makes, if there are several of them.

    A group that is called "all" itself becomes "all (source)".
    """
    if len(groups) < 2:
        return groups
    name = TOTAL
    while name in groups:
        name += " (source)"
    named = {(name if one == TOTAL else one): group for one, group in groups.items()}
    return {**named, TOTAL: total()}


def number_text(value: float | None, form: str = ".3f") -> str:
    """A number as text; "-" where there is none."""
    return "-" if value is None else format(value, form)


def number_at(*path: str, form: str = ".3f") -> Callable[[dict], str]:
    """What makes a text of a number in nested figures; "-" where there is none."""

    def text(figures: dict) -> str:
        value: Any = figures
        for name in path:
            value = (value or {}).get(name)
        return number_text(value, form)

    return text


count_at = partial(number_at, form=",")


def percent_text(share: float | None) -> str:
    """A share of 1 as text, such as 12.3 %; "-" where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval_text(low: float | None, high: float | None) -> str:
    """An interval as text, such as 0.691-0.733 or -0.012 to 0.004; "-" where there is none."""
    if low is None:
        return "-"
    return f"{low:.3f}{'-' if low >= 0 else ' to '}{high:.3f}"


def shorten_names(names: Sequence[str], most: int) -> dict[str, str]:
    """Different names without their middle where they are longer than `most` characters.

    Names that would become the same keep more characters.
    """
    short = {name: _cut_middle(name, most) for name in names}
    owners = Counter(short.values())
    unclear = [name for name in names if owners[short[name]] > 1]
    return short | shorten_names(unclear, most + 4) if unclear else short


def _cut_middle(name: str, most: int) -> str:
    head = max(most // 2 - 2, 1)
    return name if len(name) <= most else f"{name[:head]}...{name[head + 3 - most :]}"
