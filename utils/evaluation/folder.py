"""The folder of an evaluation: whether it may be written to, and what it is begun with."""

import json
from dataclasses import asdict
from pathlib import Path

from utils import distributed
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.records import FORMS
from utils.evaluation.settings import ScorerSettings
from utils.output.files import check_folder
from utils.settings import InputError

NOTE = "evaluation_args.json"


def chosen_form(args: ScorerSettings) -> str | None:
    """Which of the FORMS was asked for; None: scores and a report."""
    return next((name for name in FORMS if getattr(args, name)), None)


def describe(args: ScorerSettings, encoder: ComparisonTokenizer) -> dict:
    """What an evaluation must share with the one that it goes on with; `file` has its lines."""
    flags = (
        *("model_name_or_path", "data_path", "format", "columns", "benchmark", "label", "dtype"),
        *("normalize", "chat_template", "chat_template_date"),
    )
    asked = {f"--{flag}": getattr(args, flag) for flag in flags}
    name = f"{chosen_form(args) or 'scores'}.jsonl"
    return {**asked, "file": name, "text settings": asdict(encoder.settings)}


def check_output_dir(args: ScorerSettings, encoder: ComparisonTokenizer) -> None:
    """Look, before the model is loaded, whether the evaluation may be written to --output_dir.

    Raises:
        InputError: nothing can be written there, there are lines of an evaluation already, or
            --resume comes with other settings than theirs.
    """
    fault = None
    if distributed.is_main():
        try:
            check_folder(args.output_dir, "--output_dir")
            _check_evaluation(args, describe(args, encoder))
        except InputError as error:
            fault = str(error)
    if fault := distributed.first_of_all(fault):
        raise InputError(fault)


def _check_evaluation(args: ScorerSettings, asked: dict) -> None:
    """Raise the InputError of `check_output_dir` for what an earlier evaluation has left."""
    folder = Path(args.output_dir)
    note = folder / NOTE
    try:
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{note}: cannot be read ({error}): give another --output_dir") from error
    lines = [folder / name for name in {asked["file"], before.get("file", asked["file"])}]
    if not any(file.exists() and file.stat().st_size for file in lines):
        return  # an evaluation that was stopped before its first line
    if args.resume and before:
        for what, value in asked.items():
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


def begin_output(args: ScorerSettings, encoder: ComparisonTokenizer) -> Path:
    """Remove what an earlier evaluation has left, note what is being done, and name the file."""
    folder, asked = Path(args.output_dir), describe(args, encoder)
    file = folder / asked["file"]
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (file, *folder.glob("report.*"), *folder.glob("*.png")):
            if not args.resume:
                old.unlink(missing_ok=True)
        (folder / NOTE).write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    distributed.barrier()
    return file
