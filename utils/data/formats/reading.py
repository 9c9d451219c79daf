"""Which columns of a table are read; text of the conversation that nobody reads is an error."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from os.path import commonprefix
from string import punctuation as PUNCTUATION
from typing import Any, NamedTuple

from utils.data.comparison import MAX_DEPTH, MAX_NAME, Comparison
from utils.data.formats.columns import ColumnMap
from utils.data.formats.conversations import TURN, remainder
from utils.data.formats.layouts import (
    LAYOUTS,
    NAMES,
    SYSTEM,
    Reader,
    find_reader,
    is_name,
    known_layouts,
)
from utils.data.formats.messages import as_messages, is_empty
from utils.data.formats.readers import is_history
from utils.data.sources.files import PEEK, RawRow, find_columns, parse_row
from utils.settings import InputError

# Words in the names of columns that hold text of the conversation.
CONVERSATION = (
    *("prompt", "question", "query", "instruction", "input", "system", "history", "context"),
    *("message", "conversation", "dialogue", "dialog", "document", "doc", "passage", "post"),
    *("article", "turn", "user", "human", "chat", "utterance", "background", "persona"),
    *("premise", "problem", "body", "paragraph", "excerpt", "snippet", "story", "schema", "email"),
    *("transcript", "demonstration", "shot", "sys", "developer"),
)
# Whole names under which a single word is text already.
SHORTEST = ("question", "query", "instruction", "input", "context")
# Words in the names of columns that judge the answers, or say how they were made.
ABOUT = (
    *("rationale", "explanation", "critique", "feedback", "comment", "judge", "judgement"),
    *("judgment", "justification", "reason", "reasoning", "annotation", "annotator", "label"),
    *("labelling", "labeling", "grading", "rating", "evaluation", "evaluator", "review"),
    *("reviewer", "generation", "moderation", "preference"),
)
# Last words of the names of columns that hold other answers, or a property of the row.
ANSWERS = ("response", "answer", "completion", "output", "reply", "reference", "ref", "solution")
PROPERTY = (
    *("id", "idx", "index", "hash", "uuid", "url", "type", "kind", "category", "class"),
    *("group", "name", "title", "model", "language", "lang", "length", "len", "token", "count"),
    *("num", "number", "score", "date", "time", "timestamp", "dataset", "source", "subset"),
    *("split", "level", "difficulty", "topic", "domain", "subject", "task", "tag", "metadata"),
    *("meta", "info", "order", "format", "version", "status", "quality"),
)
WORDS_ALONE = 4  # so many words are text of the conversation where there is no prompt
UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, kana, Han


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
    ranked: bool = True,
    chat: bool = False,
) -> Reading:
    """Find the layout of a table by its first rows, and see that no text of them is lost.

    Args:
        rows: of the table; they are begun several times.
        path: the table, for messages.
        columns: new names (--columns); None: as they are.
        layout, ranked, chat: as in `formats.find_reader`.

    Raises:
        InputError: no layout fits, a column is not there, or text of the conversation is not read.
    """
    found = find_columns(islice(rows, PEEK), path)
    columns = (columns or ColumnMap()).of_table(found, path)
    renamed = columns.rename(dict.fromkeys(found))
    reader = find_reader(list(renamed), path, ranked, layout, chat)
    (name,) = reader.args

    survey = _survey(islice(rows, PEEK), reader, columns)
    shown = {column: f"{name}={column}" for name, column in columns.names}
    read = ", ".join(shown.get(column, column) for column in found if column in survey.used)
    if lost := survey.lost:
        raise InputError(
            f"{path}: {', '.join(lost)}: not read, but text of the conversation as it seems (the "
            f"layout {name} reads {read}). {_remedy(survey, name)}. Known layouts: "
            f"{known_layouts(ranked)}"
        )
    others = ", ".join(column for column in found if column not in {*survey.used, "id"})
    note = f"{path}: layout {name}; read: {read}; not read: {others or 'none'}"
    for column in survey.nameless:
        note += f" ({column} names no row where it is no text of at most {MAX_NAME} characters)"
    return Reading(partial(_read_renamed, reader, columns) if columns.names else reader, note)


def _remedy(survey: "_Survey", layout: str) -> str:
    """What to do about columns that are lost; a name that can hold the values of the first one."""
    lost = survey.lost
    asks = "chosen" in LAYOUTS[layout].texts  # and may have any column of readers.PROMPTS
    name, below = "system", ""
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


class _Watched(dict):
    """A row that notes which of its columns are asked for."""

    def __init__(self, row: dict):
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.seen.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        if column in self:
            self.seen.add(column)
        return super().get(column, default)


class _Unread(NamedTuple):
    """What a row has in a column that is not read.

    Attributes:
        words: the most that one text of it adds to what is read.
        short: its text; None where that is too long for a name or a category.
    """

    words: int
    short: str | None


class _Survey(NamedTuple):
    """What the first rows of a table show.

    Attributes:
        used: columns that are read.
        lost: columns that are not, with text of the conversation.
        other: columns with values that are no text, and whether each is a history.
        nameless: columns of NAMES with values that are no name.
        is_bare: whether most answers have no prompt.
    """

    used: set[str]
    lost: list[str]
    other: dict[str, bool]
    nameless: list[str]
    is_bare: bool


def _survey(rows: Iterable[RawRow], reader: Reader, columns: ColumnMap) -> _Survey:
    original = dict(columns.names)
    used: set[str] = set()
    nameless: set[str] = set()
    unread: dict[str, list[_Unread]] = defaultdict(list)
    other: dict[str, bool] = {}
    bare: list[bool] = []

    for raw in rows:
        watched = _Watched({})
        try:
            row = parse_row(raw)
            watched = _Watched(columns.rename(row))
            comparison = reader(watched, "")
        except ValueError:  # it is counted where all rows are read
            used |= {original.get(name, name) for name in watched.seen}
            continue

        odd = {n for n in NAMES if not is_empty(watched.get(n)) and not is_name(watched[n])}
        seen = {original.get(name, name) for name in watched.seen - odd}
        used, nameless = used | seen, nameless | odd

        bare.append(_is_bare(comparison, watched))
        said = list(_texts([comparison.prompt, *comparison.responses]))
        for column in row.keys() - (seen - {*NAMES}) - {*columns.ignored, "id"}:
            if _fewest_words(column, True) is not None:
                unread[column].append(_added(row[column], said))
                if not isinstance(as_messages(row[column]), str | None):
                    other[column] = other.get(column, True) and is_history(row[column])

    is_bare = sum(bare) * 2 > len(bare)
    lost = [column for column, values in unread.items() if _is_lost(column, values, is_bare)]
    return _Survey(used, sorted(lost), other, sorted(nameless), is_bare)


def _is_bare(comparison: Comparison, row: dict) -> bool:
    """Whether nothing but perhaps a system text stands before the answers."""
    prompt = comparison.prompt
    if not isinstance(prompt, str) or TURN in prompt:
        return False
    systems = [row.get(name) for name in SYSTEM]
    if prompt.strip() and prompt not in systems:
        return False
    answers = [text for text in comparison.responses if isinstance(text, str)]
    return len(commonprefix(answers).split()) < WORDS_ALONE


def _added(value: Any, said: list[str]) -> _Unread:
    """What the texts of a value say beyond those that are read."""
    texts = [text for text in _texts(value) if not is_empty(text)]
    words = [_words(remainder(text, said)) for text in texts if _words(text)]
    short = " ".join(texts)
    return _Unread(max(words, default=0), short if len(short) <= MAX_NAME else None)


def _is_lost(column: str, values: list[_Unread], is_bare: bool) -> bool:
    """Whether a column that is not read has text of the conversation."""
    fewest = _fewest_words(column, is_bare)
    if column in NAMES and not is_bare:  # it names the row, if it is short enough
        values = [value for value in values if value.short is None]
    if fewest is None or not any(value.words >= fewest for value in values):
        return False
    if fewest < WORDS_ALONE:
        return True
    # A category is short and comes again and again.
    shorts = [value.short for value in values if value.short != ""]
    return None in shorts or len({*shorts}) * 2 > len(shorts)


def _fewest_words(column: str, is_bare: bool) -> int | None:
    """From how many words on a column's text is some of the conversation; None: it never is."""
    words = [_singular(part.lower()) for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
    if column in NAMES:
        return WORDS_ALONE
    if not words or words[-1] in ANSWERS or any(word in ABOUT for word in words):
        return None
    if column in SHORTEST:
        return 1
    if words[-1] not in PROPERTY and any(word in CONVERSATION for word in words):
        return 3
    return WORDS_ALONE if is_bare else None


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and word[-2:] not in ("ss", "us", "is", "ys") else word


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """All texts in a value; of messages what they say, and of other dicts no answers."""
    value = as_messages(value) if isinstance(value, str | dict) else value
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < MAX_DEPTH:
        for part in value:
            if isinstance(part, dict):
                keys = [key for key in ("content", "value") if key in part] or [
                    key for key in part if key not in ANSWERS
                ]
                yield from (text for key in keys for text in _texts([part[key]], depth + 1))
            else:
                yield from _texts(part, depth + 1)


def _words(text: str) -> int:
    """How many words of letters a text has; where no spaces stand between them, of characters."""
    words = (word.strip(PUNCTUATION) for word in text.split())
    return sum(len(word) > 1 and word.isalpha() for word in words) + len(UNSPACED.findall(text))
