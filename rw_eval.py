"""Score answers with a reward model, or evaluate it on comparisons.

    python rw_eval.py --model_name_or_path output
    python rw_eval.py --model_name_or_path output --prompt "..." --response "..." --response "..."
    python rw_eval.py --model_name_or_path output --data_path comparisons.jsonl --output_dir report

`python rw_eval.py --help` lists every flag.
"""

import json
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

from utils.arguments import InputError
from utils.evaluation.arguments import parse_evaluation_arguments

# A wrong flag is answered before the seconds that the imports below take.
ARGS = parse_evaluation_arguments() if __name__ == "__main__" else None

import datasets
import numpy as np
import torch
import transformers

from utils import distributed
from utils.data.batching import load_batches, make_collator
from utils.data.comparison import Comparison
from utils.data.sampling import Grouping, evaluation_plan
from utils.data.sources import count_rows, describe, load_source
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.evaluation.metrics import SUMS, comparison_sums, summarize
from utils.evaluation.report import print_results, print_scores
from utils.evaluation.scoring import score_batches
from utils.model import hub
from utils.model.shared_prefix import choose_layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

BUILT_IN = (
    (
        "Please tell me about Microsoft in a few sentences.",
        "Microsoft is a technology company that was founded in 1975 by Bill Gates and Paul Allen. "
        "It is best known for the Windows operating system and for the Office programs, and it "
        "also makes the Xbox and runs a large cloud service.",
        "I'm not sure.",
    ),
    (
        "Explain the moon landing to a 6 year old in a few sentences.",
        "A long time ago, in 1969, three people flew to the Moon in a big rocket. Two of them "
        "climbed down a ladder and walked on the dusty ground. They picked up some stones, put up "
        "a flag, and then they flew all the way home.",
        "I don't know, I don't know.",
    ),
)


def main(args) -> None:
    """Score what the command line names: a data set, one prompt, or the built-in prompts."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    distributed.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = hub.load_config(args.model_name_or_path, args.trust_remote_code)
    args.batch_layout, notes = choose_layout(config, args.batch_layout)
    encoder = load_encoder(args, config)
    collate = make_collator(encoder, args.batch_layout, args.pad_to_multiple_of)
    for note in notes:
        print(note)
    # Text before the model: what is wrong with it shows at once.
    work = load_rows(args, encoder) if args.data_path else tokenize_prompts(args, encoder)
    model, _ = hub.load_model(
        args.model_name_or_path,
        config,
        encoder.tokenizer,
        dtype=DTYPES[args.dtype],
        layout=args.batch_layout,
        trust_remote_code=args.trust_remote_code,
    )
    model.to(device).eval()
    if args.data_path:
        evaluate_rows(args, model, encoder, collate, work, device)
    else:
        score_prompts(args, model, collate, work, device)


def load_encoder(args, config) -> ComparisonTokenizer:
    """The tokenizer with training's settings, where the command line does not override them."""
    tokenizer = hub.load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    end_token, notes = prepare_tokenizer(tokenizer, args.add_eot_token)
    saved = getattr(config, "reward_settings", None)
    if saved is None:
        positions = getattr(config, "max_position_embeddings", None) or 2048
        saved = {"end_token": end_token, "max_seq_len": min(positions, 2048)}
        notes.append(
            f"the checkpoint does not say how it was trained: answers end with {end_token} and "
            f"sequences with {saved['max_seq_len']} tokens; see --help for other settings"
        )
    elif args.add_eot_token:
        saved = {**saved, "end_token": end_token}
    for note in notes:
        print(note)
    names = ("max_seq_len", "score_position", "apply_chat_template")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = replace(TextSettings(**saved), **given)
    check_num_padding_at_beginning(tokenizer, settings.end_token, args.num_padding_at_beginning)
    return ComparisonTokenizer(tokenizer, settings)


def tokenize_prompts(args, encoder: ComparisonTokenizer) -> list[tuple[str, list[str], dict]]:
    """The prompt of the command line, or the built-in ones: title, answers, row of token ids.

    Raises:
        InputError: an answer is empty or too long.
    """
    if args.prompt is not None:
        prompts = [(args.prompt, args.prompt, args.response)]
    else:
        prompts = [(q, [{"role": "user", "content": q}], answers) for q, *answers in BUILT_IN]
    work = []
    for title, prompt, answers in prompts:
        comparison = Comparison(prompt, answers, range(len(answers)), "command line")
        (row,) = encoder.rows([comparison])
        for number, answer in enumerate(answers):
            if number not in row["answers"]:
                raise InputError(
                    f"the answer {answer[:60]!r} is empty or has more than "
                    f"{encoder.settings.max_seq_len} tokens: give another --response "
                    "or --max_seq_len"
                )
        work.append((title, answers, row))
    return work


def score_prompts(args, model, collate, work, device) -> None:
    """Score and print what `tokenize_prompts` made."""
    batches = [collate([row], [1.0]) for _, _, row in work]
    for (title, answers, _), (scores, _) in zip(
        work, score_batches(model, batches, device, "Scoring"), strict=True
    ):
        built_in = args.prompt is None
        labels = ["good", "bad"] if built_in else [str(n + 1) for n in range(len(answers))]
        print_scores(title, list(zip(labels, answers, scores.tolist(), strict=True)))
        if built_in:
            print(f"good answer {'above' if scores[0] > scores[1] else 'NOT above'} the bad one\n")


def load_rows(args, encoder: ComparisonTokenizer) -> datasets.Dataset:
    """All comparisons of the data sets that have an answer to score, and `index` over all."""
    parts, before = [], 0
    for path in args.data_path:
        splits = load_source(path, encoder, args.data_output_path)
        rows = splits.get("test", splits["train"])
        name = f"{path} (test)" if "test" in splits else path
        print(describe(name, count_rows(rows)))
        rows = rows.remove_columns("index").add_column("index", np.arange(len(rows)) + before)
        before += len(rows)
        parts.append(rows.select(np.flatnonzero(np.asarray(rows["length"]))))
    rows = datasets.concatenate_datasets(parts)
    if not len(rows):
        raise InputError(f"{', '.join(args.data_path)}: no comparison has an answer to score")
    return rows


def evaluate_rows(args, model, encoder, collate, rows, device) -> None:
    """Score a data set, print its metrics by source, write scores.jsonl and report.json."""
    plan = evaluation_plan(Grouping.of(rows, args.batch_layout, args.batch_size))
    batches = load_batches(rows, plan, collate)
    scores_of, sums = {}, defaultdict(lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    sources = rows["source"]
    for (scores, batch), micro_batch in zip(
        score_batches(model, batches, device, "Scoring"), plan, strict=True
    ):
        by_comparison = scores.split(batch.answer_counts.tolist())
        for number, weight, part, added in zip(
            *micro_batch, by_comparison, comparison_sums(scores, batch).cpu(), strict=True
        ):
            if weight:
                scores_of[number] = part.tolist()
                sums[sources[number]] += added
    results = {source: summarize(sums[source]) for source in sorted(sums)}
    results = {**results, "all": summarize(sum(sums.values()))} if len(sums) > 1 else results
    print_results(results)
    if args.output_dir:
        write_scores(args, encoder, rows, scores_of, results)


def write_scores(args, encoder, rows, scores_of, results) -> None:
    """Write scores.jsonl in the order of the input, and report.json."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scores.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            scores = dict(zip(row["answers"], scores_of[number], strict=True))
            line = {
                "index": row["index"],
                "source": row["source"],
                "ranks": row["ranks"],
                # An answer that was left out, empty or too long, has no score.
                "scores": [scores.get(answer) for answer in range(len(row["ranks"]))],
            }
            file.write(json.dumps(line) + "\n")
    report = {
        "model": args.model_name_or_path,
        "data": args.data_path,
        "settings": asdict(encoder.settings),
        "results": results,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"scores.jsonl and report.json are in {folder}")


if __name__ == "__main__":
    try:
        main(ARGS)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
