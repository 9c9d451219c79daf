"""Rows, answers and ranked pairs of a run's data in pandas tables, and what repeats among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from utils.data.keys import comparison_keys
from utils.data.row_selection import Split
from utils.data.token_rows import SCHEMA, UNUSABLE, Reason

TRAINING, EVALUATION = "training", "evaluation"

# Defects of rows beside the reasons why they are not used.
UNRENDERED = "part of the prompt not rendered"
CUT = "cut"
CONTRADICTION = "contradictory labels"
REPEATS: dict[str, str] = {
    Reason.DUPLICATE: "repeats {other}",
    CONTRADICTION: "{other} ranks two of its answers the other way round",
    Reason.LEAK: "{other} trains its prompt",
}

# Columns of token rows that are read.
LISTS = ("answers", "answer_tokens", "answer_keys", "ranks")
VALUES = (
    *("index", "source", "prompt_key", "problem", "unrendered"),
    *("cut", "prompt_tokens", "shared", "tokens"),
)

# Rows that are looked for repeats neither as those that repeat nor as those that are repeated.
UNSEEN = (
    *(Reason.MALFORMED, Reason.OTHER_STEP, Reason.BEYOND_CAP),
    *(Reason.HELD_OUT, Reason.PROMPT_HELD_OUT),
)


@dataclass(frozen=True)
class AuditedData:
    """All rows of a run's data, with what was decided about them elsewhere.

    Attributes:
        splits: side and path of each split, numbered from 0; what is held out of one that trains
            is another split, which evaluates.
        rows: a line a row that was read, one split after the other: VALUES but index, and
            split: its number.
            row: its number in the source, from 1.
            training: whether its split trains.
            reason: as of row_selection.Split.
            used: whether it trains, or evaluates, as its split does.
            kept: the answers that train or are scored.
            readable: whether it is looked at for repeats.
        answers: a line an answer: comparison, a number of rows, and tokens, -1 if the answer is not
            kept.
        pairs: a line a pair of different answers and ranks, comparison after comparison: the
            comparison, better_tokens and worse_tokens.
        defects: a line a defect: comparison, defect, detail, and left_out: whether a row that
            repeats is not used.
    """

    splits: list[tuple[str, str]]
    rows: pd.DataFrame
    answers: pd.DataFrame
    pairs: pd.DataFrame
    defects: pd.DataFrame


def read_data(splits: Sequence[Split]) -> AuditedData:
    """The tables of all that trains and all that evaluates (row_selection.choose_rows)."""
    schema = pa.schema([SCHEMA.field(name) for name in (*VALUES, *LISTS)])
    sides, tables, codes = [], [schema.empty_table()], [np.empty(0, dtype=np.int8)]

    def add(side: str, label: str, split: Split, rows: np.ndarray | None = None) -> None:
        table = pa.table({name: split.table.data[name] for name in schema.names})
        sides.append((side, label))
        tables.append(table if rows is None else table.filter(rows))
        codes.append(split.reason.codes if rows is None else split.reason.codes[rows])

    for split in splits:
        add(TRAINING if split.trains else EVALUATION, split.label, split)
    for split in splits:
        held_out = split.reason == Reason.HELD_OUT
        if held_out.any():
            add(EVALUATION, f"{split.label} (held out)", split, held_out)

    table = pa.concat_tables(tables)
    rows = table.drop_columns(LISTS).to_pandas(strings_to_categorical=True)
    rows["split"] = np.arange(len(sides), dtype=np.int32).repeat(list(map(len, tables[1:])))
    rows["training"] = np.array([side == TRAINING for side, _ in sides])[rows["split"]]
    rows["reason"] = pd.Categorical.from_codes(np.concatenate(codes), ["", *Reason])
    is_held_out = ~rows["training"] & (rows["reason"] == Reason.HELD_OUT)
    rows["used"] = (rows["reason"] == "") | is_held_out

    rows["row"] = rows.pop("index") + 1
    rows["key"] = comparison_keys(table)
    rows["kept"] = pc.list_value_length(table["answers"]).to_numpy()
    rows["readable"] = rows["used"] | ~rows["reason"].isin(UNSEEN)

    answers = _read_answers(table)
    pairs = _find_pairs(answers)
    defects = _find_defects(sides, rows, pairs)

    # Hashes have done their work, and are most of what a million rows need.
    answers, pairs = answers[["comparison", "tokens"]], pairs.drop(columns=["better", "worse"])
    return AuditedData(sides, rows.drop(columns="key"), answers, pairs, defects)


def _read_answers(table: pa.Table) -> pd.DataFrame:
    counts, kept_counts = (
        pc.list_value_length(table[name]).to_numpy() for name in ("answer_keys", "answers")
    )
    kept, kept_tokens, keys, ranks = (pc.list_flatten(table[name]).to_numpy() for name in LISTS)
    tokens = np.full(len(keys), -1, dtype=np.int32)
    tokens[(np.cumsum(counts) - counts).repeat(kept_counts) + kept] = kept_tokens
    comparison = np.arange(len(counts), dtype=np.int32).repeat(counts)
    columns = {"comparison": comparison, "key": keys, "rank": ranks, "tokens": tokens}
    return pd.DataFrame(columns, copy=False)


def _find_pairs(answers: pd.DataFrame) -> pd.DataFrame:
    comparison, keys, ranks, tokens = (answers[name].to_numpy() for name in answers)
    found = [np.empty((2, 0), dtype=np.int32)]

    # Answers of a comparison stand together, so those 2, 3, ... apart are among those 1 apart.
    first, apart = np.arange(len(answers), dtype=np.int32), 1
    while len(first := first[first + apart < len(answers)]):
        first = first[comparison[first] == comparison[first + apart]]
        found.append(np.stack([first, first + apart]))
        apart += 1

    one, other = np.concatenate(found, axis=1)
    differ = (ranks[one] != ranks[other]) & (keys[one] != keys[other])
    one, other = one[differ], other[differ]
    order = np.argsort(comparison[one], kind="stable")
    one, other = one[order], other[order]

    better = np.where(ranks[one] < ranks[other], one, other)
    worse = one + other - better
    return pd.DataFrame(
        {
            "comparison": comparison[one],
            "better": keys[better],
            "worse": keys[worse],
            "better_tokens": tokens[better],
            "worse_tokens": tokens[worse],
        },
        copy=False,
    )


def _find_defects(
    splits: list[tuple[str, str]], rows: pd.DataFrame, pairs: pd.DataFrame
) -> pd.DataFrame:
    unusable, unrendered = rows["reason"].isin(UNUSABLE), rows["unrendered"] != ""
    problem = rows["problem"].astype(object)
    cases = [
        (rows["reason"][unusable], problem[unusable].replace("", "left out")),
        (UNRENDERED, rows["unrendered"][~unusable & unrendered]),
        (CUT, rows["cut"][rows["cut"] > 0]),
    ]
    found = [
        pd.DataFrame({"defect": defect, "detail": detail, "left_out": False})
        for defect, detail in cases
    ]

    # Rows of which none has another's prompt or several pairs cannot repeat anything, so that most
    # data are done soon.
    prompts = rows["prompt_key"][rows["readable"]]
    repeated = pairs["comparison"][pairs["comparison"].duplicated()].unique()
    meets = prompts.duplicated(keep=False) | prompts.index.isin(repeated)
    readable = rows.loc[prompts.index[meets]]
    every = among_used = _find_repeats(readable, pairs)
    if not readable["used"].all():
        among_used = _find_repeats(readable[readable["used"]], pairs)

    for defect, text in REPEATS.items():
        own = among_used[defect].reindex(among_used[defect].index.union(every[defect].index))
        left_out = own.isna()
        own = own.fillna(every[defect]).astype(int)

        places = zip(rows["row"][own], rows["split"][own], left_out, strict=True)
        detail = [
            text.format(other=f"row {row} of {splits[split][1]}") + ("; left out" if left else "")
            for row, split, left in places
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

    trained = rows[rows["training"] & rows["used"]].drop_duplicates("prompt_key")
    trained = trained.reset_index(names="number").set_index("prompt_key")["number"]
    leaks = rows["prompt_key"][rows["reason"] == Reason.LEAK].map(trained)
    return {Reason.DUPLICATE: first[first != numbers], CONTRADICTION: opposite, Reason.LEAK: leaks}
