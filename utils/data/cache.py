"""Sources are opened, and tokenised once: into Arrow files that all ranks and runs map."""

import gc
import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import datasets
import filelock
import pyarrow as pa

from utils import distributed
from utils.data.comparison import Comparison
from utils.data.formats import reading
from utils.data.sources.files import RawRow, Rows, open_splits, parse_row, train_and_test
from utils.data.sources.names import Source, parse_sources
from utils.data.token_rows import SCHEMA, Reason, empty_row
from utils.data.tokenization import ComparisonTokenizer
from utils.output.files import check_folder, why_not_written
from utils.settings import InputError

# A piece of work ends at whichever comes first, so that memory is bounded for rows of any size.
CHUNK_ROWS = 1000
CHUNK_BYTES = 8 * 2**20
CACHE_FLAG = "--data_output_path"
# A part of every key: a change of the code that gives the same rows other tokens raises it
# (test_cache.py notices).
FORMAT = 2


class SplitTokenizer:
    """Tokenises the rows of a split as they stand on disk.

    Attributes:
        split: its rows.
        source: where they come from.
        note: a sentence about the columns that are read and those that are not.

    Args:
        split, source: as above; the columns tell the layout, if the source does not.
        encoder: makes token ids of comparisons.

    Raises:
        InputError: the columns are those of no layout, or some that it needs is not read.
    """

    def __init__(self, split: Rows, source: Source, encoder: ComparisonTokenizer):
        self.split, self.source, self.encoder = split, source, encoder
        self.reader, self.note = reading.plan_reading(
            split,
            split.path,
            source.columns,
            source.format,
            chat=encoder.settings.apply_chat_template,
        )

    def rows(self, raw_rows: Iterable[RawRow]) -> list[dict]:
        """The columns of SCHEMA but `index` for each row.

        A row of which no comparison can be made is `malformed`, and `problem` says why.
        """
        read = [self._read(raw) for raw in raw_rows]
        good = iter(self.encoder.rows([r for r in read if isinstance(r, Comparison)]))
        name = self.source.name
        return [
            next(good) if isinstance(r, Comparison) else empty_row(name, Reason.MALFORMED, r)
            for r in read
        ]

    def table(self, first: int, raw_rows: Iterable[RawRow]) -> pa.RecordBatch:
        """The same as a table with all columns, for rows that follow each other from `first` on."""
        gc.disable()  # it would walk all lists again and again, and none of them has a cycle
        try:
            rows = self.rows(raw_rows)
            for number, row in enumerate(rows, first):
                row["index"] = number
            return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        finally:
            gc.enable()

    def _read(self, raw: RawRow) -> Comparison | str:
        """A comparison, or what is wrong with the row."""
        try:
            return self.reader(parse_row(raw), self.source.name)
        except ValueError as error:
            return str(error).encode(errors="backslashreplace").decode()[:500]


class SourceSplits(NamedTuple):
    """What tokenises a source: its rows to train, and those of a test split if it has one."""

    train: SplitTokenizer
    test: SplitTokenizer | None


def open_paths(
    words: Sequence[str],
    flag: str,
    encoder: ComparisonTokenizer,
    layout: str | None = None,
    columns: Sequence[str] | None = None,
) -> list[SourceSplits]:
    """What tokenises each source.

    Says once of each source which of its columns are read; nothing is tokenised yet.

    Args:
        words, flag, layout, columns: as `parse_sources` takes them.
        encoder: makes token ids of comparisons.

    Raises:
        InputError: a source cannot be read, or its columns are not understood.
    """
    opened = []
    for source in parse_sources(words, flag, layout, columns):
        opened.append(open_source_splits(source, encoder))
        distributed.log(*dict.fromkeys(split.note for split in opened[-1] if split))
    return opened


def open_source_splits(source: Source, encoder: ComparisonTokenizer) -> SourceSplits:
    """What tokenises a source; a validation split counts as one to test.

    The first process of each node fetches what is not on its disk; InputError as `open_paths`.
    """
    with distributed.first_on_node():
        texts = source.columns.texts() if source.columns else ()
        splits = open_splits(source.path, source.subset, source.revision, texts)
        train, test = train_and_test(splits, source.place, source.split)
        return SourceSplits(
            SplitTokenizer(train, source, encoder),
            None if test is None else SplitTokenizer(test, source, encoder),
        )


def tokenize(
    tokenizer: SplitTokenizer, folder: str | None = None, num_workers: int = 1
) -> datasets.Dataset:
    """Tokenise all rows of a split, or map what an earlier run has tokenised.

    The first process of each node does the work. The file's key covers the content of the data,
    the tokenizer with its template, the settings, the layout, the new names of columns, the
    source's name, FORMAT and the versions of the libraries. A file is put in place when it is
    complete; what a killed run left is written anew.

    Args:
        tokenizer: of the split.
        folder: where the file is; None takes a folder in the cache of datasets.
        num_workers: processes that tokenise.

    Returns:
        A row for each row of the split, with the columns of SCHEMA; also for those that cannot
        train, of which `dropped` says why.

    Raises:
        InputError: a file cannot be read, or the folder cannot be written to.
    """
    cache = Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "tokenized")
    name = re.sub(r"[^\w.-]", "_", tokenizer.source.name)[-60:]

    with distributed.first_on_node():
        file = cache / f"{name}-{_key(tokenizer)}.arrow"
        if not file.exists():
            check_folder(cache, CACHE_FLAG)
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(f"{file}.lock"):
                    if not file.exists():  # nor did another run write it while this one waited
                        _write(file, _tokenize_all(tokenizer, num_workers))
            except OSError as error:  # of a row that cannot be read there is an InputError
                reason = why_not_written(error, cache)
                raise InputError(f"{CACHE_FLAG} {cache}: {reason}") from error

    return datasets.Dataset.from_file(str(file))


def load_source(
    source: Source,
    encoder: ComparisonTokenizer,
    folder: str | None = None,
    num_workers: int = 1,
) -> list[datasets.Dataset]:
    """`open_source_splits` and `tokenize` in one: rows to train, and to test if there are such."""
    splits = open_source_splits(source, encoder)
    return [tokenize(split, folder, num_workers) for split in splits if split]


def _write(file: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Put a file in place when it is complete."""
    partial = file.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as out, pa.ipc.new_stream(out, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    os.replace(partial, file)


def _tokenize_all(tokenizer: SplitTokenizer, num_workers: int) -> Iterator[pa.RecordBatch]:
    """Pieces of the table in their order; a few thousand rows are held at once."""
    batches = (
        starmap(tokenizer.table, _chunks(tokenizer.split))
        if num_workers == 1
        else _tokenize_in_processes(tokenizer, num_workers)
    )

    title = f"Tokenising {tokenizer.source.name}"
    with distributed.progress(desc=title, unit=" rows", leave=False) as bar:
        for batch in batches:
            bar.update(len(batch))
            yield batch


def _tokenize_in_processes(tokenizer: SplitTokenizer, num_workers: int) -> Iterator[pa.RecordBatch]:
    context = multiprocessing.get_context("fork")  # a tokenizer is slow to send
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes, not threads
    waiting: deque[Future[pa.RecordBatch]] = deque()

    with ProcessPoolExecutor(num_workers, context, _set_tokenizer, (tokenizer,)) as pool:
        try:
            for chunk in _chunks(tokenizer.split):
                waiting.append(pool.submit(_tokenize_chunk, *chunk))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that tokenises was killed, as happens when memory is short: give fewer "
                "--num_workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_tokenizer: SplitTokenizer  # of a process that tokenises


def _set_tokenizer(tokenizer: SplitTokenizer) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    global _tokenizer
    _tokenizer = tokenizer


def _tokenize_chunk(first: int, rows: list[RawRow]) -> pa.RecordBatch:
    return _tokenizer.table(first, rows)


def _chunks(rows: Iterable[RawRow]) -> Iterator[tuple[int, list[RawRow]]]:
    """Rows that are worked on together, with the number of the first."""
    chunk, size, first = [], 0, 0
    for row in rows:
        chunk.append(row)
        size += len(row) if isinstance(row, bytes) else 0
        if len(chunk) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield first, chunk
            first += len(chunk)
            chunk, size = [], 0
    if chunk:
        yield first, chunk


def _key(tokenizer: SplitTokenizer) -> str:
    encoder, source = tokenizer.encoder, tokenizer.source
    content = (
        str(FORMAT),
        tokenizer.split.fingerprint(),
        encoder.tokenizer.backend_tokenizer.to_str(),
        str(encoder.tokenizer.chat_template),
        str(encoder.tokenizer.special_tokens_map),
        json.dumps(asdict(encoder.settings)),
        *(source.name, str(source.format), str(source.columns)),
        *(version(name) for name in ("transformers", "tokenizers")),
    )
    return hashlib.blake2b("\0".join(content).encode(), digest_size=16).hexdigest()
