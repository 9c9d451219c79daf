"""The folder of an evaluation: whether it may be written to, and what it is begun with."""

import json
from dataclasses import asdict
from pathlib import Path

from utils import distributed
from utils.data.settings import DATA_MAY_DIFFER
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.forms import chosen_form
from utils.evaluation.settings import ScorerSettings
from utils.output.files import check_folder
from utils.settings import REFUSED, InputError

NOTE = "evaluation_args.json"


def check_evaluation_folder(args: ScorerSettings, encoder: ComparisonTokenizer) -> None:
    """Look, before the model is loaded, whether the evaluation may be written to --output_dir.

    Raises:
        InputError: nothing can be written there, there are lines of an evaluation already, or
            --resume comes with other settings than theirs.
    """
    fault = None
    if distributed.is_main():
        try:
            check_folder(args.output_dir, "--output_dir")
            _check_earlier(args, _identity(args, encoder))
        except InputError as error:
            fault = str(error)
    if fault := distributed.first_of_all(fault):
        raise InputError(fault)


def begin_evaluation(args: ScorerSettings, encoder: ComparisonTokenizer) -> Path:
    """Remove what an earlier evaluation has left, note what is being done, and name the file."""
    folder, identity = Path(args.output_dir), _identity(args, encoder)
    file = folder / identity["file"]

    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (file, *folder.glob("report.*"), *folder.glob("*.png")):
            if not args.resume:
                old.unlink(missing_ok=True)
        (folder / NOTE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    distributed.barrier()
    return file


def _identity(args: ScorerSettings, encoder: ComparisonTokenizer) -> dict:
    """What an evaluation must share with the one that it goes on with; `file` has its lines."""
    flags = args.flags(REFUSED, DATA_MAY_DIFFER)  # in training alone may the data differ
    return {
        **{f"--{name}": value for name, value in flags.items()},
        "file": f"{chosen_form(args) or 'scores'}.jsonl",
        "text settings": asdict(encoder.settings),
    }


def _check_earlier(args: ScorerSettings, identity: dict) -> None:
    """Raise the InputError of `check_evaluation_folder` for what an earlier evaluation has left."""
    folder = Path(args.output_dir)
    note = folder / NOTE
    try:
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{note}: cannot be read ({error}): give another --output_dir") from error

    files = [folder / name for name in {identity["file"], before.get("file", identity["file"])}]
    if not any(file.exists() and file.stat().st_size for file in files):
        return  # an evaluation that was stopped before its first line

    if args.resume and before:
        for what, value in identity.items():
            if before.get(what) != value:
                raise InputError(
                    f"{folder}: cannot go on, {what} was {before.get(what)} and is {value}: give "
                    "the same flags as before, or another --output_dir"
                )
    elif not (args.resume or args.overwrite_output_dir):
        raise InputError(
            f"{folder}: holds an evaluation already: give --resume to go on with it, "
            "--overwrite_output_dir to replace it, or another --output_dir"
        )
