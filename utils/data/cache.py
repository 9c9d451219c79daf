"""Tokenised rows in an Arrow file without padding: written once, mapped by all ranks and runs."""

import gc
import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.metadata import version
from itertools import starmap
from pathlib import Path

import datasets
import filelock
import pyarrow as pa

from utils import distributed
from utils.data.comparison import Comparison
from utils.data.formats import reading
from utils.data.formats.columns import ColumnMap
from utils.data.sources.files import RawRow, Rows, parse_row
from utils.data.token_rows import SCHEMA, Reason, empty_row
from utils.data.tokenization import ComparisonTokenizer
from utils.output.files import check_folder, why_not_written
from utils.settings import InputError

# A piece of work ends at whichever comes first, so that memory is bounded for rows of any size.
CHUNK_ROWS = 1000
CHUNK_BYTES = 8 * 2**20
CACHE_FLAG = "--data_output_path"
# A part of every key: a change of the code that gives the same rows other tokens raises it.
FORMAT = 1


class Encoder:
    """Tokenises the rows of a split as they stand on disk.

    Attributes:
        note: a sentence about the columns that are read and those that are not.

    Args:
        rows: of the split; their columns tell the layout.
        tokenizer: makes token ids of comparisons.
        source: name of rows that name no source.
        layout: name of the layout (layouts.py); None: found by the columns.
        columns: new names of columns; None: as they are.

    Raises:
        InputError: the columns are those of no layout, or some that it needs is not read.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: ComparisonTokenizer,
        source: str,
        layout: str | None = None,
        columns: ColumnMap | None = None,
    ):
        self.tokenizer, self.source = tokenizer, source
        chat = tokenizer.settings.apply_chat_template
        self.reader, self.note = reading.plan_reading(rows, rows.path, columns, layout, chat=chat)
        self.key = (source, str(layout), str(columns))

    def rows(self, raw_rows: Iterable[RawRow]) -> list[dict]:
        """The columns of SCHEMA but `index` for each row.

        A row of which no comparison can be made is `malformed`, and `problem` says why.
        """
        read = [self._read(raw) for raw in raw_rows]
        good = iter(self.tokenizer.rows([r for r in read if isinstance(r, Comparison)]))
        return [
            next(good) if isinstance(r, Comparison) else empty_row(self.source, Reason.MALFORMED, r)
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
            return self.reader(parse_row(raw), self.source)
        except ValueError as error:
            return str(error).encode(errors="backslashreplace").decode()[:500]


def tokenize(
    rows: Rows, encoder: Encoder, folder: str | None = None, num_workers: int = 1
) -> datasets.Dataset:
    """Tokenise all rows, or map what an earlier run has tokenised.

    The file's key covers the content of the data, the tokenizer with its template, the settings,
    the layout, the new names of columns, the source's name, FORMAT and the versions of the
    libraries. A file is put in place when it is complete; what a killed run left is written anew.

    Args:
        rows: of one split.
        encoder: of these rows.
        folder: where the file is; None takes a folder in the cache of datasets.
        num_workers: processes that tokenise.

    Returns:
        A row for each row of the source, with the columns of SCHEMA.

    Raises:
        InputError: a file cannot be read, or the folder cannot be written to.
    """
    cache = Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "tokenized")
    name = re.sub(r"[^\w.-]", "_", encoder.source)[-60:]
    file = cache / f"{name}-{_key(rows, encoder)}.arrow"
    if not file.exists():
        check_folder(cache, CACHE_FLAG)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{file}.lock"):
                if not file.exists():  # nor did another run write it while this one waited
                    _write(file, _encode_all(rows, encoder, num_workers))
        except OSError as error:  # of a row that cannot be read there is an InputError
            raise InputError(f"{CACHE_FLAG} {cache}: {why_not_written(error, cache)}") from error
    return datasets.Dataset.from_file(str(file))


def _write(file: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Put a file in place when it is complete."""
    partial = file.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as out, pa.ipc.new_stream(out, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    os.replace(partial, file)


def _encode_all(
    rows: Iterable[RawRow], encoder: Encoder, num_workers: int
) -> Iterator[pa.RecordBatch]:
    """Pieces of the table in their order; a few thousand rows are held at once."""
    batches = (
        starmap(encoder.table, _chunks(rows))
        if num_workers == 1
        else _encode_in_processes(rows, encoder, num_workers)
    )
    title = f"Tokenising {encoder.source}"
    with distributed.progress(desc=title, unit=" rows", leave=False) as bar:
        for batch in batches:
            bar.update(len(batch))
            yield batch


def _encode_in_processes(
    rows: Iterable[RawRow], encoder: Encoder, num_workers: int
) -> Iterator[pa.RecordBatch]:
    context = multiprocessing.get_context("fork")  # a tokenizer is slow to send
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes, not threads
    waiting: deque[Future[pa.RecordBatch]] = deque()
    with ProcessPoolExecutor(num_workers, context, _set_encoder, (encoder,)) as pool:
        try:
            for chunk in _chunks(rows):
                waiting.append(pool.submit(_encode, *chunk))
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


_encoder: Encoder  # of a process that tokenises


def _set_encoder(encoder: Encoder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    global _encoder
    _encoder = encoder


def _encode(first: int, rows: list[RawRow]) -> pa.RecordBatch:
    return _encoder.table(first, rows)


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


def _key(rows: Rows, encoder: Encoder) -> str:
    tokenizer = encoder.tokenizer
    content = (
        str(FORMAT),
        rows.fingerprint(),
        tokenizer.tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.tokenizer.chat_template),
        str(tokenizer.tokenizer.special_tokens_map),
        json.dumps(asdict(tokenizer.settings)),
        *encoder.key,
        *(version(name) for name in ("transformers", "tokenizers")),
    )
    return hashlib.blake2b("\0".join(content).encode(), digest_size=16).hexdigest()
