"""Tokenised rows made by hand, for the tests of the audit."""

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable

from utils.audit.rows import AuditedData, read_data
from utils.data import token_rows
from utils.data.row_selection import Split, remove_duplicates, remove_leaks
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


def read(train=(), evaluation=(), deduplicate="off") -> AuditedData:
    """What an audit reads of splits that train and others that evaluate."""
    if train:
        remove_duplicates(train, deduplicate)
        remove_leaks(train, evaluation)
    for split in evaluation:
        split.trains = False
    return read_data([*train, *evaluation])


def make_split(rows: list[dict], label="a.jsonl", ties=False, chunks=1, first=0) -> Split:
    """Rows as a split that trains; its attribute `rows` are the rows."""
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
    split = Split(label, datasets.Dataset(InMemoryTable(table)), trains=True, ties=ties)
    split.rows = rows
    return split
