"""How benchmarks/consumers.py asks a script, and the script answers.

    python SCRIPT REQUEST.json ANSWER.json

The script runs in the environment of its consumer. A row of the request is a prompt and an answer,
both texts or both lists of messages: their sum is what is scored. A better answer is followed by
a worse one to the same prompt.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

REQUEST = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
FOLDER: str = REQUEST["folder"]

Rows = list[tuple]


def wholes(rows: Rows) -> list:
    """Prompt and answer of each row as one text, or as one conversation."""
    return [prompt + answer for prompt, answer in rows]


def is_chat(rows: Rows) -> bool:
    """Whether rows are messages."""
    return not isinstance(rows[0][0], str)


def rendered(tokenizer, rows: Rows) -> list[str]:
    """What a consumer that adds no special tokens gets: the chat template's text.

    A plain text begins with the tokens that the tokenizer would put there.
    """
    if is_chat(rows):
        return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in wholes(rows)]
    return [REQUEST["leading"] + text for text in wholes(rows)]


def answer(score: Callable[[Rows], list[float]], forms: Sequence[str] = ("text", "chat")) -> None:
    """Score the rows of each form; what was scored before an error is kept."""
    scores = {}
    for form in forms:
        scores[form] = score([tuple(row) for row in REQUEST[form]])
        Path(sys.argv[2]).write_text(json.dumps(scores), encoding="utf-8")
