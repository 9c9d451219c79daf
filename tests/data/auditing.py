"""Tokenised rows made by hand, for the tests of the audit."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from utils.data import token_rows
from utils.data.tokenization import text_key

# What an audit reads.
NAMES = ("index", "answers", "ranks", "dropped", "problem", "unrendered", "cut", "prompt_tokens")
NAMES += ("answer_tokens", "shared", "tokens", "source", "prompt_key", "answer_keys")
SCHEMA = pa.schema([token_rows.SCHEMA.field(name) for name in NAMES])


def make_row(prompt="p", answers=("a", "b"), ranks=(0, 1), **changes) -> dict:
    """A row whose answers have as many tokens as letters; `kept` says which stay."""
    kept = changes.pop("kept", list(range(len(answers))))
    tokens = [len(answers[i]) for i in kept]
    return {
        "answers": kept,
        "ranks": list(ranks),
        "dropped": "",
        "problem": "",
        "unrendered": "",
        "cut": 0,
        "prompt_tokens": len(prompt),
        "answer_tokens": tokens,
        "shared": len(prompt),
        "tokens": len(prompt) + sum(tokens),
        "source": "s",
        "prompt_key": text_key(prompt),
        "answer_keys": [text_key(answer) for answer in answers],
        "prompt": prompt,
        "texts": list(answers),
        **changes,
    }


def malformed(problem: str) -> dict:
    """A row that no reader could read."""
    row = make_row("", (), (), dropped="malformed", problem=problem)
    return row | {"prompt_key": 0}


def make_part(rows: list[dict], label="a.jsonl", taken=None, chunks=1, first=0):
    """Rows as a part of a side; rows that can train are taken."""
    lines = [{**row, "index": first + number} for number, row in enumerate(rows)]
    size = max(-(-len(lines) // chunks), 1)
    table = pa.concat_tables(
        [
            SCHEMA.empty_table(),
            *(
                pa.Table.from_pylist(lines[start : start + size], SCHEMA)
                for start in range(0, len(lines), size)
            ),
        ]
    )
    if taken is None:
        taken = [row["dropped"] == "" for row in rows]
    taken = np.array(taken, dtype=bool)
    keys = table["prompt_key"].to_numpy()
    data = SimpleNamespace(data=table)
    part = {"table": data, "label": label, "taken": taken, "keys": lambda: keys, "rows": rows}
    return SimpleNamespace(**part, held_out=False, removed=np.zeros_like(taken))
