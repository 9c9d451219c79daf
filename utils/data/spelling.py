"""Lists and dicts that a text spells: as JSON, as Python writes them, or as NumPy does.

A table of text alone, such as a CSV file out of pandas, has them so.
"""

import ast
import json
import re
import warnings
from typing import Any

MAX_SPELLED = 1_000_000  # characters; Python's parser takes a hundred times the memory

# White space between two values where NumPy leaves the comma out, or a whole quoted text before it.
QUOTED = r"'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\""
GAP = re.compile(rf"({QUOTED})|(?<![,:\[{{(\s])\s+(?![,:\]}})\s])", re.DOTALL)


def read_spelled(text: str) -> Any:
    """The value that a text spells; ValueError, with JSON's reason, if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = error
    if text.lstrip()[:1] in ("[", "{") and len(text) <= MAX_SPELLED:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes in texts
                return ast.literal_eval(GAP.sub(lambda found: found[1] or ", ", text.strip()))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    raise ValueError(str(problem)) from None
