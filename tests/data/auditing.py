"""Tokenised rows made by hand, for the tests of the audit."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "answers": pa.list_(pa.int32()),
        "ranks": pa.list_(pa.int32()),
        "dropped": pa.string(),
        "problem": pa.string(),
        "cut": pa.int32(),
        "prompt_tokens": pa.int32(),
        "answer_tokens": pa.list_(pa.int32()),
        "shared": pa.int32(),
        "tokens": pa.int32(),
        "source": pa.string(),
        "prompt_key": pa.int64(),
        "answer_keys": pa.list_(pa.int64()),
    }
)


def hashed(text: str) -> int:
    """A hash of 64 bits, with its sign."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def make_row(prompt="p", answers=("a", "b"), ranks=(0, 1), **changes) -> dict:
    """A row whose answers have as many tokens as letters; `kept` says which stay."""
    kept = changes.pop("kept", list(range(len(answers))))
    tokens = [len(answers[i]) for i in kept]
    return {
        "answers": kept,
        "ranks": list(ranks),
        "dropped": "",
        "problem": "",
        "cut": 0,
        "prompt_tokens": len(prompt),
        "answer_tokens": tokens,
        "shared": len(prompt),
        "tokens": len(prompt) + sum(tokens),
        "source": "s",
        "prompt_key": hashed(prompt),
        "answer_keys": [hashed(answer) for answer in answers],
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
    return SimpleNamespace(table=data, label=label, taken=taken, keys=lambda: keys, rows=rows)
