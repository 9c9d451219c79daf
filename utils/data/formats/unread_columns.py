"""Text of a conversation in columns that nobody reads.

The first rows are read, and their columns watched. For a column that was not asked for, its name
says from how many words on its text is some of the conversation (`_fewest_words`): a question or a
context from the first word; what is named after another part of a conversation from three; any
column from four where most answers have no prompt, since it must be somewhere; and never what
judges the answers, says how they were made or holds others. Only words count that are not in what
was read, so that a copy of the prompt, also one with markup, is no loss. Nor is a category, a short
text that comes again and again.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from os.path import commonprefix
from string import punctuation as PUNCTUATION
from typing import Any, NamedTuple

from utils.data.comparison import MAX_DEPTH, MAX_NAME, Comparison
from utils.data.formats.columns import ColumnMap
from utils.data.formats.conversations import TURN, remainder
from utils.data.formats.layouts import NAMES, SYSTEM, Reader, is_name
from utils.data.formats.messages import as_messages, is_empty
from utils.data.formats.readers import is_history
from utils.data.sources.files import RawRow, parse_row

WORDS_ALONE = 4  # so many words are text of the conversation where there is no prompt


class Survey(NamedTuple):
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


class _Unread(NamedTuple):
    """What a row has in a column that is not read.

    Attributes:
        words: the most that one text of it adds to what is read.
        short: its text; None where that is too long for a name or a category.
    """

    words: int
    short: str | None


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


def survey_rows(rows: Iterable[RawRow], reader: Reader, columns: ColumnMap) -> Survey:
    """What rows show when they are read under new names; those that cannot be are passed over."""
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
    return Survey(used, sorted(lost), other, sorted(nameless), is_bare)


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
    words = max((_count_words(remainder(text, said)) for text in texts), default=0)
    short = " ".join(texts)
    return _Unread(words, short if len(short) <= MAX_NAME else None)


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


def _fewest_words(column: str, is_bare: bool) -> int | None:
    """From how many words on a column's text is some of the conversation; None: it never is."""
    if column in NAMES:
        return WORDS_ALONE
    words = [_singular(part.lower()) for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
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


UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, kana, Han


def _count_words(text: str) -> int:
    """How many words of letters a text has; where no spaces stand between them, of characters."""
    words = (word.strip(PUNCTUATION) for word in text.split())
    return sum(len(word) > 1 and word.isalpha() for word in words) + len(UNSPACED.findall(text))
