"""The command line of rw_eval.py."""

import argparse

from utils.arguments import HelpFormatter, add_layout, require


def parse_evaluation_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse rw_eval.py's command line; a wrong flag or value exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="rw_eval.py",
        usage="rw_eval.py --model_name_or_path MODEL [flags; see --help]",
        description="Score answers with a reward model. Without --prompt and --data_path it scores "
        "two built-in prompts, each with a good and a bad answer.",
        formatter_class=HelpFormatter,
    )
    _add_scoring_input(parser)
    _add_scoring_settings(parser)
    args = parser.parse_args(argv)
    if (args.prompt is None) != (args.response is None):
        parser.error("--prompt and --response go together")
    if args.prompt is not None and args.data_path:
        parser.error("--prompt and --data_path exclude each other")
    if args.output_dir and not args.data_path:
        parser.error("--output_dir goes with --data_path")
    require(parser, args, 1, "batch_size", "max_seq_len", "pad_to_multiple_of")
    return args


def _add_scoring_input(parser):
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder or hub name of the reward model")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the model")
    add(
        "--trust_remote_code",
        action="store_true",
        help="run model code that comes with the checkpoint; only for sources you trust",
    )

    add = parser.add_argument_group("what to score").add_argument
    add("--prompt", help="a prompt; its answers follow in --response")
    add("--response", action="append", help="an answer to --prompt; may be given several times")
    add(
        "--data_path",
        nargs="+",
        help="files, folders or hub names with comparisons, in any layout that main.py takes",
    )
    add("--data_output_path", help="where tokenised data is cached (default: datasets' own cache)")
    add("--batch_size", type=int, default=16, help="comparisons in a batch")
    add_layout(add)
    add(
        "--output_dir",
        help="with --data_path: folder for scores.jsonl (one line a comparison) and report.json",
    )


def _add_scoring_settings(parser):
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
        "--num_padding_at_beginning",
        type=int,
        help="as in main.py: found out from the tokenizer, an error if it contradicts it",
    )
