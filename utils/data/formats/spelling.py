"""Lists and dicts that a text spells: as JSON, as Python writes them, or as NumPy does.

A table of text alone, such as a CSV file out of pandas, has them so.
"""

import ast
import json
import re
import warnings
from typing import Any

MAX_SPELLED = 1_000_000  # characters; Python's parser takes a hundred times the memory

QUOTED = r"'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\""
# What is no literal of Python, and what stands for it; quoted texts are passed over. Where NumPy
# writes no comma, there is white space alone; a value of a type of its own is NAME(VALUE).
ODD = re.compile(
    rf"(?P<text>{QUOTED})|(?P<gap>(?<![,:\[{{(\s])\s+(?![,:\]}})\s]))"
    r"|(?P<none>\b(?:nan|NaT)\b)|(?P<type>,\s*dtype=[^(),]+(?=\)))"
    r"|(?P<name>\b[A-Za-z_][\w.]*(?=\())",
    re.DOTALL,
)
INSTEAD = {"gap": ", ", "none": "None", "type": "", "name": ""}


def read_spelled(text: str) -> Any:
    """The value that a text spells; ValueError, with JSON's reason, if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = error
    if text.lstrip().removeprefix("array(")[:1] in ("[", "{") and len(text) <= MAX_SPELLED:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes in texts
                return ast.literal_eval(ODD.sub(_literal, text.strip()))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    raise ValueError(str(problem)) from None


def _literal(found: re.Match) -> str:
    return found["text"] or INSTEAD[str(found.lastgroup)]
