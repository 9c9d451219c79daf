"""Rows, answers and ranked pairs of a run's data in pandas tables, and what repeats among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from utils.data.keys import comparison_keys
from utils.data.sides import Part
from utils.data.token_rows import SCHEMA, Reason

TRAINING, EVALUATION = "training", "evaluation"

# Defects of rows beside the reasons for which rows are dropped (tokenization.py).
UNRENDERED = "part of the prompt not rendered"
CUT = "cut"
DUPLICATE = "exact duplicate"
CONTRADICTION = "contradictory labels"
LEAK = "prompt on both sides"
REPEATS = {
    DUPLICATE: "repeats {other}",
    CONTRADICTION: "{other} ranks two of its answers the other way round",
    LEAK: "{other} trains its prompt",
}

NUMBERS = ("index", "prompt_key", "cut", "prompt_tokens", "shared", "tokens")
TEXTS = ("dropped", "problem", "unrendered", "source")
LISTS = ("answers", "answer_tokens", "answer_keys", "ranks")
FLAGS = ("training", "taken", "removed", "held_out")


@dataclass(frozen=True)
class AuditedData:
    """All rows of a run's data; what was chosen to train and to evaluate is decided elsewhere.

    Attributes:
        parts: side and path of each part of the data, numbered from 0.
        rows: a line a row that was read, one part after the other: NUMBERS, TEXTS and FLAGS, and
            part: its number.
            row: its number in the source, from 1.
            key: uint64, equal for equal comparisons.
            kept: the answers that train or are scored.
            readable: whether it is looked at for repeats.
            `dropped` is "" for rows that can train, those tied all over if they train, too.
        answers: a line an answer: comparison, a number of rows; key; rank, lower is better; and
            tokens, -1 if the answer is not kept.
        pairs: a line a pair of different answers and ranks, comparison after comparison: the
            comparison, better and worse: keys, better_tokens and worse_tokens.
        defects: a line a defect: comparison, defect, detail, and left_out: whether a row that
            repeats neither trains nor evaluates.
    """

    parts: list[tuple[str, str]]
    rows: pd.DataFrame
    answers: pd.DataFrame
    pairs: pd.DataFrame
    defects: pd.DataFrame


def read_data(train: Sequence[Part], evaluation: Sequence[Part], ties: bool = False) -> AuditedData:
    """The tables of all that trains and all that evaluates.

    Args:
        train, evaluation: parts of each side. What a part that was held out drops is counted where
            it trains.
        ties: whether comparisons whose answers are all tied train.
    """
    sides = [(TRAINING, part) for part in train] + [(EVALUATION, part) for part in evaluation]
    parts = [(side, part.label) for side, part in sides]
    own = [SCHEMA.field(name) for name in (*NUMBERS, *TEXTS, *LISTS)]
    schema = pa.schema([*own, *((name, pa.bool_()) for name in FLAGS), ("part", pa.int64())])
    tables = [
        _read_part(part, number, side == TRAINING, ties).cast(schema)
        for number, (side, part) in enumerate(sides)
    ]
    table = pa.concat_tables([schema.empty_table(), *tables])

    rows = table.drop_columns(LISTS).to_pandas(strings_to_categorical=True)
    rows["row"] = rows["index"] + 1
    rows["key"] = comparison_keys(table)
    rows["kept"] = pc.list_value_length(table["answers"]).to_numpy()
    readable = ~rows["held_out"] & ~rows["dropped"].isin(["", Reason.MALFORMED])
    rows["readable"] = rows["taken"] | rows["removed"] | readable

    answers = _read_answers(table)
    pairs = _find_pairs(answers)
    return AuditedData(parts, rows, answers, pairs, _find_defects(parts, rows, pairs))


def _read_part(part: Part, number: int, training: bool, ties: bool) -> pa.Table:
    table = pa.table({name: part.table.data[name] for name in (*NUMBERS, *TEXTS, *LISTS)})
    if training and ties:
        is_tied = pc.equal(table["dropped"], Reason.TIED)
        dropped = pc.if_else(is_tied, "", table["dropped"])
        table = table.set_column(table.schema.get_field_index("dropped"), "dropped", dropped)

    ones = np.ones(len(table), dtype=bool)
    flags = (ones & training, part.taken, part.removed, ones & part.held_out)
    for name, values in zip([*FLAGS, "part"], [*flags, number * ones], strict=True):
        table = table.append_column(name, pa.array(values))
    return table.filter(part.taken | part.removed) if part.held_out else table


def _read_answers(table: pa.Table) -> pd.DataFrame:
    counts, kept_counts = (
        pc.list_value_length(table[name]).to_numpy() for name in ("answer_keys", "answers")
    )
    kept, kept_tokens, keys, ranks = (pc.list_flatten(table[name]).to_numpy() for name in LISTS)
    tokens = np.full(len(keys), -1)
    tokens[(np.cumsum(counts) - counts).repeat(kept_counts) + kept] = kept_tokens
    comparison = np.arange(len(counts)).repeat(counts)
    return pd.DataFrame({"comparison": comparison, "key": keys, "rank": ranks, "tokens": tokens})


def _find_pairs(answers: pd.DataFrame) -> pd.DataFrame:
    comparison, keys, ranks, tokens = (answers[name].to_numpy() for name in answers)
    found = [np.empty((2, 0), dtype=np.int64)]

    # Answers of a comparison stand together, so those 2, 3, ... apart are among those 1 apart.
    first, apart = np.arange(len(answers)), 1
    while len(first := first[first + apart < len(answers)]):
        first = first[comparison[first] == comparison[first + apart]]
        found.append(np.stack([first, first + apart]))
        apart += 1

    one, other = np.concatenate(found, axis=1)
    differ = (ranks[one] != ranks[other]) & (keys[one] != keys[other])
    one, other = one[differ], other[differ]
    better = np.where(ranks[one] < ranks[other], one, other)
    worse = one + other - better
    pairs = pd.DataFrame(
        {
            "comparison": comparison[one],
            "better": keys[better],
            "worse": keys[worse],
            "better_tokens": tokens[better],
            "worse_tokens": tokens[worse],
        }
    )
    return pairs.sort_values("comparison", kind="stable", ignore_index=True)


def _find_defects(
    parts: list[tuple[str, str]], rows: pd.DataFrame, pairs: pd.DataFrame
) -> pd.DataFrame:
    dropped, unrendered = rows["dropped"] != "", rows["unrendered"] != ""
    problem = rows["problem"].astype(object)
    cases = [
        (rows["dropped"][dropped], problem[dropped].replace("", "left out")),
        (UNRENDERED, rows["unrendered"][~dropped & unrendered]),
        (CUT, rows["cut"][rows["cut"] > 0]),
    ]
    found = [
        pd.DataFrame({"defect": defect, "detail": detail, "left_out": False})
        for defect, detail in cases
    ]

    # Rows of which none has another's prompt or several pairs cannot repeat anything, so that most
    # data are done soon.
    readable = rows[rows["readable"]]
    repeated = pairs["comparison"][pairs["comparison"].duplicated()].unique()
    meets = readable["prompt_key"].duplicated(keep=False) | readable.index.isin(repeated)
    readable = readable[meets]
    every = _find_repeats(readable, pairs)
    others = every
    if not readable["taken"].all():
        others = _find_repeats(readable[readable["taken"]], pairs)

    for defect, text in REPEATS.items():
        own = others[defect].reindex(others[defect].index.union(every[defect].index))
        left_out = own.isna()
        own = own.fillna(every[defect]).astype(int)
        names = [
            f"row {row} of {parts[part][1]}"
            for row, part in rows.loc[own, ["row", "part"]].itertuples(index=False)
        ]
        detail = [
            text.format(other=name) + ("; left out" if left else "")
            for name, left in zip(names, left_out, strict=True)
        ]
        table = pd.DataFrame({"defect": defect, "detail": detail, "left_out": left_out}, own.index)
        found.append(table)

    defects = pd.concat(found).rename_axis("comparison").reset_index()
    defects = defects.astype({"defect": str, "left_out": bool})
    return defects.sort_values("comparison", kind="stable", ignore_index=True)


def _find_repeats(rows: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, pd.Series]:
    """Defect -> for each of these rows that has it, the number of the first row that it repeats."""
    numbers = rows.index.to_series()
    first = numbers.groupby([rows["training"], rows["key"]]).transform("first")

    # Two rows of a side contradict each other where a pair of one is a pair of the other, swapped.
    pairs = pairs[["comparison", "better", "worse"]].join(
        rows[["training", "prompt_key"]], on="comparison", how="inner"
    )
    names = ["training", "prompt_key", "better", "worse"]
    firsts = pairs.drop_duplicates(names).set_axis(
        ["other", "worse", "better", "training", "prompt_key"], axis=1
    )
    opposite = pairs.merge(firsts, on=names).groupby("comparison")["other"].min()

    used = rows[rows["taken"] | rows["removed"]]
    train, evaluation = used[used["training"]], used[~used["training"]]
    trained = train.drop_duplicates("prompt_key").reset_index(names="number")
    leaks = evaluation["prompt_key"].map(trained.set_index("prompt_key")["number"]).dropna()
    return {DUPLICATE: first[first != numbers], CONTRADICTION: opposite, LEAK: leaks}
