"""Rows of files, by split, one after another: nothing here knows what they mean."""

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet
import yaml
from huggingface_hub.errors import HTTPError

from utils.data.formats.layouts import TEXT_COLUMNS
from utils.data.sources import hub
from utils.data.sources.names import spell_place
from utils.hub_errors import explain
from utils.settings import InputError

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
EXPECTED = f"expected a file that ends in {', '.join(BUILDERS)} (or .gz)"

CSV_ROWS, PARQUET_ROWS = 10_000, 1000  # that are held at once
MAX_ROW_BYTES = 16 * 2**20  # a line that is longer is not held in memory
PEEK = 100  # rows that are looked at to find the columns

UNREADABLE = (
    datasets.exceptions.DatasetGenerationError,
    OSError,
    ValueError,
    RuntimeError,
    OverflowError,
    StopIteration,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    HTTPError,
)

RawRow = bytes | object  # a line of JSON, or what was parsed already


def parse_row(raw: RawRow) -> dict:
    """A row as a dict of columns; ValueError if it is no JSON object."""
    row = _parse_line(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}; expected one JSON object a line")
    return row


def _parse_line(line: bytes) -> object:
    if len(line) > MAX_ROW_BYTES:
        raise ValueError(f"the line is longer than {MAX_ROW_BYTES // 2**20} MiB")
    try:
        return json.loads(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{error.reason}; expected UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}; expected one JSON object a line") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


@dataclass(frozen=True)
class Rows:
    """The rows of a split; can be read again and again.

    Attributes:
        path: as the user gave it, for messages.
        files: on this disk.
        texts: columns of CSV files whose values are text, also where they spell NA or 7.
    """

    path: str
    files: tuple[str, ...]
    texts: tuple[str, ...] = field(default=TEXT_COLUMNS, repr=False)

    def __iter__(self) -> Iterator[RawRow]:
        """Rows in order: dicts, or of JSON lines the lines; InputError where one cannot be read."""
        try:
            for file in self.files:
                yield from _file_rows(file, self.texts)
        except UNREADABLE as error:
            reason = str(error.__cause__ or error).splitlines()[:1] or ["it has no rows"]
            raise InputError(f"{self.path}: cannot be read: {reason[0]}") from error

    def columns(self) -> list[str]:
        """Columns of the first rows together; InputError if there is no row."""
        return find_columns(islice(self, PEEK), self.path)

    def fingerprint(self) -> str:
        """A hash of the content of the files; InputError if one cannot be read."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files:
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def find_columns(rows: Iterable[RawRow], path: str) -> list[str]:
    """The columns of all rows together; InputError if there is no row that can be parsed."""
    found: dict[str, None] = {}
    problem = ""
    for number, raw in enumerate(rows, 1):
        try:
            found |= dict.fromkeys(parse_row(raw))
        except ValueError as error:
            problem = problem or f"row {number}: {error}"
    if not found:
        raise InputError(f"{path}: {problem or 'no rows'}")
    return list(found)


def open_splits(
    path: str,
    subset: str | None = None,
    revision: str | None = None,
    texts: tuple[str, ...] = (),
) -> dict[str, Rows]:
    """The splits of a file, folder or hub data set.

    Args:
        path: local path or hub name, perhaps with a folder of the data set.
        subset: configuration, as the README of a folder or data set lists it.
        revision: branch, tag or commit of a hub data set.
        texts: further columns of CSV files whose values are text.

    Raises:
        InputError: there is no such thing, or it is no table.
    """
    place = spell_place(path, revision, subset)

    if os.path.isfile(path):
        if _builder(path) is None:
            raise InputError(f"{path}: {EXPECTED}")
        if subset:
            raise InputError(f"{place}: a file has no configurations; leave #{subset} out")
        splits = {"train": [path]}
    elif os.path.islink(path) and not os.path.exists(path):
        raise InputError(f"{path}: is a link to {os.readlink(path)}, which is not there")
    elif os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{path}: is a device or the like; expected a file or folder")
    elif os.path.exists(path) or _could_be_on_the_hub(path):
        splits = _find_splits(path, subset, revision, place)
    else:
        raise InputError(
            f"{path}: no such file or folder (--data_path, --eval_data_path), and no name of a "
            "data set of the hub (OWNER/NAME or OWNER/NAME/FOLDER)"
        )

    texts = (*TEXT_COLUMNS, *texts)
    return {split: Rows(place, tuple(names), texts) for split, names in splits.items()}


def train_and_test(
    splits: dict[str, Rows], path: str, split: str | None = None
) -> tuple[Rows, Rows | None]:
    """The rows to train, and where there is a test or validation split, those.

    Args:
        splits, path: as `open_splits` gives and takes them.
        split: the one to train, instead of that named train; then there is no other.

    Raises:
        InputError: there is no such split.
    """
    if split is None and len(splits) == 1:
        return next(iter(splits.values())), None
    name = split or "train"
    if name not in splits:
        raise InputError(f"{path}: has the splits {', '.join(splits)}; expected one named {name}")
    test = splits.get("test", splits.get("validation")) if split is None else None
    return splits[name], test


def _could_be_on_the_hub(path: str) -> bool:
    return _builder(path) is None and hub.HUB_NAME.fullmatch(path) is not None


def _find_splits(
    path: str, subset: str | None, revision: str | None, place: str
) -> dict[str, list[str]]:
    """The files of each split of a folder or hub data set."""
    is_local = os.path.exists(path)

    try:
        if is_local:
            with _plainly_named(path) as folder:
                splits = _splits_of_folder(folder, subset, place)
            start = path
        else:
            found = hub.HubFiles(path, revision)
            with found.outline() as folder:
                splits = _splits_of_folder(folder, subset, place)
            found.fetch([name for names in splits.values() for name in names])
            start = found.root

        return {split: [os.path.join(start, n) for n in names] for split, names in splits.items()}

    except UNREADABLE as error:
        if is_local:
            raise InputError(f"{place}: cannot be read: {explain(error)}") from error
        raise InputError(
            f"{place}: neither a local path nor, on the hub, {hub.spell_out(path)}: "
            f"{explain(error)}. Without network, give a local file or folder"
        ) from error


@contextmanager
def _plainly_named(folder: str) -> Iterator[str]:
    """The folder's real place; or links to its files, where datasets would take its name for a
    pattern or a chain of places."""
    real = os.path.realpath(folder)
    if not (glob.has_magic(real) or "::" in real or "://" in real):
        yield real
        return

    with tempfile.TemporaryDirectory() as place:
        for parent, _, names in os.walk(real):
            copy = os.path.join(place, os.path.relpath(parent, real))
            os.makedirs(copy, exist_ok=True)
            for name in names:
                os.symlink(os.path.join(parent, name), os.path.join(copy, name))
        yield place


def _splits_of_folder(folder: str, subset: str | None, place: str) -> dict[str, list[str]]:
    """The files of each split, by their places in the folder: datasets knows what belongs where."""
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an InputError says it
    try:
        names = datasets.get_dataset_config_names(folder)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: README.md has no readable front matter: {reason}") from error

    name = subset or datasets.get_dataset_default_config_name(folder)
    if names == ["default"] and name != "default":
        raise InputError(f"{place}: has no configurations: leave #{subset} out")

    if name not in names:
        raise InputError(
            f"{place}: has the configurations {', '.join(names)}: name one of them, as "
            f"{place.split('#')[0]}#{names[0]} or with `subset: {names[0]}` in a YAML file"
        )

    found = datasets.load_dataset_builder(folder, name).config.data_files
    splits = {
        str(split): [os.path.relpath(name, folder) for name in names]
        for split, names in found.items()
    }

    for file in chain(*splits.values()):
        if _builder(file) is None:
            raise InputError(f"{place}: has {file}; {EXPECTED}")
    return splits


def _builder(path: str) -> str | None:
    return BUILDERS.get(os.path.splitext(path.removesuffix(".gz"))[1].lower())


def _file_rows(path: str, texts: tuple[str, ...]) -> Iterator[RawRow]:
    builder = _builder(path)
    with open(path, "rb") as file:
        content: io.BufferedIOBase = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
        if builder == "json":
            yield from _json_rows(content, path)
        elif builder == "csv":
            yield from _csv_rows(content, texts)
        else:
            yield from _parquet_rows(content)


def _json_rows(file: io.BufferedIOBase, path: str) -> Iterator[RawRow]:
    """Lines that are not blank; of a JSON array its elements."""
    is_array = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    file.seek(0)
    if is_array:
        yield from _json_array(file.read(), path)
        return

    while line := file.readline(MAX_ROW_BYTES + 1):
        rest = line
        while len(rest) > MAX_ROW_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_ROW_BYTES + 1)  # read, but not kept
        if line.strip():
            yield line


def _json_array(content: bytes, path: str) -> list:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        fault, line = error.reason, content.count(b"\n", 0, error.start) + 1
    except json.JSONDecodeError as error:
        fault, line = error.msg, error.lineno
    except RecursionError:
        fault, line = "nested too deeply", 1
    raise InputError(f"{path}, line {line}: {fault}; expected a list of JSON objects")


def _csv_rows(file: io.BufferedIOBase, texts: tuple[str, ...]) -> Iterator[dict]:
    as_text = {"keep_default_na": False, "converters": dict.fromkeys(texts, str)}
    for rows in pandas.read_csv(file, chunksize=CSV_ROWS, **as_text):
        yield from pa.Table.from_pandas(rows, preserve_index=False).to_pylist()


def _parquet_rows(file: io.BufferedIOBase) -> Iterator[dict]:
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(PARQUET_ROWS):
        try:
            rows = batch.to_pylist()
        except OverflowError:  # Python's dates end with the year 9999
            columns = [c.cast(pa.string()) if pa.types.is_temporal(c.type) else c for c in batch]
            rows = pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
        yield from rows
