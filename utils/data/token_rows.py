"""The row that a comparison becomes when it is tokenised: its columns, and why it is not used.

packing.py lays such rows out as a batch.
"""

from enum import StrEnum
from typing import NamedTuple

import pyarrow as pa


class Reason(StrEnum):
    """Why a row is not used; where several are true, the first one counts.

    Those in UNUSABLE stand in the row itself (tokenization.py); the others are chosen among all
    rows (row_selection.py).
    """

    MALFORMED = "malformed"
    NOT_RENDERED = "not rendered by the chat template"
    EMPTY = "empty answer"
    TOO_LONG = "longer than max_seq_len"
    FEW = "fewer than two answers"
    CUT_IDENTICAL = "identical after truncation"
    IDENTICAL = "identical answers"
    TIED = "tied"  # the last of UNUSABLE
    OTHER_STEP = "for another step of --data_split"
    BEYOND_CAP = "beyond the number that is taken of its source"
    HELD_OUT = "held out: it evaluates and does not train"
    PROMPT_HELD_OUT = "its prompt is held out"
    DUPLICATE = "exact duplicate"
    REPEATED_PROMPT = "not the first of its prompt"
    LEAK = "prompt on both sides"


UNUSABLE = tuple(Reason)[: tuple(Reason).index(Reason.TIED) + 1]


class Column(NamedTuple):
    """A column of token rows.

    Attributes:
        type: of its values in the table on disk.
        meaning: of a value.
        in_batches: whether batches are made of it, so that it is read in training.
    """

    type: pa.DataType
    meaning: str
    in_batches: bool = False


_INT = pa.int32()
_INTS = pa.list_(_INT)

# Of K answers those are kept that have text and fit.
COLUMNS = {
    "index": Column(pa.int64(), "number of the row in its split", True),
    "source": Column(pa.string(), "group of the row in tables", True),
    # What is computed.
    "input_ids": Column(
        pa.list_(_INTS), "of each kept answer, with its prompt and end token", True
    ),
    "answer_starts": Column(_INTS, "where in each sequence the answer begins", True),
    "answers": Column(_INTS, "which of the K answers are kept", True),
    "length": Column(_INT, "tokens of the longest sequence", True),
    "shared": Column(_INT, "tokens that all sequences begin with", True),
    "tokens": Column(_INT, "tokens of all sequences, the shared ones counted once", True),
    # What the answers are worth.
    "ranks": Column(_INTS, "of all K answers, lower is better", True),
    "grades": Column(pa.list_(pa.float32()), "of all K answers; [] if there are none", True),
    "votes": Column(pa.list_(pa.float32()), "of all K answers; [] if there are none", True),
    "weight": Column(pa.float32(), "factor in the loss; null if there is none", True),
    # What is left out or cut, and why.
    "dropped": Column(pa.string(), "the Reason why the row cannot train; '' if it can"),
    "problem": Column(pa.string(), "what is malformed, or which part is not rendered"),
    "unrendered": Column(pa.string(), "part of the prompt that the chat template leaves out"),
    "empty_answers": Column(_INT, "answers without text"),
    "long_answers": Column(_INT, "answers that do not fit even without a prompt"),
    "cuts": Column(_INTS, "tokens that truncation took from each kept answer with its prompt"),
    "cut": Column(_INT, "the largest of them"),
    "prompt_tokens": Column(_INT, "of the prompt, before any cut"),
    "answer_tokens": Column(_INTS, "of each kept answer, before any cut"),
    # By which rows are told to be the same.
    "prompt_key": Column(pa.int64(), "hash that equal prompts share", True),
    "answer_keys": Column(pa.list_(pa.int64()), "hashes that equal answers share, of all K"),
}
SCHEMA = pa.schema({name: column.type for name, column in COLUMNS.items()})
BATCH_COLUMNS = [name for name, column in COLUMNS.items() if column.in_batches]


def empty_row(source: str, dropped: Reason | str = "", problem: str = "") -> dict:
    """A row with nothing in it: all columns but `index`, with these values in three of them."""
    row: dict = {}
    for field in SCHEMA:
        if pa.types.is_list(field.type):
            row[field.name] = []
        elif pa.types.is_integer(field.type):
            row[field.name] = 0
        else:
            row[field.name] = "" if pa.types.is_string(field.type) else None

    del row["index"]
    return row | {"source": source, "dropped": dropped, "problem": problem}
