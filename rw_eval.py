"""Score answers with a reward model, or evaluate it on comparisons.

    python rw_eval.py --model_name_or_path output
    python rw_eval.py --model_name_or_path output --prompt "..." --response "..." --response "..."
    python rw_eval.py --model_name_or_path output --data_path comparisons.jsonl --output_dir report
    deepspeed rw_eval.py --model_name_or_path output --data_path ... --output_dir report

`python rw_eval.py --help` lists every flag.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from utils.settings import InputError, stop_on_signals  # first: it says which package is missing

# isort: split
from utils.evaluation.settings import ScorerSettings, parse_evaluation_arguments

if __name__ == "__main__":
    stop_on_signals()
    # A wrong flag is answered before the seconds that the imports below take.
    ARGS = parse_evaluation_arguments()

import torch
from transformers import PreTrainedConfig

from utils import distributed
from utils.benchmarks.layouts import PUBLIC_BENCHMARKS
from utils.data.batching import make_collator
from utils.data.formats.columns import parse_columns
from utils.data.rendering.templates import fix_date
from utils.data.sources.names import named, parse_place
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.evaluation.compare import compare_evaluations, print_comparison, write_comparison
from utils.evaluation.folder import begin_output, check_output_dir, chosen_form
from utils.evaluation.metrics import Tallies
from utils.evaluation.prompts import given_prompts, score_prompts, score_typed
from utils.evaluation.records import (
    FORMS,
    Form,
    LineFile,
    RowCounts,
    score_records,
    score_windows,
)
from utils.evaluation.report import benchmark_table, print_results, write_report
from utils.evaluation.rows import Stream, open_benchmark, open_stream
from utils.evaluation.scoring import Scorer
from utils.model import pretrained
from utils.model.layout import choose_layout
from utils.model.positions import fix_positions
from utils.model.reward_model import check_head
from utils.output.files import check_folder
from utils.output.tables import print_table


def main(args: ScorerSettings) -> None:
    """Score what the command line names: rows, one prompt, or the built-in prompts."""
    if args.compare:
        compare_models(args)
        return
    pretrained.quieten_libraries()
    distributed.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" in os.environ:
        device = distributed.initialize(args.local_rank)
    if distributed.world_size() > 1 and (args.interactive or "-" in (args.data_path or ())):
        raise InputError(
            f"{distributed.world_size()} processes cannot share standard input: start one with "
            "python, or give files in --data_path"
        )
    config = pretrained.load_config(args.model_name_or_path, args.trust_remote_code)
    path, trust = args.model_name_or_path, args.trust_remote_code
    # Before rows are read: whether the weights are there, and with the scalar head.
    check_head(path, pretrained.empty_model(config, trust_remote_code=trust))
    checked = pretrained.check_weights(path, config, trust_remote_code=trust)
    args, encoder = load_encoder(args, config, checked.is_deepspeed_chat)
    longest = encoder.settings.max_seq_len
    distributed.log(*fix_positions(config, longest))
    layout, notes = choose_layout(config, args.batch_layout, longest)
    args = replace(args, batch_layout=layout)
    distributed.log(*notes)
    # Rows before the model: what is wrong with them shows at once.
    streams = open_streams(args, encoder)
    prompts = [] if streams or args.interactive else given_prompts(args, encoder)
    if args.output_dir:
        check_output_dir(args, encoder)
    scorer = load_scorer(args, config, encoder, device)
    if streams:
        score_streams(args, scorer, streams)
    elif args.interactive:
        score_typed(scorer)
    elif distributed.is_main():
        score_prompts(args, scorer, prompts)


def compare_models(args: ScorerSettings) -> None:
    """Print two evaluations side by side, and write that if there is a folder."""
    before = Path(args.output_dir or "") / "compare.json"
    if args.output_dir:
        check_folder(args.output_dir, "--output_dir")
    if args.output_dir and before.exists() and not args.overwrite_output_dir:
        raise InputError(
            f"{args.output_dir}: holds a comparison already: give --overwrite_output_dir to "
            "replace it, or another --output_dir"
        )
    comparison = compare_evaluations(*args.compare)
    print_comparison(comparison)
    if args.output_dir:
        write_comparison(args.output_dir, comparison)


def load_encoder(
    args: ScorerSettings, config: PreTrainedConfig, is_deepspeed_chat: bool
) -> tuple[ScorerSettings, ComparisonTokenizer]:
    """The settings with what the tokenizer says, and the tokenizer as training had it.

    The command line overrides what the checkpoint says of training.
    """
    tokenizer = pretrained.load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    saved = saved_settings(args.model_name_or_path, config)
    is_foreign = not saved
    answer_end = args.answer_end or how_answers_end(args, saved, is_deepspeed_chat)
    end_token, notes = prepare_tokenizer(
        tokenizer, args.add_eot_token, args.chat_template, answer_end == "as_written"
    )
    args = replace(args, chat_template_date=fix_date(tokenizer, args.chat_template_date))
    if args.chat_template_date:
        notes.append(
            "the chat template asks for today's date: the scores hold for "
            f"{args.chat_template_date} (--chat_template_date)"
        )
    if is_foreign:
        positions = getattr(config, "max_position_embeddings", None) or 2048
        longest = positions if answer_end == "as_written" else min(positions, 2048)
        saved = {"end_token": end_token, "max_seq_len": longest}
        saved["apply_chat_template"] = answer_end == "as_written" and bool(tokenizer.chat_template)
    elif args.add_eot_token:
        saved = {**saved, "end_token": end_token}
    names = ("max_seq_len", "score_position", "apply_chat_template")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = replace(TextSettings(**saved), **given, answer_end=answer_end)
    unscored = None
    if is_foreign:
        notes.append(describe_foreign(settings, bool(tokenizer.chat_template)))
        if (settings.answer_end, settings.score_position) == ("as_written", "end"):
            unscored = getattr(config, "pad_token_id", None)
    distributed.log(*notes)
    check_num_padding_at_beginning(tokenizer, settings.end_token, args.num_padding_at_beginning)
    return args, ComparisonTokenizer(tokenizer, settings, unscored)


def saved_settings(path: str, config: PreTrainedConfig) -> dict:
    """What a config says of how text became tokens in training; {} if it says nothing.

    Raises:
        InputError: it says what no TextSettings are.
    """
    saved = getattr(config, "reward_settings", None) or {}
    kinds = {field.name: type(field.default) for field in fields(TextSettings)} | {"end_token": str}
    is_wrong = not isinstance(saved, dict) or any(
        type(value) is not kinds.get(name) for name, value in saved.items()
    )
    if is_wrong or (saved and "end_token" not in saved):
        raise InputError(
            f"{path}: reward_settings in config.json are {json.dumps(saved)[:200]}; expected those "
            f"that main.py of this version saves ({', '.join(kinds)})"
        )
    return saved


def how_answers_end(args: ScorerSettings, saved: dict, is_deepspeed_chat: bool) -> str:
    """What `answer_end` of the TextSettings is, if --answer_end does not say it.

    Who trained a model of other origin fed it what its chat template or its tokenizer writes;
    DeepSpeed-Chat appends an end token to every answer, as main.py does.
    """
    if saved:
        return saved.get("answer_end", "token")
    return "token" if args.add_eot_token or is_deepspeed_chat else "as_written"


def describe_foreign(settings: TextSettings, has_template: bool) -> str:
    """A sentence on how a model is scored whose config does not say how it was trained."""
    flags = "--answer_end, --max_seq_len and --score_position"
    if settings.answer_end == "token":
        how = f"answers end with {settings.end_token}"
        flags = f"--add_eot_token, {flags}"
        if not settings.apply_chat_template:
            how += ", and a text prompt stands as it is"
            flags = f"--apply_chat_template, {flags}"
    elif has_template:
        how = "messages are scored as its chat template writes them, nothing added or cut"
        if settings.apply_chat_template:
            how += ", and a text prompt is one message"
        flags = f"--no-apply_chat_template, {flags}"
    else:
        how = "texts are scored as its tokenizer writes them, no end token added"
    return (
        f"the checkpoint does not say how it was trained: {how}; the longest sequence has "
        f"{settings.max_seq_len:,} tokens; {flags} change that"
    )


def load_scorer(
    args: ScorerSettings,
    config: PreTrainedConfig,
    encoder: ComparisonTokenizer,
    device: torch.device,
) -> Scorer:
    """The model on its device, ready to score."""
    statistics: dict[str, float] = getattr(config, "score_statistics", None) or {}
    if args.normalize and not statistics:
        raise InputError(
            f"{args.model_name_or_path}: the config has no score_statistics, so --normalize does "
            "not know the mean of its scores; main.py writes them"
        )
    model, _ = pretrained.load_model(
        args.model_name_or_path,
        config,
        encoder.tokenizer,
        dtype=pretrained.DTYPES[args.dtype],
        layout=args.batch_layout,
        trust_remote_code=args.trust_remote_code,
        device_map=args.device_map,
    )
    if args.device_map is None:
        model.to(device)
    return Scorer(
        model.eval(),
        encoder,
        make_collator(encoder, args.batch_layout),
        device,
        packed=args.batch_layout == "packed",
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        **(statistics if args.normalize else {}),
    )


def open_streams(args: ScorerSettings, encoder: ComparisonTokenizer) -> list[Stream]:
    """The rows that --data_path or --benchmark name; none if neither is given."""
    # Where data goes to standard output, nothing else does.
    to_output = chosen_form(args) is not None and not args.output_dir
    with redirect_stdout(sys.stderr) if to_output else nullcontext(), distributed.first_on_node():
        if args.benchmark:
            benchmark = PUBLIC_BENCHMARKS[args.benchmark]
            path = args.data_path[0] if args.data_path else benchmark.hub
            if path is None:
                raise InputError(
                    f"--benchmark {args.benchmark} is not on the hub as plain data: download "
                    f"{benchmark.download}, and give its place in --data_path"
                )
            return open_benchmark(path, benchmark.split, benchmark.read, benchmark.files)
        columns, chat = parse_columns(args.columns), encoder.settings.apply_chat_template
        paths = args.data_path or ()
        streams = [
            open_stream(path, args.format, columns, chat, source.name)
            for path, source in zip(paths, named(map(parse_place, paths)), strict=True)
        ]
        distributed.log(*(stream.note for stream in streams))
    return streams


def score_streams(args: ScorerSettings, scorer: Scorer, streams: list[Stream]) -> None:
    """Score all rows and write what was asked for: data made with the scores, or a report."""
    form = chosen_form(args)
    path = begin_output(args, scorer.encoder) if args.output_dir else None
    file = LineFile(path, args.resume, sys.stdout if form else None)
    try:
        if form:
            # Where the data goes to standard output, nothing else does.
            with nullcontext() if path else redirect_stdout(sys.stderr):
                make_data(scorer, streams, FORMS[form], file)
        else:
            evaluate(args, scorer, streams, file)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*stop.args, file.state()) from None


def make_data(scorer: Scorer, streams: list[Stream], form: Form, file: LineFile) -> None:
    """Write a line for each row, in one of the FORMS."""
    counts, written = RowCounts(), 0
    for scored in score_windows(scorer, streams, file.start, form):
        counts.add([record for record, _ in scored])
        lines = [line for _, line in scored if line]
        file.write(lines)
        written += len(lines)
    distributed.log(f"{counts}, {written:,} lines written{f' to {file.path}' if file.path else ''}")


def evaluate(args: ScorerSettings, scorer: Scorer, streams: list[Stream], file: LineFile) -> None:
    """Score rows and print the metrics; write scores.jsonl and the report if there is a folder."""
    counts, tallies = RowCounts(), Tallies(args.label)

    def counted() -> Iterator[dict]:
        for part in score_records(scorer, streams, file):
            counts.add(part)
            tallies.add(part)
            yield from part

    records = counted()
    benchmark = PUBLIC_BENCHMARKS[args.benchmark].sections(records) if args.benchmark else None
    deque(records, maxlen=0)  # without a benchmark nobody has asked for them yet
    if not distributed.is_main():
        return
    print(counts)
    if not counts.scored:
        raise InputError(f"{', '.join(s.path for s in streams)}: no row has an answer to score")
    report: dict[str, Any] = {
        "model": args.model_name_or_path,
        "data": [stream.path for stream in streams],
        "settings": asdict(scorer.encoder.settings),
        "label": args.label,
        "rows": asdict(counts),
        "results": tallies.results(),
        "benchmark": benchmark,
    }
    print_results(report["results"])
    if benchmark:
        print_table(benchmark_table(benchmark))
    if file.path:
        write_report(file.path.parent, report)
        print(f"scores.jsonl, report.md, report.json and pictures are in {file.path.parent}")


if __name__ == "__main__":
    exit_code = 0
    try:
        main(ARGS)
    except InputError as error:
        if distributed.is_first_on_node():
            print(f"error: {error}", file=sys.stderr)
        exit_code = 2
    except KeyboardInterrupt as stop:
        exit_code, *saved = stop.args
        if distributed.is_main():
            print(f"stopped; {' '.join(saved) or 'nothing was written'}", file=sys.stderr)
    if distributed.world_size() > 1:
        distributed.leave(exit_code)
    sys.exit(exit_code)
