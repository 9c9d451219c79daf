"""Which rows train, which evaluate, and why each other one is left out.

A row that shows by itself that it cannot be used (malformed, empty, too long, tied, ...) says so in
its column `dropped`, which `ComparisonTokenizer.rows` in tokenization.py fills. What shows only
among all rows (duplicates, leaks, what is held out, ...) is found here, by `choose_rows`. `Reason`
in token_rows.py lists both, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from utils import distributed
from utils.data.batch import LossInputs
from utils.data.cache import SplitTokenizer, open_paths, tokenize
from utils.data.keys import comparison_keys, is_first
from utils.data.sampling import Mixture
from utils.data.settings import TrainingDataSettings
from utils.data.token_rows import BATCH_COLUMNS, UNUSABLE, Reason
from utils.data.tokenization import WRITE_IT, ComparisonTokenizer, text_key
from utils.settings import InputError

EMPTY_KEYS = (text_key(""), text_key([{"role": "user", "content": ""}]))  # of prompts
MALFORMED_NAMED = 5  # malformed rows that an error names


@dataclass(eq=False)  # a split equals itself alone
class Split:
    """All rows of a split, tokenised, and why some of them are not used.

    Attributes:
        label: its place, and which split it is.
        table: token rows (cache.py).
        trains: whether its rows are there to train; else they evaluate.
        ties: whether comparisons whose answers are all tied are used.
        weight: share of what an epoch draws; None: no mixing.
        reason: categorical [n], the Reason why a row is not used for what the split is there for,
            "" if it is. What is HELD_OUT of a split that trains, evaluates.
    """

    label: str
    table: datasets.Dataset
    trains: bool
    ties: bool = False
    weight: float | None = None
    reason: pd.Categorical = field(init=False)

    def __post_init__(self) -> None:
        reasons = ["", *Reason]
        codes = pc.index_in(self.table.data.column("dropped"), pa.array(reasons)).to_numpy()
        self.reason = pd.Categorical.from_codes(codes, reasons)
        if self.ties:
            self.reason[self.reason == Reason.TIED] = ""

    @property
    def used(self) -> np.ndarray:
        """Which rows are used for what the split is there for: bool [n]."""
        return self.reason == ""

    @property
    def held_out(self) -> np.ndarray:
        """Which rows of a split that trains evaluate: bool [n]."""
        return self.reason == Reason.HELD_OUT

    @property
    def usable(self) -> np.ndarray:
        """Which rows could be used for it, by what stands in them: bool [n]."""
        return ~self.reason.isin(UNUSABLE)

    @property
    def prompt_keys(self) -> np.ndarray:
        """Hashes of the prompts of all rows: int64 [n]."""
        return self.table.data.column("prompt_key").to_numpy()

    def leave_out(self, rows: np.ndarray, reason: Reason) -> None:
        """Give these rows, bool [n], a reason, but for those that have one."""
        self.reason[rows & self.used] = reason

    def keep_only(self, numbers: np.ndarray, reason: Reason) -> None:
        """Leave out all rows but those of these numbers, int64."""
        others = np.ones(len(self.table), dtype=bool)
        others[numbers] = False
        self.leave_out(others, reason)


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


def choose_rows(
    settings: TrainingDataSettings, encoder: ComparisonTokenizer, inputs: LossInputs, seed: int
) -> list[Split]:
    """All rows of all sources, with the reason why each does not train or evaluate, if it does not.

    Where no evaluation set is given, the test splits of the sources evaluate, and prompts that are
    held out from sources without one. Nothing is tokenised before the columns of all sources are
    known.

    Args:
        settings: what is read, and what is left out of it.
        encoder: makes token ids of comparisons.
        inputs: what the loss needs: whether ties train.
        seed: of the shuffle behind --data_split.

    Returns:
        The splits that train, then those that evaluate.

    Raises:
        InputError: a source cannot be read.
    """
    how = encoder, settings.format, settings.columns
    sources = open_paths(settings.data_path, "--data_path", *how)
    given = open_paths(settings.eval_data_path or [], "--eval_data_path", *how)

    # In the order of Reason: a row keeps the first reason that it gets.
    train, evaluation, without_test = [], [], []
    for opened in sources:
        split = _load(opened.train, settings, trains=True, ties=inputs.ties)
        if settings.data_split:
            _keep_share(split, settings.data_split, seed)
        _keep_cap(split, opened.train.source.cap)
        train.append(split)

        if opened.test is None:
            without_test.append(split)
        elif not given:
            evaluation.append(_load(opened.test, settings, kind=" (test)"))

    for opened in given:  # of a folder its test split, if it has one
        rows = opened.test or opened.train
        split = _load(rows, settings)
        _keep_cap(split, rows.source.cap)
        evaluation.append(split)

    if without_test and not given:
        _hold_out(train, without_test, settings.eval_fraction)
    remove_duplicates(train, settings.deduplicate)
    remove_leaks(train, evaluation)
    return train + evaluation


def remove_duplicates(train: Sequence[Split], mode: str) -> None:
    """Keep the first of equal comparisons (exact) or of each prompt (prompt)."""
    if mode == "off":
        return
    by_prompt = mode == "prompt"
    keys = [s.prompt_keys if by_prompt else comparison_keys(s.table.data) for s in train]

    used = np.concatenate([split.used for split in train])
    first = np.zeros(len(used), dtype=bool)
    first[used] = is_first(np.concatenate(keys)[used])

    ends = np.cumsum([len(split.table) for split in train])
    for split, is_kept in zip(train, np.split(first, ends[:-1]), strict=True):
        split.leave_out(~is_kept, Reason.REPEATED_PROMPT if by_prompt else Reason.DUPLICATE)
    removed = int(used.sum() - first.sum())
    distributed.log(f"{removed:,} comparisons removed as duplicates (--deduplicate {mode})")


def remove_leaks(train: Sequence[Split], evaluation: Sequence[Split]) -> None:
    """Take prompts that train away from the evaluation."""
    trained = np.unique(np.concatenate([split.prompt_keys[split.used] for split in train]))
    for split in evaluation:
        split.leave_out(np.isin(split.prompt_keys, trained), Reason.LEAK)
        if number := _count_reasons([split], Reason.LEAK):
            distributed.log(
                f"{split.label}: {number:,} comparisons removed from the evaluation, their prompts "
                "train too"
            )


def used_rows(splits: Sequence[Split], *, train: bool) -> list[tuple[Split, np.ndarray]]:
    """The splits of which some rows train, or evaluate, and which of their rows do: bool [n]."""
    found = [(split, split.used) for split in splits if split.trains == train]
    if not train:
        found += [(split, split.held_out) for split in splits if split.trains]
    return [(split, rows) for split, rows in found if rows.any()]


def join_rows(
    settings: TrainingDataSettings, splits: Sequence[Split], inputs: LossInputs
) -> TrainingData:
    """What trains and what evaluates, each in one table, with its counts and weights.

    Args:
        settings, inputs: as of `choose_rows`.
        splits: as it gives them.

    Raises:
        InputError: too many rows are malformed, nothing usable is left, or no row has a column
            that the loss needs.
    """
    for_training = [split for split in splits if split.trains]
    others = [split for split in splits if not split.trains]

    counts: dict = {
        "train": _count_splits(for_training, settings.max_bad_rows),
        "eval": _count_splits(others, settings.max_bad_rows),
        "duplicates_removed": _count_reasons(splits, Reason.DUPLICATE, Reason.REPEATED_PROMPT),
        "leaks_removed": _count_reasons(splits, Reason.LEAK),
    }

    train, evaluation = used_rows(splits, train=True), used_rows(splits, train=False)
    if not train or not evaluation:
        raise InputError(
            f"{', '.join(settings.data_path)}: no usable comparison is left to "
            f"{'evaluate' if train else 'train'}: "
            f"{_why_none(settings, for_training, counts['leaks_removed'])}"
        )

    mixture = _mixture(for_training)
    joined = _join_used(train), _join_used(evaluation)
    counts["train_comparisons"], counts["eval_comparisons"] = map(len, joined)
    distributed.log(
        f"{len(joined[0]):,} comparisons to train, {len(joined[1]):,} to evaluate",
    )
    _check_columns(settings.data_path, train, inputs)
    return TrainingData(*joined, _sizes(train), _sizes(evaluation), mixture, counts)


def split_by_prompt(
    prompt_keys: np.ndarray, shares: Sequence[float], seed: int
) -> list[np.ndarray]:
    """Split rows by prompt: all rows of a prompt fall into one share.

    Args:
        prompt_keys: int64 [n], equal for equal prompts.
        shares: relative sizes, counted in prompts.
        seed: of the shuffle.

    Returns:
        The row numbers of each share, ascending.
    """
    prompts, row_prompt = np.unique(prompt_keys, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(prompts))
    ends = np.round(np.cumsum(shares) / np.sum(shares) * len(prompts))
    share_of_row = np.searchsorted(ends, place[row_prompt], side="right")
    return [np.flatnonzero(share_of_row == share) for share in range(len(shares))]


def count_rows(split: Split) -> dict:
    """What was read from a split and what cannot be used, with the first malformed row named."""
    dropped = {str(reason): _count_reasons([split], reason) for reason in UNUSABLE}
    if number := dropped.pop(Reason.MALFORMED):
        dropped[f"{Reason.MALFORMED}, first: {_malformed(split, 1)[0]}"] = number

    data, usable = split.table.data, split.usable
    unrendered = data.column("unrendered").filter(usable).value_counts().to_pylist()
    names = ("empty_answers", "long_answers", "cut")
    empty, long, cut = (data.column(name).to_numpy()[usable] for name in names)
    left_out = {Reason.EMPTY: int(empty.sum()), Reason.TOO_LONG: int(long.sum())}

    return {
        "comparisons": len(usable),
        "kept": int(usable.sum()),
        "dropped": {reason: number for reason, number in dropped.items() if number},
        "dropped_answers": {reason: number for reason, number in left_out.items() if number},
        "truncated": int(np.count_nonzero(cut)),
        "unrendered": {one["values"]: one["counts"] for one in unrendered if one["values"]},
    }


def _load(
    rows: SplitTokenizer,
    settings: TrainingDataSettings,
    *,
    kind: str = "",
    trains: bool = False,
    ties: bool = False,
) -> Split:
    table = tokenize(rows, settings.data_output_path, settings.num_workers)
    source = rows.source
    return Split(f"{source.place}{kind}", table, trains, ties, source.weight)


def _keep_share(split: Split, shares: Sequence[float], seed: int) -> None:
    """Keep the second share of the prompts, as --data_split says."""
    rows = np.flatnonzero(split.used)
    kept = rows[split_by_prompt(split.prompt_keys[rows], shares, seed)[1]]
    split.keep_only(kept, Reason.OTHER_STEP)

    words = ",".join(f"{share:g}" for share in shares)
    number = f"{len(kept):,} of {len(rows):,} comparisons"
    distributed.log(f"{split.label}: --data_split {words} leaves {number} to this step")


def _keep_cap(split: Split, cap: int | None) -> None:
    if cap is not None:
        mixed = np.random.default_rng(0).permutation(np.flatnonzero(split.used))
        split.keep_only(mixed[:cap], Reason.BEYOND_CAP)


def _hold_out(train: Sequence[Split], candidates: Sequence[Split], fraction: float) -> None:
    """Take a share of the candidates' prompts away from all that trains; they evaluate."""
    keys = np.concatenate([split.prompt_keys[split.used] for split in candidates])
    # The same prompts whatever the seed is, so that runs can be compared.
    _, rows = split_by_prompt(keys, [1 - fraction, fraction], seed=0)
    held_out = np.unique(keys[rows])

    for split in train:
        is_held_out = np.isin(split.prompt_keys, held_out)
        if split in candidates:
            tied = pc.equal(split.table.data.column("dropped"), Reason.TIED).to_numpy()
            split.leave_out(is_held_out & ~tied, Reason.HELD_OUT)  # ties only train
        split.leave_out(is_held_out, Reason.PROMPT_HELD_OUT)


def _count_reasons(splits: Sequence[Split], *reasons: Reason) -> int:
    """Rows that are not used for one of these reasons."""
    return sum(int(split.reason.isin(reasons).sum()) for split in splits)


def _why_none(settings: TrainingDataSettings, train: Sequence[Split], leaks: int) -> str:
    """Why nothing is left to train or to evaluate, and what mends it."""
    if leaks:
        return (
            f"{leaks:,} were removed from the evaluation because their prompts train too; give "
            "another --eval_data_path, with other prompts"
        )

    is_used = [split.used | split.held_out for split in train]
    keys = np.concatenate([s.prompt_keys[used] for s, used in zip(train, is_used, strict=True)])
    prompts = len(np.unique(keys))
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
        f"{settings.eval_fraction:g} holds out {'none' if train[0].used.any() else 'all'}; "
        f"{remedy}, or another --eval_fraction"
    )


def _describe(label: str, count: dict) -> str:
    """One line on what was read from a split and what cannot be used."""
    line = f"{label}: {count['comparisons']:,} comparisons, {count['kept']:,} kept"
    for reason, number in count["dropped"].items():
        line += f", {number:,} dropped ({reason})"
    for reason, number in count["dropped_answers"].items():
        line += f", {number:,} answers left out ({reason})"
    if count["truncated"]:
        line += f", {count['truncated']:,} cut to fit"
    for part, number in count["unrendered"].items():
        line += f", {number:,} kept without {part}, {Reason.NOT_RENDERED}"
    return line


def _tell_unrendered(split: Split) -> list[str]:
    """Sentences with an example each on what the chat template does not write."""
    lost = split.reason == Reason.NOT_RENDERED
    parts = pc.not_equal(split.table.data.column("unrendered"), "").to_numpy() & ~lost
    cases = (
        (lost, "problem", "rows are dropped, since a part of an answer is"),
        (parts, "unrendered", "rows lack a part of the prompt that is"),
    )
    return [
        f"{rows.sum():,} {what} {Reason.NOT_RENDERED}; the first is row {rows.argmax() + 1}, "
        f"{split.table[int(rows.argmax())][column]}: {WRITE_IT}"
        for rows, column, what in cases
        if rows.any()
    ]


def _count_splits(splits: Sequence[Split], max_bad_rows: float) -> dict[str, dict]:
    """What was read, kept and dropped of each split; InputError if too much of it is bad."""
    counts = {}
    for split in splits:
        counts[split.label] = count = count_rows(split)
        malformed, number = _count_reasons([split], Reason.MALFORMED), count["comparisons"]
        if malformed > max_bad_rows * number:
            raise InputError(
                f"{split.label}: {malformed:,} of {number:,} rows malformed, --max_bad_rows lets "
                f"{max_bad_rows:g} of them pass: {'; '.join(_malformed(split, MALFORMED_NAMED))}. "
                "Mend or remove them, or give a higher --max_bad_rows"
            )

        found, unrendered = _describe(split.label, count), _tell_unrendered(split)
        if not count["kept"]:
            raise InputError("; ".join([f"no usable comparison in {found}", *unrendered]))
        distributed.log(found, *(f"!! {split.label}: {sentence}" for sentence in unrendered))
    return counts


def _malformed(split: Split, number: int) -> list[str]:
    """The first malformed rows, with what is wrong with each."""
    rows = np.flatnonzero(split.reason == Reason.MALFORMED)[:number]
    return [f"row {row + 1}: {split.table[int(row)]['problem']}" for row in rows]


def _join_used(used: Sequence[tuple[Split, np.ndarray]]) -> datasets.Dataset:
    rows = datasets.concatenate_datasets([split.table for split, _ in used])
    rows = rows.select(np.flatnonzero(np.concatenate([rows for _, rows in used])))
    return rows.select_columns(BATCH_COLUMNS)


def _sizes(used: Sequence[tuple[Split, np.ndarray]]) -> dict[str, np.ndarray]:
    def column(split: Split, name: str) -> np.ndarray:
        values = split.table.data.column(name)
        return (pc.list_value_length(values) if name == "answers" else values).to_numpy()

    names = ("tokens", "length", "answers")
    return {name: np.concatenate([column(s, name)[rows] for s, rows in used]) for name in names}


def _mixture(train: Sequence[Split]) -> Mixture | None:
    weights = [split.weight for split in train if split.weight is not None]
    if not weights:
        return None

    sizes = [int(split.used.sum()) for split in train]
    if 0 in sizes:
        raise InputError(
            f"{train[sizes.index(0)].label}: nothing of it is left to train, so it has no share; "
            "leave it out, or give another --deduplicate or --eval_fraction"
        )

    mixture = Mixture(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]), weights)
    for split, size, drawn in zip(train, sizes, mixture.counts, strict=True):
        distributed.log(
            f"{split.label}: an epoch draws {drawn:,} of {size:,} comparisons, "
            f"{drawn / mixture.epoch_size:.1%} of it"
        )
    return mixture


def _check_columns(
    paths: Sequence[str], train: Sequence[tuple[Split, np.ndarray]], inputs: LossInputs
) -> None:
    """Say how many comparisons lack what a flag asks for.

    Raises:
        InputError: all of them do.
    """
    wanted = (
        (
            "--margin",
            inputs.margins,
            "grades",
            "margin, score_chosen and score_rejected, or scores",
        ),
        ("--label soft", inputs.votes, "votes", "votes or preference_strength"),
        ("--sample_weights", inputs.sample_weights, "weight", "weight"),
    )
    number = sum(int(rows.sum()) for _, rows in train)

    for flag, asked, column, names in wanted:
        missing = sum(int((_lacks(s, column) & rows).sum()) for s, rows in train) if asked else 0
        if missing == number:
            raise InputError(
                f"{', '.join(paths)}: no comparison has the column that {flag} needs: "
                f"{names}; add it, or leave {flag} out"
            )
        if missing:
            distributed.log(
                f"{missing:,} of {number:,} training comparisons train as without {flag}: "
                f"they have no {names}"
            )


def _lacks(split: Split, column: str) -> np.ndarray:
    values = split.table.data.column(column)
    is_list = pa.types.is_list(values.type)
    lacks = pc.equal(pc.list_value_length(values), 0) if is_list else pc.is_null(values)
    return lacks.to_numpy()
