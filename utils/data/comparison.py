"""The record that every data source becomes: a prompt and two or more ranked answers."""

import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

MAX_CHARACTERS = 1_000_000  # of a prompt, an answer or the tools
MAX_ANSWERS = 1000  # all pairs of them are looked at
MAX_NAME = 200  # characters of a source
MAX_DEPTH = 32  # of lists and dicts in a message or in the tools
LARGEST = 1e38  # float32 holds it, and the sum and the difference of two
LARGEST_RANK = 2**31 - 1

# {"role": str, "content": str}, and in some "name", "tool_call_id": str, "tool_calls": list[dict].
Message = dict


@dataclass(frozen=True)
class Comparison:
    """One prompt and its K answers, ranked.

    Attributes:
        prompt: text that is taken as it stands, or chat messages that are rendered.
        responses: K answers; each a text, or the messages that follow the prompt.
        ranks: K whole numbers, lower is better, equal is a tie.
        source: where the comparison comes from; evaluation groups by it.
        grades: K numbers; the difference of two is the margin of their pair. None: no margins.
        votes: K numbers of annotators, or shares of them, that prefer each answer: the i-th beats
            the j-th with the probability votes[i] / (votes[i] + votes[j]). None: nobody counted.
        weight: factor of the comparison in the loss; None: not given.
        tools: JSON schemas of the functions that the answers may call, for the chat template.

    Raises:
        ValueError: a field has the wrong type or length, text that is no Unicode or beyond the
            limits above, or a number that float32 does not hold; the message says which.
    """

    prompt: str | list[Message]
    responses: Sequence[str | list[Message]]
    ranks: Sequence[int]
    source: str
    grades: Sequence[float] | None = None
    votes: Sequence[float] | None = None
    weight: float | None = None
    tools: list[dict] | None = None

    def __post_init__(self):
        # Two comparisons are equal whatever kind of sequence they were made of.
        for name in ("responses", "ranks", "grades", "votes"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, list(values))
        self._check_texts()
        self._check_numbers()

    def _check_texts(self) -> None:
        check_text("source", self.source, MAX_NAME)
        _check_text_or_messages("prompt", self.prompt)
        if not self.responses:
            raise ValueError("no answers")
        if len(self.responses) > MAX_ANSWERS:
            raise ValueError(f"{len(self.responses):,} answers; expected at most {MAX_ANSWERS:,}")
        for number, response in enumerate(self.responses, 1):
            _check_text_or_messages(f"answer {number}", response)
            if isinstance(self.prompt, str) and not isinstance(response, str):
                raise ValueError(f"answer {number} is a list of messages, but the prompt is text")
        if self.tools is not None:
            if not isinstance(self.tools, list) or not all(isinstance(t, dict) for t in self.tools):
                raise ValueError(f"tools is {shorten(self.tools)}; expected a list of JSON schemas")
            _check_size("tools", _check_json("tools", self.tools))

    def _check_numbers(self) -> None:
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} answers but {len(self.ranks)} ranks or scores")
        for rank in self.ranks:
            if not isinstance(rank, int) or not -LARGEST_RANK <= rank <= LARGEST_RANK:
                raise ValueError(f"ranks has {shorten(rank)}; expected whole numbers of 32 bits")
        for name, values in (("grades", self.grades), ("votes", self.votes)):
            if values is None:
                continue
            if len(values) != len(self.responses):
                raise ValueError(f"{len(self.responses)} answers but {len(values)} {name}")
            for value in values:
                check_number(name, value)
        if self.weight is not None:
            check_number("weight", self.weight)


def check_text(name: str, value: object, limit: int = MAX_CHARACTERS) -> str:
    """A text, as it is; ValueError if none, too long, or with a NUL byte or a lone surrogate."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shorten(value)}; expected text")
    _check_size(name, len(value), limit)
    if "\0" in value:
        raise ValueError(f"{name} has a NUL byte at character {value.index(chr(0)) + 1}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            message = f"{name} has a lone surrogate at character {error.start + 1}"
            raise ValueError(message) from None
    return value


def check_number(name: str, value: object, least: float = -LARGEST, most: float = LARGEST) -> float:
    """A finite number that float32 holds, as it is; ValueError if it is none or out of range.

    A Decimal, as tables may hold, becomes a float.
    """
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        expected = "a finite number"
    elif not -LARGEST <= value <= LARGEST:  # NaN is in no range
        expected = "a finite number within ±1e38"
    elif value < least:
        expected = f"at least {least}"
    elif value > most:
        expected = f"at most {most}"
    else:
        return value
    raise ValueError(f"{name} has {shorten(value)}; expected {expected}")


def shorten(value: object) -> str:
    """What `value` is, for error messages: at most 60 characters, whatever its size or depth."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def ranked_pairs(ranks: Sequence[int], answers: Sequence[Sequence[int]]) -> np.ndarray:
    """All pairs of one comparison in which one answer is better than the other.

    Args:
        ranks: K ranks, lower is better.
        answers: K token sequences; pairs of identical ones say nothing and are left out.

    Returns:
        int64 array [P, 2]: index of the better answer, index of the worse one.
    """
    return np.argwhere(np.less.outer(ranks, ranks) & _different(answers))


def tied_pairs(ranks: Sequence[int], answers: Sequence[Sequence[int]]) -> np.ndarray:
    """As `ranked_pairs`, but those of the same rank: int64 [T, 2], the lower index first."""
    return np.argwhere(np.triu(np.equal.outer(ranks, ranks) & _different(answers)))


def ranks_from_scores(scores: Sequence[float]) -> list[int]:
    """Dense ranks of scores: the highest gets 0, equal scores get equal ranks."""
    order = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return [order[score] for score in scores]


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest beginning that all sequences of token ids have in common."""
    return len(os.path.commonprefix(sequences))  # which takes any lists, not paths alone


def _different(answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Which answers differ from which: bool [K, K]."""
    first_equal: dict[tuple, int] = {}
    identity = [first_equal.setdefault(tuple(a), i) for i, a in enumerate(answers)]
    return np.not_equal.outer(identity, identity)


def _check_text_or_messages(name: str, value: object) -> None:
    if isinstance(value, str):
        check_text(name, value)
        return
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {shorten(value)}; expected text or a list of messages")
    for message in value:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("role", "content")):
            expected = "messages with role and content"
            raise ValueError(f"{name} has {shorten(message)}; expected {expected}")
    _check_size(name, sum(_check_json(name, message) for message in value))


def _check_json(name: str, value: object, depth: int = 0) -> int:
    """How many characters and other values are in a JSON value that is checked all through."""
    if isinstance(value, str):
        return len(check_text(name, value))
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, (int, float)):
        check_number(name, value)
        return 1
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{name} has {shorten(value)}; expected what JSON has")
    if depth == MAX_DEPTH:
        raise ValueError(f"{name} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return sum(_check_json(name, part, depth + 1) for part in value)
    keys = sum(len(check_text(f"a key in {name}", key)) for key in value)
    return keys + sum(_check_json(name, part, depth + 1) for part in value.values())


def _check_size(name: str, size: int, limit: int = MAX_CHARACTERS) -> None:
    if size > limit:
        raise ValueError(f"{name} has {size} characters; expected at most {limit}")


# repr alone would recurse as deep as the value is nested.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60
