"""What of a conversation does not stand in the text that a chat template made of it.

Templates move white space, take thoughts out of the content and spell the arguments of calls in
their own ways. What is left of such a text when all that is taken off must be there.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from utils.data.comparison import Message
from utils.data.formats.messages import CALLS, REASONING

THOUGHTS = "thoughts in content"
IS_THOUGHT = (THOUGHTS, *REASONING)

# Of a call, what only numbers it: templates may write it or not.
_NUMBERS = ("id", "index", "type")


class Searched:
    """A text in which others are looked for, as they are or else as a template may spell them."""

    def __init__(self, text: str):
        self.text = text

    def holds(self, texts: Iterable[str]) -> bool:
        """Whether all of the texts are in it."""
        return all(text.strip() in self.text or _loosen(text) in self._loose for text in texts)

    @cached_property
    def _loose(self) -> str:
        return _loosen(self.text)


_THINK_TAG = re.compile(r"</?think(?:ing)?>")


def said(message: Message) -> Iterator[tuple[str, list[str]]]:
    """What a rendered message must show: the names of fields, and the texts in each."""
    thoughts, _, content = message["content"].rpartition("</think>")
    yield "content", _THINK_TAG.split(content)
    if thoughts:
        yield THOUGHTS, _THINK_TAG.split(thoughts)
    for name in REASONING:
        if name in message:
            yield name, list(_leaves(message[name]))
    for name in CALLS:
        if name in message:
            yield name, list(_of_calls(message[name]))


# Texts that are all shorter than this may stand in another one by chance.
_CHANCE = 40


def may_be_chance(name: str, texts: Sequence[str]) -> bool:
    """Whether what `said` gives of a field could be found in a text that does not show the field.

    The content of a message counts as shown where it is found: to look closer would take a second
    rendering of every row.
    """
    return name in (*REASONING, *CALLS) and all(len(text) < _CHANCE for text in texts)


def without(message: Message, name: str) -> Message:
    """A copy without a field and the others of its kind, which templates take for each other."""
    kind = REASONING if name in REASONING else CALLS
    return {key: value for key, value in message.items() if key not in kind}


def tool_names(tools: Iterable[dict]) -> list[str]:
    """The names of functions in their JSON schemas, which may stand in an entry `function`."""
    schemas = [tool.get("function", tool) for tool in tools]
    return [str(one["name"]) for one in schemas if isinstance(one, dict) and "name" in one]


def look_alike(texts: Sequence[str], answers: Sequence[list[Message]]) -> str:
    """Two answers that differ, though their texts do not; "" if there are none.

    Args:
        texts: of the answers.
        answers: their messages. White space and numbers of calls make no difference.
    """
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        other = first.setdefault(text, number)
        if other != number and _essence(answers[other]) != _essence(answers[number]):
            return f"answers {other + 1} and {number + 1} differ, but their texts do not"
    return ""


def _of_calls(value: Any) -> Iterator[str]:
    """The texts in calls: of a name itself, of arguments also their keys, and not of the frame."""
    if isinstance(value, list):
        for call in value:
            yield from _of_calls(call)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "function":
                yield from _of_calls(part)
            elif key not in _NUMBERS:
                yield from _leaves(_parsed(part))
    else:
        yield from _leaves(value)


def _parsed(value: Any) -> Any:
    """Arguments as the object that they are, where they are its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, (dict, list)) else value


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a JSON value, and the keys of its objects."""
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")
_LOOSE = re.compile(r"[\s\\\"'\u200b]+")


def _loosen(text: str) -> str:
    """Without white space, quotes and backslashes, and with escaped characters as they are."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else "", text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs become one
    return _LOOSE.sub("", text)


def _essence(value: Any) -> Any:
    """What makes two answers different."""
    if isinstance(value, list):
        return [_essence(part) for part in value]
    if isinstance(value, dict):
        return {key: _essence(part) for key, part in value.items() if key not in _NUMBERS}
    return "".join(value.split()) if isinstance(value, str) else value
