"""The command line of rw_eval.py."""

import argparse

from utils.data.formats.columns import parse_columns
from utils.data.formats.layouts import FORMATS
from utils.data.settings import add_chat_template, add_columns, add_format
from utils.settings import FlagParser, InputError, add_layout, require, user_path

BENCHMARKS = ("rewardbench", "rewardbench2", "rm-bench", "judgebench", "llmbar")


def parse_evaluation_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse rw_eval.py's command line; a wrong flag or value exits with code 2."""
    parser = FlagParser(
        prog="rw_eval.py",
        usage="rw_eval.py --model_name_or_path MODEL [flags; see --help]",
        description="Score answers with a reward model. Without anything to score it scores two "
        "built-in prompts, each with a good and a bad answer.",
        config="as batch_size: 8 or normalize: true",
        removed={"--pad_to_multiple_of": "leave it out; no batch needs it"},
    )
    _add_model(parser)
    _add_input(parser)
    _add_evaluation(parser)
    _add_output(parser)
    _add_batches(parser)
    _add_text_settings(parser)
    args = parser.parse(argv)
    _check(parser, args)
    return args


def _add_model(parser):
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", type=user_path, help="folder or hub name of the reward model")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the model")
    add(
        "--device_map",
        choices=("auto",),
        help="spread a model that is bigger than a GPU over all GPUs, CPU memory and files",
    )
    add(
        "--normalize",
        action="store_true",
        help="subtract the mean of the evaluation scores of training and divide by their standard "
        "deviation, as the checkpoint has them",
    )
    add(
        "--trust_remote_code",
        action="store_true",
        help="run model code that comes with the checkpoint; only for sources you trust",
    )


def _add_input(parser):
    add = parser.add_argument_group("what to score").add_argument
    add("--prompt", help="a prompt; its answers follow in --response")
    add(
        "--response",
        nargs="+",
        action="extend",
        help="answers to --prompt; may be given several times",
    )
    add(
        "--interactive",
        action="store_true",
        help="ask for a prompt, then for answers, and score each as it is typed",
    )
    add(
        "--data_path",
        type=user_path,
        nargs="+",
        help="files, folders or hub names (OWNER/NAME[/FOLDER][@REVISION][#CONFIGURATION]) with "
        "comparisons, in any layout that main.py takes, or with prompt and response(s) that "
        "nobody ranked; - reads JSON lines from standard input",
    )
    add_format(add, FORMATS)
    add_columns(add)


def _add_evaluation(parser):
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--benchmark",
        choices=BENCHMARKS,
        help="a public benchmark, in its own layout and with its own section scores: from the hub, "
        "or from the file or folder in --data_path",
    )
    add(
        "--compare",
        type=user_path,
        nargs=2,
        metavar=("DIR_A", "DIR_B"),
        help="put two evaluations side by side (the folders of two --output_dir on the same data) "
        "and test the difference; needs no model",
    )
    add(
        "--label",
        choices=("hard", "soft"),
        default="hard",
        help="what calibration is measured against: which answer is better, or the share of "
        "annotators who said so (columns votes or preference_strength), with its log-loss",
    )


def _add_output(parser):
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--output_dir",
        type=user_path,
        help="folder for scores.jsonl (one line a row), report.md, report.json and pictures",
    )
    add("--overwrite_output_dir", action="store_true", help="replace the evaluation in it")
    add(
        "--resume",
        action="store_true",
        help="go on after the last line that a run which was cut has written to --output_dir",
    )
    form = group.add_mutually_exclusive_group().add_argument
    where = "; to standard output, or into --output_dir"
    form(
        "--best_of_n",
        action="store_true",
        help=f"no report: write the best answer of each row as JSON lines{where}",
    )
    form(
        "--as_pairs",
        action="store_true",
        help="the same with the best answer as chosen and the worst as rejected",
    )
    form("--as_scores", action="store_true", help="the same with all answers and their scores")


def _add_batches(parser):
    add = parser.add_argument_group("batches (no score depends on them)").add_argument
    add(
        "--batch_size",
        type=_batch_size,
        default="auto",
        help="comparisons in a batch, or auto: as many as the device runs well",
    )
    add_layout(add)
    add("--local_rank", type=int, default=-1, help="set by the launcher")


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _add_text_settings(parser):
    add = parser.add_argument_group(
        "text to tokens", "what training used is read from the checkpoint; these override it"
    ).add_argument
    add("--max_seq_len", type=int, help="longest sequence in tokens")
    add(
        "--score_position",
        choices=("end", "first_pad", "mean"),
        help="the token whose value is the score",
    )
    add("--add_eot_token", action="store_true", help="end every answer with <|endoftext|>")
    add(
        "--apply_chat_template",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="take a text prompt as one user message and render it as a conversation",
    )
    add(
        "--answer_end",
        choices=("token", "as_written"),
        help="token: cut white space at the end and append the end token, as main.py trains (a "
        "text prompt then stands as it is, without --apply_chat_template); as_written: score the "
        "last token of what the chat template, or for texts the tokenizer, writes (default: as "
        "the checkpoint says; of one that says nothing as_written)",
    )
    add_chat_template(parser)
    add(
        "--num_padding_at_beginning",
        type=int,
        help="as in main.py: found out from the tokenizer, an error if it contradicts it",
    )


def _check(parser, args):
    if args.compare is None and args.model_name_or_path is None:
        parser.error("--model_name_or_path is required")
    if (args.prompt is None) != (args.response is None):
        parser.error("--prompt and --response go together")
    asked = {
        "--prompt": args.prompt is not None,
        "--interactive": args.interactive,
        "--data_path": bool(args.data_path),
        "--benchmark": args.benchmark is not None,
        "--compare": args.compare is not None,
    }
    given = [flag for flag, there in asked.items() if there]
    if len(given) > 1 and given != ["--data_path", "--benchmark"]:
        parser.error(f"{' and '.join(given)} exclude each other")
    for flag in ("format", "columns"):
        if getattr(args, flag) and not args.data_path:
            parser.error(f"--{flag} goes with --data_path")
        if getattr(args, flag) and args.benchmark:
            parser.error(
                f"--benchmark and --{flag} exclude each other: a benchmark has its own layout"
            )
    try:
        parse_columns(args.columns)
    except InputError as error:
        parser.error(str(error))
    if args.benchmark and args.data_path and len(args.data_path) > 1:
        parser.error("--benchmark takes one file or folder in --data_path")
    rows = bool(args.data_path or args.benchmark)
    for flag in ("best_of_n", "as_pairs", "as_scores", "resume"):
        if getattr(args, flag) and not rows:
            parser.error(f"--{flag} goes with --data_path or --benchmark")
    if args.output_dir and not (rows or args.compare):
        parser.error("--output_dir goes with --data_path, --benchmark or --compare")
    if args.resume and not args.output_dir:
        parser.error("--resume needs the --output_dir of the run that was cut")
    if args.resume and "-" in (args.data_path or ()):
        parser.error("--resume cannot go back in standard input: give a file in --data_path")
    if args.resume and args.overwrite_output_dir:
        parser.error("--resume and --overwrite_output_dir exclude each other")
    if args.data_path and args.data_path.count("-") > 1:
        parser.error("--data_path names standard input (-) more than once")
    if args.add_eot_token and args.answer_end == "as_written":
        parser.error("--add_eot_token and --answer_end as_written exclude each other")
    if args.batch_size != "auto":
        require(parser, args, 1, "batch_size")
    require(parser, args, 1, "max_seq_len")
