"""The column layouts of data sets, and the reader that makes a Comparison of a row of each.

A layout is recognised by its columns, never by the name of the data set.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from utils.data.comparison import MAX_NAME, Comparison, check_number, check_text
from utils.data.formats import readers
from utils.data.formats.conversations import with_system
from utils.data.formats.messages import as_messages, is_empty, read_list, read_messages, read_tools
from utils.settings import InputError

Reader = Callable[[dict, str], Comparison]
Layout = tuple[tuple[str, ...], Reader]


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
    if ranked and layout in UNRANKED:
        raise InputError(
            f"{path}: --format {layout} does not say which answer is better; training needs one "
            f"of {', '.join(LAYOUTS)}"
        )
    missing = [column for column in _KNOWN[layout][0] if column not in columns]
    if missing:
        raise InputError(
            f"{path}: --format {layout} needs the columns {', '.join(_KNOWN[layout][0])}; "
            f"{', '.join(missing)} is not among {', '.join(columns)}"
        )
    return partial(_read, layout, chat=True) if chat else partial(_read, layout)


def _recognise(columns: set[str], path: str, ranked: bool) -> str:
    """The layout whose columns are there, and no layout with more of them."""
    fitting = [name for name in LAYOUTS if columns.issuperset(LAYOUTS[name][0])]
    if not fitting and not ranked:
        fitting = [name for name in UNRANKED if columns.issuperset(UNRANKED[name][0])]
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
    layouts = (LAYOUTS if ranked else _KNOWN).items()
    return "; ".join(f"{name}: {'+'.join(needed)}" for name, (needed, _) in layouts)


def _gives_way(name: str, other: str) -> bool:
    """Whether `other` has all columns of `name` and more.

    A column that any layout may have does not count: with ranks, votes do not make the ranks.
    Where chosen and rejected have several columns beside them that may be their prompt, the first
    one in ASKED is.
    """
    if name in ASKED and other in ASKED:
        return ASKED[name] > ASKED[other]
    return set(_KNOWN[name][0]).difference(OPTIONAL) < set(_KNOWN[other][0])


def _read(layout: str, row: dict, source: str, chat: bool = False) -> Comparison:
    """A row of a layout, with what columns that any layout may have say about its answers."""
    columns, reader = _KNOWN[layout]
    missing = [column for column in columns if column not in row]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; expected {', '.join(columns)}")
    names = (row.get(column) for column in NAMES)
    source = next((str(name) for name in names if is_name(name)), source)
    comparison = reader(row, source)
    fields = _optional_fields(row, comparison, set(OPTIONAL).difference(columns))
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


# Layouts of chosen and rejected by the column of their prompt (readers.PROMPTS), by preference.
PROMPT_OF = {
    "messages": "messages",
    "conversation": "conversation",
    "alpaca": "instruction",
    "question": "question",
    "query": "query",
    "input": "input",
    "history": "history",
}
ASKED = {"pairs": 0, "sharegpt": 0, **{name: i for i, name in enumerate(PROMPT_OF, 1)}}

# Columns and reader of each layout, by the name that --format takes.
LAYOUTS: dict[str, Layout] = {
    "ranked": (("prompt", "responses", "ranks"), readers.ranked),
    "scored": (("prompt", "responses", "scores"), readers.scored),
    "voted": (("prompt", "responses", "votes"), readers.voted),
    "pairs": (("prompt", "chosen", "rejected"), readers.pairs),
    "transcripts": (("chosen", "rejected"), readers.transcripts),
    "webgpt": (("question", "answer_0", "answer_1", "score_0", "score_1"), readers.webgpt),
    "shp": (("history", "human_ref_A", "human_ref_B", "labels"), readers.shp),
    "sharegpt": (
        ("conversations", "chosen", "rejected"),
        partial(readers.pairs, first="conversations"),
    ),
    **{
        name: ((column, "chosen", "rejected"), partial(readers.pairs, first=column))
        for name, column in PROMPT_OF.items()
    },
    "ultrafeedback": (("instruction", "completions"), readers.ultrafeedback),
    "helpsteer2": (
        ("prompt", "response_1", "response_2", "preference_strength"),
        readers.helpsteer2,
    ),
    "helpsteer3": (("context", "response1", "response2", "overall_preference"), readers.helpsteer3),
    "nectar": (("prompt", "answers"), readers.nectar),
    "arena": (("conversation_a", "conversation_b", "winner"), readers.arena),
    "arena_55k": (
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        readers.arena_55k,
    ),
    "pandalm": (
        ("instruction", "input", "response1", "response2")
        + ("annotator1", "annotator2", "annotator3"),
        readers.pandalm,
    ),
}

# For scoring alone: nothing says which answer is better.
UNRANKED: dict[str, Layout] = {
    "answers": (("prompt", "responses"), readers.unranked),
    "answer": (("prompt", "response"), readers.single),
}
_KNOWN = LAYOUTS | UNRANKED
FORMATS = tuple(_KNOWN)

# Columns that any layout may have, unless they are its own; a row without one has null there.
SCORES = ("score_chosen", "score_rejected")
OPTIONAL = (*SCORES, "margin", "preference_strength", "votes", "weight", "tools")
SYSTEM = ("system", "system_prompt")
NAMES = ("source", "subset")  # of the source that a row is from

# Other names of a layout's columns, taken where the table has not the usual one (argilla's).
ALIASES = {"chosen_response": "chosen", "rejected_response": "rejected"}

# Every column that is read by its name, and those of a CSV file whose NA or 7 is text.
COLUMNS = tuple(
    dict.fromkeys(
        (
            *(column for columns, _ in _KNOWN.values() for column in columns),
            *("score_ratio", "individual_preference", "input", "history"),
            *(*SYSTEM, *OPTIONAL, *NAMES, "id"),
        )
    )
)
NUMBERS = (
    *("score_0", "score_1", "labels", "score_ratio", "preference_strength", "overall_preference"),
    *("winner_model_a", "winner_model_b", "winner_tie", "annotator1", "annotator2", "annotator3"),
    *(*SCORES, "margin", "weight"),
)
TEXT_COLUMNS = (*ALIASES, *(name for name in COLUMNS if name not in (*NUMBERS, *NAMES, "id")))
