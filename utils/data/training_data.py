"""Which comparisons train and which evaluate: chosen from what was read, and counted."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils import distributed
from utils.data.keys import comparison_keys, is_first
from utils.data.sampling import Mixture
from utils.data.sides import Part, Sides, is_dropped
from utils.data.token_rows import BATCH_COLUMNS, Reason
from utils.data.tokenization import WRITE_IT, text_key, usable_reasons
from utils.settings import InputError

EMPTY_KEYS = (text_key(""), text_key([{"role": "user", "content": ""}]))  # of prompts
SHOWN = 5  # malformed rows that an error names


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and evaluates on.

    Attributes:
        train, evaluation: comparisons with BATCH_COLUMNS.
        train_sizes, evaluation_sizes: int32 arrays [n] of them: tokens, length, and the number of
            answers (arrays, since lists of millions of numbers are slow).
        mixture: how epochs are drawn from sources with weights; None: all comparisons, once.
        counts: what was read, kept and left out, for training_args.json.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    train_sizes: dict[str, np.ndarray]
    evaluation_sizes: dict[str, np.ndarray]
    mixture: Mixture | None
    counts: dict


def remove_repeats(args: Any, sides: Sides) -> None:
    """Take away what --deduplicate means, and from the evaluation the prompts that train."""
    _remove_duplicates(sides.train, args.deduplicate)
    _remove_leaks(sides)


def choose(args: Any, sides: Sides) -> TrainingData:
    """Join what each side takes after `remove_repeats`, with its counts and weights.

    Raises:
        InputError: too many rows are malformed, or nothing usable is left.
    """
    given = [part for part in sides.evaluation if not part.held_out]
    counts: dict = {
        "train": _count(sides.train, args.max_bad_rows, args.tie_threshold > 0),
        "eval": _count(given, args.max_bad_rows),  # what was held out is counted where it trains
        "duplicates_removed": sum(int(part.removed.sum()) for part in sides.train),
        "leaks_removed": sum(int(part.removed.sum()) for part in sides.evaluation),
    }

    train, evaluation = _join(sides.train), _join(sides.evaluation)
    counts["train_comparisons"], counts["eval_comparisons"] = len(train), len(evaluation)

    if not len(train) or not len(evaluation):
        side = "evaluate" if len(train) else "train"
        raise InputError(
            f"{', '.join(args.data_path)}: no usable comparison is left to {side}: "
            f"{_why_none(args, sides, counts['leaks_removed'])}"
        )

    mixture = _mixture(sides.train)
    distributed.log(f"{len(train):,} comparisons to train, {len(evaluation):,} to evaluate")
    _check_columns(args, sides.train)
    sizes = _sizes(sides.train), _sizes(sides.evaluation)
    return TrainingData(train, evaluation, *sizes, mixture, counts)


def _why_none(args: Any, sides: Sides, leaks: int) -> str:
    """Why a side got no comparison, and what mends it."""
    held_out = [part for part in sides.evaluation if part.held_out]
    keys = np.concatenate([part.keys()[part.taken] for part in (*sides.train, *held_out)])
    prompts = len(np.unique(keys))

    if leaks:
        return (
            f"{leaks:,} were removed from the evaluation because their prompts train too; give "
            "another --eval_data_path, with other prompts"
        )

    if not prompts:
        return "nothing is left to split; give more data, or another --data_split"
    remedy = "give --eval_data_path, or data with more prompts"

    if len(keys) == 1:
        return f"there is one comparison, and both training and evaluation need one; {remedy}"

    if prompts == 1:
        what = "have an empty prompt" if keys[0] in EMPTY_KEYS else "share one prompt"

        return (
            f"all {len(keys):,} comparisons {what}, and a prompt either trains or evaluates; "
            f"{remedy}"
        )
    return (
        f"the {len(keys):,} comparisons have {prompts} prompts, of which --eval_fraction "
        f"{args.eval_fraction:g} holds out {'none' if sides.train[0].taken.any() else 'all'}; "
        f"{remedy}, or another --eval_fraction"
    )


def count_rows(table: datasets.Dataset, ties: bool = False) -> dict:
    """What was read from a source and what was dropped, with the first malformed row named.

    Args:
        table: as `load_source` gives it.
        ties: whether comparisons whose answers are all tied are kept.
    """
    data, usable = table.data, usable_reasons(ties)

    dropped = _count_values(data.column("dropped"))
    for reason in usable:
        del dropped[reason]
    if number := dropped.pop(Reason.MALFORMED, 0):
        dropped[f"{Reason.MALFORMED}, first: {_malformed(table, 1)[0]}"] = number

    kept = is_dropped(table, *usable)
    unrendered = _count_values(data.column("unrendered").filter(kept))
    del unrendered[""]

    names = ("empty_answers", "long_answers", "cut")
    empty, long, cut = (data.column(name).to_numpy()[kept] for name in names)
    left_out = {Reason.EMPTY: int(empty.sum()), Reason.TOO_LONG: int(long.sum())}
    return {
        "comparisons": len(table),
        "kept": int(kept.sum()),
        "dropped": dict(dropped),
        "dropped_answers": {reason: number for reason, number in left_out.items() if number},
        "truncated": int(np.count_nonzero(cut)),
        "unrendered": dict(unrendered),
    }


def _count_values(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value occurs, without an object a row."""
    return Counter({one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()})


def _describe(path: str, count: dict) -> str:
    """One line on what was read from a source and what was dropped."""
    line = f"{path}: {count['comparisons']:,} comparisons, {count['kept']:,} kept"
    for reason, number in count["dropped"].items():
        line += f", {number:,} dropped ({reason})"
    for reason, number in count["dropped_answers"].items():
        line += f", {number:,} answers left out ({reason})"
    if count["truncated"]:
        line += f", {count['truncated']:,} cut to fit"
    for part, number in count["unrendered"].items():
        line += f", {number:,} kept without {part}, {Reason.NOT_RENDERED}"
    return line


def _tell_unrendered(table: datasets.Dataset) -> list[str]:
    """Sentences with an example each on what the chat template does not write."""
    lost = np.flatnonzero(is_dropped(table, Reason.NOT_RENDERED))
    parts = pc.not_equal(table.data.column("unrendered"), "").to_numpy()
    parts = np.flatnonzero(parts & ~is_dropped(table, Reason.NOT_RENDERED))
    cases = (
        (lost, "problem", "rows are dropped, since a part of an answer is"),
        (parts, "unrendered", "rows lack a part of the prompt that is"),
    )
    return [
        f"{len(rows):,} {what} {Reason.NOT_RENDERED}; the first is row {rows[0] + 1}, "
        f"{table[int(rows[0])][column]}: {WRITE_IT}"
        for rows, column, what in cases
        if len(rows)
    ]


def _count(parts: list[Part], max_bad_rows: float, ties: bool = False) -> dict[str, dict]:
    """What was read, kept and dropped of each part; InputError if too much of it is bad."""
    counts = {}
    for part in parts:
        counts[part.label] = count = count_rows(part.table, ties)
        malformed = int(is_dropped(part.table, Reason.MALFORMED).sum())
        if malformed > max_bad_rows * len(part.table):
            raise InputError(
                f"{part.label}: {malformed:,} of {len(part.table):,} rows malformed, "
                f"--max_bad_rows lets {max_bad_rows:g} of them pass: "
                f"{'; '.join(_malformed(part.table, SHOWN))}. Mend or remove them, or give a "
                "higher --max_bad_rows"
            )
        found, unrendered = _describe(part.label, count), _tell_unrendered(part.table)
        if not count["kept"]:
            raise InputError("; ".join([f"no usable comparison in {found}", *unrendered]))
        distributed.log(found, *(f"!! {part.label}: {sentence}" for sentence in unrendered))
    return counts


def _malformed(table: datasets.Dataset, number: int) -> list[str]:
    """The first malformed rows, with what is wrong with each."""
    rows = np.flatnonzero(is_dropped(table, Reason.MALFORMED))[:number]
    return [f"row {row + 1}: {table[int(row)]['problem']}" for row in rows]


def _remove_duplicates(parts: list[Part], mode: str) -> None:
    """Keep the first of equal comparisons (exact) or of each prompt (prompt)."""
    if mode == "off":
        return
    keys = [part.keys() if mode == "prompt" else comparison_keys(part.table.data) for part in parts]
    taken = np.concatenate([part.taken for part in parts])
    first = np.zeros(len(taken), dtype=bool)
    first[taken] = is_first(np.concatenate(keys)[taken])
    ends = np.cumsum([len(part.taken) for part in parts])
    for part, mask in zip(parts, np.split(first, ends[:-1]), strict=True):
        part.remove(~mask)
    removed = int(taken.sum() - first.sum())
    distributed.log(f"{removed:,} comparisons removed as duplicates (--deduplicate {mode})")


def _remove_leaks(sides: Sides) -> None:
    """Take prompts that train away from the evaluation."""
    trained = np.unique(np.concatenate([part.keys()[part.taken] for part in sides.train]))
    for part in sides.evaluation:
        part.remove(np.isin(part.keys(), trained))
        if number := int(part.removed.sum()):
            distributed.log(
                f"{part.label}: {number:,} comparisons removed from the evaluation, their prompts "
                "train too"
            )


def _join(parts: list[Part]) -> datasets.Dataset:
    rows = datasets.concatenate_datasets([part.table for part in parts])
    rows = rows.select(np.flatnonzero(np.concatenate([part.taken for part in parts])))
    return rows.select_columns(BATCH_COLUMNS)


def _sizes(parts: list[Part]) -> dict[str, np.ndarray]:
    columns = {name: [p.table.data.column(name) for p in parts] for name in ("tokens", "length")}
    columns["answers"] = [pc.list_value_length(p.table.data.column("answers")) for p in parts]
    return {
        name: np.concatenate([c.to_numpy()[p.taken] for c, p in zip(values, parts, strict=True)])
        for name, values in columns.items()
    }


def _mixture(parts: list[Part]) -> Mixture | None:
    weights = [part.source.weight for part in parts if part.source.weight is not None]
    if not weights:
        return None
    sizes = [int(part.taken.sum()) for part in parts]
    if 0 in sizes:
        raise InputError(
            f"{parts[sizes.index(0)].label}: nothing of it is left to train, so it has no share; "
            "leave it out, or give another --deduplicate or --eval_fraction"
        )
    mixture = Mixture(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]), weights)
    for part, size, drawn in zip(parts, sizes, mixture.counts, strict=True):
        distributed.log(
            f"{part.label}: an epoch draws {drawn:,} of {size:,} comparisons, "
            f"{drawn / mixture.epoch_size:.1%} of it"
        )
    return mixture


def _check_columns(args: Any, parts: list[Part]) -> None:
    """Say how many comparisons lack what a flag asks for.

    Raises:
        InputError: all of them do.
    """
    wanted = (
        ("--margin", args.margin, "grades", "margin, score_chosen and score_rejected, or scores"),
        ("--label soft", args.label == "soft", "votes", "votes or preference_strength"),
        ("--sample_weights", args.sample_weights, "weight", "weight"),
    )
    number = sum(int(part.taken.sum()) for part in parts)
    for flag, asked, column, names in wanted:
        missing = sum(int(_lacks(part, column).sum()) for part in parts) if asked else 0
        if missing == number:
            raise InputError(
                f"{', '.join(args.data_path)}: no comparison has the column that {flag} needs: "
                f"{names}; add it, or leave {flag} out"
            )
        if missing:
            distributed.log(
                f"{missing:,} of {number:,} training comparisons train as without {flag}: "
                f"they have no {names}"
            )


def _lacks(part: Part, column: str) -> np.ndarray:
    values = part.table.data.column(column)
    is_list = pa.types.is_list(values.type)
    lacks = pc.equal(pc.list_value_length(values), 0) if is_list else pc.is_null(values)
    return lacks.to_numpy() & part.taken
