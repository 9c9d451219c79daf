"""The flags that say what is read and how it becomes tokens."""

from dataclasses import dataclass
from datetime import date
from typing import Any

from utils.data.formats.layouts import RANKED_FORMATS
from utils.settings import FREE, InputError, Settings, flag, user_path

# What other values mean to a run that goes on.
DATA_MAY_DIFFER = (
    "what trains may differ, of which the number of comparisons and tokens is compared"
)
EVALUATIONS_MAY_DIFFER = "evaluations from here on may differ from those before"


def format_flag(formats: tuple[str, ...]) -> Any:
    """--format, which main.py and rw_eval.py share, with these choices."""
    return flag(
        None,
        "layout of the rows, where their columns fit several (default: found by the columns): "
        f"{', '.join(formats)}",
        choices=formats,
        metavar="NAME",
        resume=DATA_MAY_DIFFER,
    )


def columns_flag() -> Any:
    """--columns, which main.py and rw_eval.py share."""
    return flag(
        None,
        "which columns are which, where they have other names than the layout's: prompt=question "
        "chosen=better rejected=worse; ignore=COLUMN[,COLUMN] says that columns are no part of "
        "the conversation",
        metavar="NAME=COLUMN",
        resume=DATA_MAY_DIFFER,
    )


def parse_split(text: str) -> list[float] | None:
    """Shares of --data_split; None if a single number says that everything trains.

    Raises:
        InputError: these are no shares, or nothing would train.
    """
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise InputError(f"--data_split is {text!r}; expected shares such as 2,4,4")

    if len(shares) == 1:
        return None
    if shares[1] == 0:
        raise InputError(f"--data_split is {text!r}: the second share, which trains, is 0")
    return shares


def iso_date(text: str) -> str:
    """A date as YYYY-MM-DD; ValueError if it is none."""
    return date.fromisoformat(text).isoformat()


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """What main.py reads."""

    title = "data"
    data_path: list[str] = flag(
        ["Dahoas/rm-static"],
        "training comparisons: JSON, JSONL, Parquet or CSV files (also .gz), folders with train "
        "and test files, hub names (OWNER/NAME[/FOLDER][@REVISION]), or a YAML file that lists "
        "such sources; PATH#CONFIGURATION takes one that its README lists, PATH:0.3 gives a "
        "weight (to all of them or none), PATH:5000 takes a fixed random sample of so many",
        type=user_path,
        resume=DATA_MAY_DIFFER,
    )
    eval_data_path: list[str] | None = flag(
        None,
        "evaluation comparisons (of a folder or hub name the test or validation split, if it has "
        "one); without it that split of --data_path, else prompts held out from it. Prompts that "
        "train are removed from it",
        type=user_path,
        resume=EVALUATIONS_MAY_DIFFER,
    )
    eval_fraction: float = flag(
        0.1,
        "share of the prompts held out where there is no evaluation set",
        resume=DATA_MAY_DIFFER,
    )
    data_split: list[float] | None = flag(
        None,
        "shares of the prompts for the steps of RLHF, e.g. 2,4,4: training takes the second share "
        "of a shuffle by --seed; a single number or none takes everything",
        type=parse_split,
        nargs=None,
        metavar="SPLIT",
        resume=DATA_MAY_DIFFER,
    )

    def _check(self) -> None:
        if not 0 < self.eval_fraction < 1:
            raise InputError(
                f"--eval_fraction is {self.eval_fraction}; it must lie between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class ColumnSettings(Settings):
    """How the rows of main.py are laid out."""

    title = "columns of the data"
    format: str | None = format_flag(RANKED_FORMATS)
    columns: list[str] | None = columns_flag()


@dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """Where tokenised rows are, and how fast they are made."""

    title = "tokenised data"
    data_output_path: str | None = flag(
        None,
        "where tokenised data is cached (default: datasets' own cache)",
        type=user_path,
        resume=FREE,
    )
    num_workers: int = flag(1, "processes that tokenise", least=1, resume=FREE)


@dataclass(frozen=True, kw_only=True)
class DataCheckSettings(Settings):
    """What is looked at before training."""

    title = "checks of the data (a summary is printed at every start)"
    audit_data: bool = flag(
        False,
        "write what was found in the data to OUTPUT_DIR/audit (report, every bad row, pictures) "
        "and train nothing",
        resume=FREE,
    )
    strict: bool = flag(
        False,
        "end with exit code 3 before training, or after --audit_data, if something serious is "
        "found in what is left after --deduplicate: malformed or duplicate rows, contradictory "
        "labels",
        resume=FREE,
    )
    deduplicate: str = flag(
        "off",
        "keep the first of equal comparisons (exact), or the first of each prompt",
        choices=("off", "exact", "prompt"),
        resume=DATA_MAY_DIFFER,
    )
    max_bad_rows: float = flag(
        0.001,
        "share of a source's rows that may be malformed: they are left out and counted",
        least=None,
        resume=DATA_MAY_DIFFER,
    )

    def _check(self) -> None:
        if not 0 <= self.max_bad_rows <= 1:
            raise InputError(f"--max_bad_rows is {self.max_bad_rows}; it must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainingDataSettings(DataSettings, ColumnSettings, CacheSettings, DataCheckSettings):
    """All that says which rows train and which evaluate, in the order of the help."""


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """How text becomes tokens in main.py."""

    title = "text to tokens"
    max_seq_len: int = flag(512, "longest sequence in tokens", least=8, resume=DATA_MAY_DIFFER)
    overlength: str = flag(
        "truncate_prompt",
        "what to do with an answer that is longer than --max_seq_len with its prompt: cut the "
        "prompt from the left (the answer stays whole), drop the answer, or cut it at the right; "
        "each answer by itself, whatever others there are",
        choices=("truncate_prompt", "drop", "truncate_end"),
        resume=DATA_MAY_DIFFER,
    )
    apply_chat_template: bool = flag(
        False,
        "take a text prompt as one user message and render it with the tokenizer's chat template "
        "(without one: Human and Assistant turns); messages are always rendered",
        resume=DATA_MAY_DIFFER,
    )
    add_eot_token: bool = flag(False, "end every answer with <|endoftext|>", resume=DATA_MAY_DIFFER)
    num_padding_at_beginning: int | None = flag(
        None,
        "how many tokens the tokenizer puts before every text that carry the id of the pad or an "
        "end token (OPT: 1, Llama and GPT-2: 0); found out from the tokenizer, and a value that "
        "contradicts it is an error",
        resume=DATA_MAY_DIFFER,
    )


@dataclass(frozen=True, kw_only=True)
class ChatTemplateSettings(Settings):
    """How messages are rendered, in main.py and rw_eval.py."""

    title = "chat template"
    chat_template: str | None = flag(
        None,
        "file with a Jinja template that renders messages instead of the tokenizer's own; main.py "
        "saves it with the model",
        type=user_path,
        metavar="FILE",
        resume=DATA_MAY_DIFFER,
    )
    chat_template_date: str | None = flag(
        None,
        "the date that a chat template writes if it asks for today's (default: today; where "
        "main.py goes on from a training state, its date). main.py saves the template with this "
        "date in it",
        type=iso_date,
        metavar="YYYY-MM-DD",
    )
