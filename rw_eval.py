"""Score answers with a reward model, or evaluate it on comparisons.

    python rw_eval.py --model_name_or_path output
    python rw_eval.py --model_name_or_path output --prompt "..." --response "..." --response "..."
    python rw_eval.py --model_name_or_path output --data_path comparisons.jsonl --output_dir report
    deepspeed rw_eval.py --model_name_or_path output --data_path ... --output_dir report
    python rw_eval.py --model_name_or_path output --serve 8000

`python rw_eval.py --help` lists every flag.
"""

import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from typing import TextIO

# First, since it says which package is missing.
from utils.settings import InputError, Stopped, stop_on_signals

# isort: split
from utils.evaluation.settings import ScorerSettings, parse_evaluation_arguments

# A wrong flag is answered before the seconds that the imports below take.
if __name__ == "__main__":
    stop_on_signals()
    ARGS = parse_evaluation_arguments()

import torch
from transformers import PreTrainedConfig

from utils import distributed
from utils.benchmarks.layouts import PUBLIC_BENCHMARKS, open_benchmark
from utils.data.packing import make_collator
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.compare import compare_models
from utils.evaluation.encoder import make_scoring_encoder
from utils.evaluation.evaluation import evaluate
from utils.evaluation.folder import begin_evaluation, check_evaluation_folder
from utils.evaluation.forms import FORMS, chosen_form, make_data
from utils.evaluation.line_file import LineFile
from utils.evaluation.prompts import given_prompts, score_prompts, score_typed
from utils.evaluation.rows import OpenSource, open_data
from utils.evaluation.scoring import Scorer
from utils.model import pretrained
from utils.model.layout_trial import choose_layout
from utils.model.positions import fix_positions
from utils.model.reward_model import check_head
from utils.serving.sockets import reserve


def main(args: ScorerSettings) -> None:
    """Do what the command line asks: compare two evaluations, or score with a model."""
    if args.compare:
        compare_models(args)
        return

    # If standard output is for the data that is made, everything else goes to standard error.
    output = sys.stdout if chosen_form(args) and not args.output_dir else None
    with redirect_stdout(sys.stderr) if output else nullcontext():
        score(args, output)


def score(args: ScorerSettings, output: TextIO | None) -> None:
    """Score what the command line names: rows, one prompt, requests, or the built-in prompts.

    Args:
        output: where data made with scores goes that has no --output_dir.
    """
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

    # Whether the weights are there, and with the scalar head, shows before rows are read.
    path, trust = args.model_name_or_path, args.trust_remote_code
    config = pretrained.load_config(path, trust)
    if args.dtype is None:
        args = replace(args, dtype=pretrained.scoring_dtype(config, device))
        if device.type != "cpu":
            distributed.log(f"--dtype is not given: {args.dtype} on this GPU")
    check_head(path, pretrained.empty_model(config, trust_remote_code=trust))
    checked = pretrained.check_weights(path, config, trust_remote_code=trust)

    # How text becomes tokens, and tokens become batches.
    tokenizer = pretrained.load_tokenizer(path, trust)
    args, encoder = make_scoring_encoder(args, config, tokenizer, checked.is_deepspeed_chat)
    distributed.log(*fix_positions(config, encoder.settings.max_seq_len))
    layout, notes = choose_layout(config, args.batch_layout, encoder.settings.max_seq_len)
    args = replace(args, batch_layout=layout)
    distributed.log(*notes)

    # What is wrong with rows, folder or port shows before the model is loaded.
    sources = open_rows(args, encoder)
    prompts = [] if sources or args.interactive or args.serve else given_prompts(args, encoder)
    if args.output_dir:
        check_evaluation_folder(args, encoder)
    listener = reserve(args.serve) if args.serve else None

    # The model, and what was asked of it.
    scorer = load_scorer(args, config, encoder, device)
    if sources:
        score_sources(args, scorer, sources, output)
    elif listener:
        from utils.serving.server import serve  # slow to import

        serve(args, scorer, listener)
    elif args.interactive:
        score_typed(scorer)
    elif distributed.is_main():
        score_prompts(args, scorer, prompts)


def open_rows(args: ScorerSettings, encoder: ComparisonTokenizer) -> list[OpenSource]:
    """The rows that --data_path or --benchmark name; none if neither is given."""
    with distributed.first_on_node():
        if args.benchmark:
            place = args.data_path[0] if args.data_path else None
            return open_benchmark(args.benchmark, place)

        sources = open_data(args, encoder.settings.apply_chat_template)
        distributed.log(*(source.note for source in sources))
        return sources


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


def score_sources(
    args: ScorerSettings, scorer: Scorer, sources: list[OpenSource], output: TextIO | None
) -> None:
    """Score all rows and write what was asked for: data made with the scores, or a report."""
    path = begin_evaluation(args, scorer.encoder) if args.output_dir else None
    file = LineFile(path, args.resume, output)

    try:
        if form := chosen_form(args):
            make_data(scorer, sources, FORMS[form], file)
        else:
            benchmark = PUBLIC_BENCHMARKS[args.benchmark] if args.benchmark else None
            score_benchmark = benchmark.score if benchmark else None
            evaluate(args, scorer, sources, file, score_benchmark)
    except Stopped as stop:
        stop.saved = file.state()
        raise


if __name__ == "__main__":
    exit_code = 0

    try:
        main(ARGS)
    except InputError as error:
        if distributed.is_first_on_node():
            print(f"error: {error}", file=sys.stderr)
        exit_code = 2
    except Stopped as stop:
        exit_code = stop.exit_code
        if distributed.is_main():
            print(f"stopped; {stop.saved or 'nothing was written'}", file=sys.stderr)

    if distributed.world_size() > 1:
        distributed.leave(exit_code)
    sys.exit(exit_code)
