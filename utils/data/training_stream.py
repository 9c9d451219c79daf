"""Training batches of sources that are read while they train, and of which nothing is stored."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

import numpy as np

from utils import distributed
from utils.data.batching import Batch, Collate
from utils.data.cache import Encoder
from utils.data.sampling import Grouping, TrainingPlan
from utils.data.sources.files import RawRow, Rows
from utils.data.tokenization import MALFORMED, NOT_RENDERED, WRITE_IT, usable_reasons
from utils.settings import InputError

WINDOW = 8192  # rows that are shuffled together
FEWEST = 1000  # rows from which on a share of malformed ones means something


class Progress(Protocol):
    """How far a run is; `position` counts the rows that were read."""

    position: int


@dataclass
class TrainingStream:
    """The micro-batches of this rank, step after step.

    The order of the rows depends on the seed alone: a window takes rows of the sources, by their
    weights if they have some, else one source after the other, and shuffles them; a source that
    ends begins again. Every rank reads and tokenises all rows, and computes its share.

    Args:
        sources: the rows of each source, and what tokenises them.
        weights: of the sources; None: one follows the other.
        group: makes a Grouping of columns of tokenised comparisons.
        collate: makes a batch of tokenised comparisons and weights.
        steps: number of steps until the end.
        seed: of the order.
        progress: is kept up to date with each step; a stream that starts there goes on as this
            one would.
        ties: whether comparisons whose answers are all tied train.
        max_bad_rows: share of the rows that may be malformed.
    """

    sources: Sequence[tuple[Rows, Encoder]]
    weights: Sequence[float] | None
    group: Callable[[dict], Grouping]
    collate: Collate
    steps: int
    seed: int
    progress: Progress
    ties: bool = False
    max_bad_rows: float = 0.001

    def __post_init__(self) -> None:
        self.usable = usable_reasons(self.ties)
        self.counts: Counter[str] = Counter()  # of what became of the rows
        self.unrendered: Counter[str] = Counter()  # parts of prompts, of rows that train
        self.warned: set[str] = set()  # sources of which it was said

    def __iter__(self) -> Iterator[Batch]:
        rows = self._ordered()
        for left in range(self.steps, 0, -1):
            chosen, grouping = self._take(rows)
            if left == 1:
                self._report()
            for micro_batch in TrainingPlan(grouping, distributed.rank(), self.seed, range(1)):
                picked = [chosen[number] for number in micro_batch.rows]
                yield self.collate(picked, micro_batch.weights)

    def _report(self) -> None:
        dropped = [f", {n:,} dropped ({why})" for why, n in self.counts.items() if why]
        lacking = [f", {n:,} without {x}, {NOT_RENDERED}" for x, n in self.unrendered.items() if x]
        said = "".join([*dropped, *lacking])
        distributed.log(f"{self.counts.total():,} rows read from the stream{said}")

    def _take(self, rows: Iterator[tuple[int, RawRow]]) -> tuple[list[dict], Grouping]:
        """The comparisons of the next step."""
        empty = self.group({"tokens": [], "length": []})
        size = empty.batch_size * empty.accumulation * empty.world_size
        chosen: list[dict] = []
        read = 0
        while len(chosen) < size:
            piece = list(islice(rows, size - len(chosen)))
            chosen += self._tokenize(piece)
            read += len(piece)
            if not chosen and read > WINDOW:
                raise InputError(f"no usable comparison in {read:,} rows: {dict(self.counts)}")
        self.progress.position += read
        columns = {name: [row[name] for row in chosen] for name in ("tokens", "length")}
        return chosen, self.group(columns)

    def _tokenize(self, piece: list[tuple[int, RawRow]]) -> list[dict]:
        """Those of the rows that can train."""
        tokenised: list[dict] = []
        for number, (_, encoder) in enumerate(self.sources):
            tokenised += encoder.rows(raw for source, raw in piece if source == number)
        self.counts.update(row["dropped"] for row in tokenised)
        self._warn(tokenised)
        malformed, limit = self.counts[MALFORMED], self.max_bad_rows
        if malformed > limit * max(self.counts.total(), FEWEST):
            problem = next(row["problem"] for row in tokenised if row["dropped"] == MALFORMED)
            raise InputError(
                f"{malformed:,} of {self.counts.total():,} rows read are malformed, --max_bad_rows "
                f"lets {limit:g} of them pass; the last: {problem}"
            )
        usable = [row for row in tokenised if row["dropped"] in self.usable]
        self.unrendered.update(row["unrendered"] for row in usable)
        return usable

    def _warn(self, tokenised: list[dict]) -> None:
        """Say once of each source what the chat template does not write."""
        for row in tokenised:
            part = row["unrendered"] or (row["dropped"] == NOT_RENDERED and row["problem"])
            if part and row["source"] not in self.warned:
                self.warned.add(row["source"])
                distributed.log(
                    f"!! {row['source']}: a part of a row is {NOT_RENDERED}, {part}: {WRITE_IT}"
                )

    def _ordered(self) -> Iterator[tuple[int, RawRow]]:
        """The number of its source and the row, from `progress.position` on, without end."""
        numbered = [(number, rows) for number, (rows, _) in enumerate(self.sources)]
        streams = [_endless([one]) for one in numbered] if self.weights else [_endless(numbered)]
        shares = np.array(self.weights or [1.0])
        shares = shares / shares.sum()

        def draw(window: int) -> tuple[np.ndarray, np.ndarray]:
            """Which stream each row of a window comes from, and the shuffle."""
            random = np.random.default_rng([self.seed, window])
            return random.choice(len(shares), WINDOW, p=shares), random.permutation(WINDOW)

        first, offset = divmod(self.progress.position, WINDOW)
        for window in range(first):
            passed = np.bincount(draw(window)[0], minlength=len(streams))
            for stream, number in zip(streams, passed, strict=True):
                deque(islice(stream, int(number)), maxlen=0)
        for window in count(first):
            chosen, order = draw(window)
            rows = [next(streams[number]) for number in chosen]
            yield from (rows[place] for place in order[offset:])
            offset = 0


def _endless(sources: Sequence[tuple[int, Rows]]) -> Iterator[tuple[int, RawRow]]:
    """All rows of some sources, each with the number of its source, again and again."""
    while True:
        for number, rows in sources:
            yield from ((number, row) for row in rows)
