"""The two sides of a run, what trains and what evaluates, with all rows of all sources."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils import distributed
from utils.data import cache
from utils.data.sources import files
from utils.data.sources.names import Source, parse_sources
from utils.data.token_rows import Reason
from utils.data.tokenization import ComparisonTokenizer, usable_reasons


@dataclass(eq=False)  # a part equals itself alone
class Part:
    """The rows of a split on one side.

    Attributes:
        source: where they come from.
        label: its place, and which split.
        table: all rows of the split, tokenised (cache.py).
        taken: bool [n], the rows that this side uses.
        held_out: whether the table is that of a part that trains, which gave these rows away.
        removed: bool [n], the rows that it would use, were they no duplicates and no leaks.
    """

    source: Source
    label: str
    table: datasets.Dataset
    taken: np.ndarray
    held_out: bool = False
    removed: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.removed = np.zeros(len(self.table), dtype=bool)

    def remove(self, rows: np.ndarray) -> None:
        """Use these rows no longer: bool [n]."""
        self.removed |= self.taken & rows
        self.taken = self.taken & ~rows

    def keys(self) -> np.ndarray:
        """Hashes of the prompts of all rows, int64 [n]."""
        return self.table.data.column("prompt_key").to_numpy()

    def take(self, rows: np.ndarray) -> None:
        """Use only these rows: int64 [n], counted from 0."""
        self.taken = np.zeros(len(self.table), dtype=bool)
        self.taken[rows] = True


class Opened(NamedTuple):
    """A source whose columns are understood; nothing of it is tokenised yet.

    Attributes:
        source: what it is.
        splits: the rows to train with what tokenises them, and those of a test or validation split
            if there is one.
    """

    source: Source
    splits: list[tuple[files.Rows, cache.Encoder]]


@dataclass
class Sides:
    """All rows of all sources, by what they are for.

    Attributes:
        train: parts that train.
        evaluation: parts that evaluate.
    """

    train: list[Part]
    evaluation: list[Part]


def load_sides(args: Any, encoder: ComparisonTokenizer) -> Sides:
    """Tokenise all sources and give their rows to the sides; nothing is left out but by the split.

    Without an evaluation set, prompts are held out from the sources that have no test split.

    Raises:
        InputError: a source cannot be read.
    """
    train, evaluation, without_test = [], [], []
    opened = open_sources(args, "--data_path", encoder)
    given = open_sources(args, "--eval_data_path", encoder) if args.eval_data_path else []

    for one in opened:
        source = one.source

        rows, test = _tokenize(one, args.data_output_path, args.num_workers)
        part = _part(source, source.place, rows, args.tie_threshold > 0)

        if args.data_split:
            taken = np.flatnonzero(part.taken)
            part.take(taken[split_by_prompt(part.keys()[taken], args.data_split, args.seed)[1]])
            kept = f"{part.taken.sum():,} of {len(taken):,} comparisons"
            shares = ",".join(f"{share:g}" for share in args.data_split)
            distributed.log(f"{source.place}: --data_split {shares} leaves {kept} to this step")

        _cap(part)
        train.append(part)

        if test is None:
            without_test.append(part)
        else:
            evaluation.append(_part(source, f"{source.place} (test)", test))

    if given:
        evaluation = load_evaluation(args, given)
    elif without_test:
        evaluation += _hold_out(train, without_test, args.eval_fraction)
    return Sides(train, evaluation)


def load_evaluation(args: Any, opened: list[Opened]) -> list[Part]:
    """The parts of the sources that --eval_data_path names."""
    parts = []
    for one in opened:
        source = one.source
        rows, test = _tokenize(one, args.data_output_path, args.num_workers)
        part = _part(source, source.place, rows if test is None else test)
        _cap(part)
        parts.append(part)
    return parts


def open_sources(args: Any, flag: str, encoder: ComparisonTokenizer) -> list[Opened]:
    """Open what a flag names, and say once of each source which of its columns are read.

    Args:
        args: of main.py.
        flag: --data_path or --eval_data_path.
        encoder: makes token ids of comparisons.

    Raises:
        InputError: a source cannot be read, or its columns are not understood.
    """
    words = getattr(args, flag.removeprefix("--"))
    opened = []
    for source in parse_sources(words, flag, args.format, args.columns):
        with distributed.first_on_node():
            opened.append(_open(source, encoder))
        distributed.log(*dict.fromkeys(e.note for _, e in opened[-1].splits))
    return opened


def load_source(
    source: Source,
    encoder: ComparisonTokenizer,
    cache_dir: str | None = None,
    num_workers: int = 1,
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Read and tokenise one file, folder or hub data set, or map what was tokenised before.

    The first process of each node does the work.

    Args:
        source: what to read.
        encoder: makes token ids of comparisons.
        cache_dir: where tokenised rows are kept (cache.tokenize).
        num_workers: processes that tokenise.

    Returns:
        All rows to train, and those of a test or validation split if there is one; also those that
        cannot train: `dropped` says why.
    """
    with distributed.first_on_node():
        opened = _open(source, encoder)
    return _tokenize(opened, cache_dir, num_workers)


def _open(source: Source, encoder: ComparisonTokenizer) -> Opened:
    texts = source.columns.texts() if source.columns else ()
    place = source.path, source.subset, source.revision
    splits = files.open_splits(*place, texts=texts)
    both = files.train_and_test(splits, source.place, source.split)
    options = (encoder, source.name, source.format, source.columns)
    return Opened(source, [(rows, cache.Encoder(rows, *options)) for rows in both if rows])


def _tokenize(
    opened: Opened, cache_dir: str | None, num_workers: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    with distributed.first_on_node():
        tables = [cache.tokenize(*split, cache_dir, num_workers) for split in opened.splits]
    return tables[0], tables[1] if len(tables) > 1 else None


def is_dropped(table: datasets.Dataset, *reasons: str) -> np.ndarray:
    """Which rows have one of these reasons in the column `dropped`, "" if they can train: bool."""
    return pc.is_in(table.data.column("dropped"), pa.array(reasons)).to_numpy()


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


def _part(source: Source, label: str, table: datasets.Dataset, ties: bool = False) -> Part:
    return Part(source, label, table, is_dropped(table, *usable_reasons(ties)))


def _hold_out(train: list[Part], candidates: list[Part], fraction: float) -> list[Part]:
    """Take a share of the candidates' prompts away from all that trains; they evaluate."""
    keys = np.concatenate([part.keys()[part.taken] for part in candidates])
    # The same prompts whatever the seed is, so that runs can be compared.
    _, rows = split_by_prompt(keys, [1 - fraction, fraction], seed=0)
    held_out = np.unique(keys[rows])
    parts = []
    for part in train:
        is_held_out = np.isin(part.keys(), held_out)
        if part in candidates:
            is_tied = is_dropped(part.table, Reason.TIED)  # ties only train
            taken = part.taken & is_held_out & ~is_tied
            parts.append(Part(part.source, f"{part.label} (held out)", part.table, taken, True))
        part.taken &= ~is_held_out
    return parts


def _cap(part: Part) -> None:
    if part.source.cap is not None:
        mixed = np.random.default_rng(0).permutation(np.flatnonzero(part.taken))
        part.take(mixed[: part.source.cap])
