"""The flags that say what is read and how it becomes tokens."""

from datetime import date

from utils.data.formats.layouts import LAYOUTS
from utils.data.sources.names import parse_sources
from utils.settings import InputError, require, user_path


def add_data(parser) -> None:
    """Add main.py's groups of what it reads, and what it stores of it."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data_path",
        type=user_path,
        nargs="+",
        default=["Dahoas/rm-static"],
        help="training comparisons: JSON, JSONL, Parquet or CSV files (also .gz), folders with "
        "train and test files, hub names (OWNER/NAME[/FOLDER][@REVISION]), or a YAML file that "
        "lists such sources; PATH#CONFIGURATION takes one that its README lists, PATH:0.3 gives "
        "a weight (to all of them or none), PATH:5000 takes a fixed random sample of so many",
    )
    add(
        "--eval_data_path",
        type=user_path,
        nargs="+",
        help="evaluation comparisons (of a folder or hub name the test or validation split, if it "
        "has one); without it that split of --data_path, else prompts held out from it. Prompts "
        "that train are removed from it",
    )
    add(
        "--eval_fraction",
        type=float,
        default=0.1,
        help="share of the prompts held out where there is no evaluation set",
    )
    add(
        "--data_split",
        help="shares of the prompts for the steps of RLHF, e.g. 2,4,4: training takes the second "
        "share of a shuffle by --seed; a single number or none takes everything",
    )
    add = parser.add_argument_group("columns of the data").add_argument
    add_format(add, tuple(LAYOUTS))
    add_columns(add)
    add = parser.add_argument_group("tokenised data").add_argument
    add(
        "--data_output_path",
        type=user_path,
        help="where tokenised data is cached (default: datasets' own cache)",
    )
    add("--num_workers", type=int, default=1, help="processes that tokenise")


def add_data_checks(parser) -> None:
    """Add main.py's group of what is looked at before training."""
    add = parser.add_argument_group("checks of the data (a summary is printed at every start)")
    add = add.add_argument
    add(
        "--audit_data",
        action="store_true",
        help="write what was found in the data to OUTPUT_DIR/audit (report, every bad row, "
        "pictures) and train nothing",
    )
    add(
        "--strict",
        action="store_true",
        help="end with exit code 3 before training, or after --audit_data, if something serious "
        "is found in what is left after --deduplicate: malformed or duplicate rows, contradictory "
        "labels",
    )
    add(
        "--deduplicate",
        choices=("off", "exact", "prompt"),
        default="off",
        help="keep the first of equal comparisons (exact), or the first of each prompt",
    )
    add(
        "--max_bad_rows",
        type=float,
        default=0.001,
        help="share of a source's rows that may be malformed: they are left out and counted",
    )


def add_tokenization(parser) -> None:
    """Add main.py's group of how text becomes tokens."""
    add = parser.add_argument_group("text to tokens").add_argument
    add("--max_seq_len", type=int, default=512, help="longest sequence in tokens")
    add(
        "--overlength",
        choices=("truncate_prompt", "drop", "truncate_end"),
        default="truncate_prompt",
        help="what to do with a comparison that is longer than --max_seq_len: cut its prompt from "
        "the left (the answers stay whole), drop it, or cut its answers at the right",
    )
    add(
        "--apply_chat_template",
        action="store_true",
        help="take a text prompt as one user message and render it with the tokenizer's chat "
        "template (without one: Human and Assistant turns); messages are always rendered",
    )
    add_chat_template(parser)
    add("--add_eot_token", action="store_true", help="end every answer with <|endoftext|>")
    add(
        "--num_padding_at_beginning",
        type=int,
        help="how many tokens the tokenizer puts before every text that carry the id of the pad "
        "or an end token (OPT: 1, Llama and GPT-2: 0); found out from the tokenizer, and a value "
        "that contradicts it is an error",
    )


def add_format(add, formats: tuple[str, ...]) -> None:
    """Add --format, which main.py and rw_eval.py share, with these choices to a group."""
    add(
        "--format",
        choices=formats,
        metavar="NAME",
        help="layout of the rows, where their columns fit several (default: found by the columns): "
        f"{', '.join(formats)}",
    )


def add_columns(add) -> None:
    """Add --columns, which main.py and rw_eval.py share, to a group."""
    add(
        "--columns",
        nargs="+",
        metavar="NAME=COLUMN",
        help="which columns are which, where they have other names than the layout's: "
        "prompt=question chosen=better rejected=worse; ignore=COLUMN[,COLUMN] says that columns "
        "are no part of the conversation",
    )


def add_chat_template(parser) -> None:
    """Add the group of the chat template's flags, which main.py and rw_eval.py share."""
    add = parser.add_argument_group("chat template").add_argument
    add(
        "--chat_template",
        type=user_path,
        metavar="FILE",
        help="file with a Jinja template that renders messages instead of the tokenizer's own; "
        "main.py saves it with the model",
    )
    add(
        "--chat_template_date",
        type=iso_date,
        metavar="YYYY-MM-DD",
        help="the date that a chat template writes if it asks for today's (default: today; "
        "where main.py goes on from a training state, its date). main.py saves the template with "
        "this date in it",
    )


def iso_date(text: str) -> str:
    """A date as YYYY-MM-DD; ValueError if it is none."""
    return date.fromisoformat(text).isoformat()


def check_data(parser, args) -> None:
    """Exit with code 2 if a value of these groups cannot be meant."""
    require(parser, args, 1, "num_workers")
    require(parser, args, 8, "max_seq_len")
    if not 0 < args.eval_fraction < 1:
        parser.error(f"--eval_fraction is {args.eval_fraction}; it must lie between 0 and 1")
    if not 0 <= args.max_bad_rows <= 1:
        parser.error(f"--max_bad_rows is {args.max_bad_rows}; it must be from 0 to 1")
    try:
        parse_sources(args.data_path, "--data_path", columns=args.columns)
        parse_sources(args.eval_data_path or [], "--eval_data_path")
    except InputError as error:
        parser.error(str(error))
    args.data_split = _parse_split(parser, args.data_split)


def _parse_split(parser, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        parser.error(f"--data_split is {text!r}; expected shares such as 2,4,4")
    if len(shares) == 1:
        return None
    if shares[1] == 0:
        parser.error(f"--data_split is {text!r}: the second share, which trains, is 0")
    return shares
