"""The column layouts of data sets, and the reader that makes a Comparison of a row of each.

A layout is recognised by its columns, never by the name of the data set. A new one is a row of
LAYOUTS and a function in readers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from utils.data.comparison import MAX_NAME, Comparison, check_number, check_text
from utils.data.formats import readers
from utils.data.formats.conversations import with_system
from utils.data.formats.messages import as_messages, is_empty, read_list, read_messages, read_tools
from utils.settings import InputError

Reader = Callable[[dict, str], Comparison]


@dataclass(frozen=True)
class Layout:
    """Which columns a table has, and what reads them.

    Attributes:
        reader: `reader(row, source) -> Comparison`, ValueError for a bad row.
        texts: columns with texts, or with lists and dicts, which a CSV file spells as text.
        numbers: columns with numbers.
        optional_texts, optional_numbers: the same, but a table may lack them.
        is_ranked: whether it says which answer is better; if not, it is for scoring alone.
        preference: of several layouts with a number here, a table is read as the one with the
            lowest; None: the layout with more columns is taken.
    """

    reader: Reader
    texts: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    optional_texts: tuple[str, ...] = ()
    optional_numbers: tuple[str, ...] = ()
    is_ranked: bool = True
    preference: int | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns by which it is recognised."""
        return (*self.texts, *self.numbers)

    @property
    def optional(self) -> tuple[str, ...]:
        """Further columns that its reader takes."""
        return (*self.optional_texts, *self.optional_numbers)


def _pairs(prompt: str, preference: int) -> Layout:
    """The layout of chosen and rejected whose prompt is this column (readers.PROMPTS)."""
    reader = partial(readers.pairs, first=prompt)
    return Layout(reader, (prompt, "chosen", "rejected"), preference=preference)


# By the names that --format takes, in the order in which messages list them.
LAYOUTS = {
    "ranked": Layout(readers.ranked, ("prompt", "responses", "ranks")),
    "scored": Layout(readers.scored, ("prompt", "responses", "scores")),
    "voted": Layout(readers.voted, ("prompt", "responses", "votes")),
    "pairs": _pairs("prompt", 0),
    "transcripts": Layout(readers.transcripts, ("chosen", "rejected")),
    "webgpt": Layout(
        readers.webgpt, ("question", "answer_0", "answer_1"), numbers=("score_0", "score_1")
    ),
    "shp": Layout(
        readers.shp,
        ("history", "human_ref_A", "human_ref_B"),
        numbers=("labels",),
        optional_numbers=("score_ratio",),
    ),
    "sharegpt": _pairs("conversations", 0),
    "messages": _pairs("messages", 1),
    "conversation": _pairs("conversation", 2),
    "alpaca": _pairs("instruction", 3),
    "question": _pairs("question", 4),
    "query": _pairs("query", 5),
    "input": _pairs("input", 6),
    "history": _pairs("history", 7),
    "ultrafeedback": Layout(readers.ultrafeedback, ("instruction", "completions")),
    "helpsteer2": Layout(
        readers.helpsteer2,
        ("prompt", "response_1", "response_2"),
        numbers=("preference_strength",),
    ),
    "helpsteer3": Layout(
        readers.helpsteer3,
        ("context", "response1", "response2"),
        numbers=("overall_preference",),
        optional_texts=("individual_preference",),
    ),
    "nectar": Layout(readers.nectar, ("prompt", "answers")),
    "arena": Layout(readers.arena, ("conversation_a", "conversation_b", "winner")),
    "arena_55k": Layout(
        readers.arena_55k,
        ("prompt", "response_a", "response_b"),
        numbers=("winner_model_a", "winner_model_b", "winner_tie"),
    ),
    "pandalm": Layout(
        readers.pandalm,
        ("instruction", "input", "response1", "response2"),
        numbers=("annotator1", "annotator2", "annotator3"),
    ),
    "answers": Layout(readers.unranked, ("prompt", "responses"), is_ranked=False),
    "answer": Layout(readers.single, ("prompt", "response"), is_ranked=False),
}
FORMATS = tuple(LAYOUTS)
RANKED_FORMATS = tuple(name for name, layout in LAYOUTS.items() if layout.is_ranked)

# Columns that any layout may have, unless they are its own; a row without one has null there.
SCORES = ("score_chosen", "score_rejected")
OPTIONAL_NUMBERS = (*SCORES, "margin", "preference_strength", "weight")
OPTIONAL_TEXTS = ("votes", "tools")
OPTIONAL = (*OPTIONAL_NUMBERS, *OPTIONAL_TEXTS)
SYSTEM = ("system", "system_prompt")
NAMES = ("source", "subset")  # of the source that a row is from

# Other names of a layout's columns, taken where the table has not the usual one (argilla's).
ALIASES = {"chosen_response": "chosen", "rejected_response": "rejected"}

# Those of a CSV file whose NA or 7 is text, and every column that is read by its name.
TEXT_COLUMNS = (
    *(column for each in LAYOUTS.values() for column in (*each.texts, *each.optional_texts)),
    *(*OPTIONAL_TEXTS, *SYSTEM, *ALIASES),
)
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (
            *(column for each in LAYOUTS.values() for column in each.needed),
            *(column for each in LAYOUTS.values() for column in each.optional),
            *(*SYSTEM, *OPTIONAL, *NAMES, "id"),
        )
    )
)


def find_reader(
    columns: list[str],
    path: str,
    ranked: bool = True,
    layout: str | None = None,
    chat: bool = False,
) -> "partial[Comparison]":
    """The reader of a layout: `reader(row, source) -> Comparison`, ValueError for a bad row.

    The source is that of rows that name none in a column `source` or `subset`. `reader.args` has
    the layout's name.

    Args:
        columns: the columns that the data set has.
        path: the data set, for the error message.
        ranked: whether answers that nobody ranked are refused.
        layout: one of FORMATS; None: recognised by the columns.
        chat: whether a text prompt will be a user's message (--apply_chat_template), so that a
            system text is a message too.

    Raises:
        InputError: no known layout has these columns, or several have; or `layout` has others.
    """
    if layout is None:
        layout = _recognise(set(columns), path, ranked)
    if ranked and not LAYOUTS[layout].is_ranked:
        raise InputError(
            f"{path}: --format {layout} does not say which answer is better; training needs one "
            f"of {', '.join(RANKED_FORMATS)}"
        )

    needed = LAYOUTS[layout].needed
    if missing := [column for column in needed if column not in columns]:
        raise InputError(
            f"{path}: --format {layout} needs the columns {', '.join(needed)}; "
            f"{', '.join(missing)} is not among {', '.join(columns)}"
        )
    return partial(_read_row, layout, chat=True) if chat else partial(_read_row, layout)


def _recognise(columns: set[str], path: str, ranked: bool) -> str:
    """The layout whose columns are there, and no layout with more of them."""
    fitting = [name for name in LAYOUTS if columns.issuperset(LAYOUTS[name].needed)]
    with_ranks = [name for name in fitting if LAYOUTS[name].is_ranked]
    if ranked or with_ranks:
        fitting = with_ranks

    found = [n for n in fitting if not any(_gives_way(n, m) for m in fitting if m != n)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(columns))
    if found:
        raise InputError(
            f"{path}: the columns {listed} fit the layouts {', '.join(found)}: "
            "say which with --format NAME"
        )
    raise InputError(
        f"{path}: no known layout has the columns {listed}. "
        f"Known layouts: {known_layouts(ranked)}. "
        "Say which column is which, as in --columns prompt=QUESTION chosen=BETTER rejected=WORSE"
    )


def known_layouts(ranked: bool = True) -> str:
    """All layouts with their columns, for error messages; `ranked` as in `find_reader`."""
    names = RANKED_FORMATS if ranked else FORMATS
    return "; ".join(f"{name}: {'+'.join(LAYOUTS[name].needed)}" for name in names)


def _gives_way(name: str, other: str) -> bool:
    """Whether a table that fits both layouts is read as the other one.

    A column that any layout may have does not count: with ranks, votes do not make the ranks.
    """
    one, two = LAYOUTS[name], LAYOUTS[other]
    if one.preference is not None and two.preference is not None:
        return one.preference > two.preference
    return set(one.needed).difference(OPTIONAL) < set(two.needed)


def _read_row(layout: str, row: dict, source: str, chat: bool = False) -> Comparison:
    """A row of a layout, with what columns that any layout may have say about its answers."""
    needed = LAYOUTS[layout].needed
    if missing := [column for column in needed if column not in row]:
        raise ValueError(f"no {', '.join(missing)}; expected {', '.join(needed)}")

    names = (row.get(column) for column in NAMES)
    source = next((str(name) for name in names if is_name(name)), source)
    comparison = LAYOUTS[layout].reader(row, source)

    fields = _optional_fields(row, comparison, set(OPTIONAL).difference(needed))
    if system := _system_text(row):
        fields["prompt"] = with_system(comparison, system, chat)
    return replace(comparison, **fields) if fields else comparison


def is_name(value: object) -> bool:
    """Whether a value names a source: a longer text is none (summaries name their document so)."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def _system_text(row: dict) -> str:
    """What the columns of SYSTEM say, "" if nothing."""
    given = {name: as_messages(row[name]) for name in SYSTEM if not is_empty(row.get(name))}
    for name, value in given.items():
        if isinstance(value, list) and len(value) == 1:  # the system's message
            given[name] = read_messages(value, "system")[0]["content"]
    if len({check_text(name, value).strip() for name, value in given.items()}) > 1:
        raise ValueError(f"{' and '.join(given)} are two different texts")
    return next(iter(given.values()), "")


def _optional_fields(row: dict, comparison: Comparison, columns: set[str]) -> dict:
    given = {name: row[name] for name in columns if row.get(name) is not None}
    fields: dict = {}
    if given.keys() >= {*SCORES}:
        fields["grades"] = [check_number(name, given[name]) for name in SCORES]
    if "margin" in given:
        margin = check_number("margin", given["margin"], least=0)
        fields["grades"] = _by_rank(comparison, "margin", margin, 0)
    if "preference_strength" in given:
        strength = check_number("preference_strength", given["preference_strength"], 0, 1)
        shares = (1 + strength) / 2, (1 - strength) / 2
        fields["votes"] = _by_rank(comparison, "preference_strength", *shares)
    if "votes" in given:
        votes = read_list("votes", given["votes"])
        fields["votes"] = [check_number("votes", value, least=0) for value in votes]
    if "weight" in given:
        fields["weight"] = check_number("weight", given["weight"], least=0)
    if "tools" in given:
        fields["tools"] = read_tools(given["tools"])
    return fields


def _by_rank(comparison: Comparison, column: str, better: float, worse: float) -> list[float]:
    """A number for each answer of a pair; tied ones get the same."""
    if len(comparison.ranks) != 2:
        raise ValueError(f"{column} is for a pair, but there are {len(comparison.ranks)} answers")
    best = min(comparison.ranks)
    return [better if rank == best else worse for rank in comparison.ranks]
