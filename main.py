"""Train a reward model from comparisons.

    python main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl
    deepspeed main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl \
        --zero_stage 2

`python main.py --help` lists every flag; README.md describes the data and the output folder.
"""

import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from utils.arguments import InputError, parse_training_arguments

# A wrong flag is answered before the seconds that the imports below take.
ARGS = parse_training_arguments() if __name__ == "__main__" else None

import numpy as np
import torch
import transformers

from utils import distributed
from utils.data.batching import PlannedBatches, load_batches, make_collator
from utils.data.sampling import Grouping, MicroBatch, evaluation_plan, padded_tokens, training_plan
from utils.data.sources import load_training_data
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.evaluation.metrics import SUMS, comparison_sums
from utils.evaluation.report import model_card
from utils.evaluation.scoring import evaluate
from utils.model import hub
from utils.model.adapters import add_lora
from utils.model.shared_prefix import choose_layout
from utils.training.engine import (
    build_engine,
    deepspeed_config,
    gather_weights,
    resolve_precision,
    step_engine,
)
from utils.training.log import RunLog, write_arguments
from utils.training.loss import pairwise_loss
from utils.training.throughput import Throughput, parameter_size


def main(args) -> None:
    """Train as the command line says: data, model, engine, loop, save."""
    transformers.utils.logging.set_verbosity_error()  # hub.py reports what loading finds
    transformers.utils.logging.disable_progress_bar()
    check_output_dir(args)
    distributed.keep_freed_memory()
    device = distributed.initialize(args.local_rank)
    for note in resolve_precision(args, device):
        distributed.log(note)
    ds_config = deepspeed_config(args, distributed.world_size())
    config = hub.load_config(args.model_name_or_path, args.trust_remote_code)
    hub.set_dropout(config, args.dropout)
    args.batch_layout, notes = choose_layout(config, args.batch_layout)
    for note in notes:
        distributed.log(note)
    encoder = prepare_text(args, config)
    train_rows, eval_rows, counts = load_training_data(args, encoder)
    collate = make_collator(encoder, args.batch_layout, args.pad_to_multiple_of)
    plans, eval_plan = make_plans(args, train_rows, eval_rows)
    counts["tokens_per_epoch"] = count_tokens(train_rows, plans[0], device)
    if args.dry_run:
        show_plan(args, ds_config, encoder, train_rows, collate, counts, plans)
        return
    write_arguments(args, ds_config, counts, global_batch_size(args, plans, len(train_rows)))
    total_steps = count_steps(args, plans)
    engine = build_model_and_engine(args, config, encoder.tokenizer, ds_config, total_steps)
    throughput = Throughput(engine.module, device, args.dtype, distributed.world_size())
    log = RunLog(args, total_steps, engine.monitor, throughput)
    eval_batches = load_batches(eval_rows, eval_plan, collate)
    train_batches = [load_batches(train_rows, [m for s in p for m in s], collate) for p in plans]
    result = train(args, engine, train_batches, eval_batches, device, log)
    log.finish()
    save(args, engine, encoder, counts, result)


def check_output_dir(args) -> None:
    """Refuse to train over a model that somebody saved."""
    models = [*Path(args.output_dir).glob("*.safetensors"), Path(args.output_dir) / "config.json"]
    if any(path.exists() for path in models) and not (args.overwrite_output_dir or args.dry_run):
        raise InputError(
            f"--output_dir {args.output_dir} already holds a model: give another folder, or "
            "--overwrite_output_dir"
        )
    if Path(args.output_dir).is_file():
        raise InputError(f"--output_dir {args.output_dir} is a file; expected a folder")


def prepare_text(args, config) -> ComparisonTokenizer:
    """The tokenizer, with its end and padding tokens, and what makes rows of comparisons."""
    longest = getattr(config, "max_position_embeddings", None) or args.max_seq_len
    if args.max_seq_len > longest:
        raise InputError(
            f"--max_seq_len is {args.max_seq_len}, but {args.model_name_or_path} has "
            f"{longest} positions: give at most that"
        )
    tokenizer = hub.load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    end_token, notes = prepare_tokenizer(tokenizer, args.add_eot_token)
    for note in notes:
        distributed.log(note)
    args.num_padding_at_beginning = check_num_padding_at_beginning(
        tokenizer, end_token, args.num_padding_at_beginning
    )
    settings = TextSettings(
        end_token, args.max_seq_len, args.overlength, args.score_position, args.apply_chat_template
    )
    return ComparisonTokenizer(tokenizer, settings)


def make_plans(args, train_rows, eval_rows):
    """This rank's micro-batches: the steps of each epoch, and one pass over the evaluation set."""
    rank = distributed.rank()
    group = partial(
        Grouping.of,
        layout=args.batch_layout,
        world_size=distributed.world_size(),
        max_tokens=args.max_tokens_per_micro_batch,
    )
    grouping = group(
        train_rows,
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
    )
    plans = [training_plan(grouping, rank, args.seed, e) for e in range(args.num_train_epochs)]
    grouping = group(eval_rows, batch_size=args.per_device_eval_batch_size)
    return plans, evaluation_plan(grouping, rank, args.eval_iters)


def count_tokens(rows, plan, device) -> dict[str, int]:
    """Tokens of an epoch over all ranks, packed and with the same micro-batches padded."""
    answers = np.asarray([len(numbers) for numbers in rows["answers"]])
    padded = padded_tokens([m for step in plan for m in step], answers, np.asarray(rows["length"]))
    padded = int(distributed.sum_over_ranks(torch.tensor([padded], device=device)))
    packed = sum(rows["tokens"])
    distributed.log(
        f"an epoch has {packed:,} tokens packed; padded to the longest answer of each micro-batch "
        f"{padded:,}, {padded / packed:.1f} times as many"
    )
    return {"packed": packed, "padded": padded}


def count_steps(args, plans) -> int:
    """Optimiser steps of the whole run."""
    steps = sum(map(len, plans))
    return min(steps, args.max_steps or steps)


def global_batch_size(args, plans, comparisons: int) -> float:
    """Comparisons in an optimiser step over all ranks; on average, where tokens limit them."""
    if args.max_tokens_per_micro_batch:
        return round(comparisons / len(plans[0]), 1)
    micro_batches = args.gradient_accumulation_steps * distributed.world_size()
    return args.per_device_train_batch_size * micro_batches


def build_model_and_engine(args, config, tokenizer, ds_config, total_steps):
    """Load the model with its head, add LoRA, hand it to DeepSpeed."""
    transformers.set_seed(args.seed)  # the same head on every rank
    # Transformers loads the weights in partitions while this object lives.
    zero3 = None
    if ds_config["zero_optimization"]["stage"] == 3:
        zero3 = transformers.integrations.HfDeepSpeedConfig(ds_config)
    model, notes = hub.load_model(
        args.model_name_or_path,
        config,
        tokenizer,
        layout=args.batch_layout,
        new_head=True,
        trust_remote_code=args.trust_remote_code,
    )
    del zero3
    for note in notes:
        distributed.log(note)
    if args.lora_dim:
        layers = add_lora(model, args.lora_dim, args.lora_module_name, args.only_optimize_lora)
        distributed.log(f"LoRA of rank {args.lora_dim} on {layers} linear layers")
    if args.gradient_checkpointing:
        model.model.activation_checkpointing_enable()
    sizes = {p: parameter_size(p) for p in model.parameters()}
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    distributed.log(f"{trained:,} of {sum(sizes.values()):,} parameters train")
    transformers.set_seed(args.seed + distributed.rank())  # other dropout on every rank
    return build_engine(model, ds_config, args, total_steps)


def train(args, engine, train_batches, eval_batches, device, log) -> dict:
    """The loop: evaluate, then steps with evaluations between; returns the last evaluation."""
    result = evaluate(engine, eval_batches, device)
    log.evaluation(0, 0.0, result)
    step, total_steps = 0, log.total_steps
    engine.train()  # a loaded model has its dropout off
    for epoch, loader in enumerate(train_batches):
        batches, steps = iter(loader), len(loader) // args.gradient_accumulation_steps
        for number in range(1, steps + 1):
            started, learning_rate = time.perf_counter(), engine.get_lr()[0]
            sums, norm = run_step(args, engine, batches, device, step + 1)
            step += 1
            passed = epoch + number / steps
            seconds = time.perf_counter() - started
            values = {"skipped_steps": engine.skipped_steps} if args.dtype == "fp16" else {}
            log.step(step, passed, sums, seconds, lr=learning_rate, grad_norm=norm, **values)
            at_end = number == steps or step == total_steps
            if at_end or (args.eval_interval and step % args.eval_interval == 0):
                result = evaluate(engine, eval_batches, device)
                log.evaluation(step, passed, result)
            if step == total_steps:
                return result
    return result


def run_step(args, engine, batches, device, step: int) -> tuple[torch.Tensor, float]:
    """Forward and backward over the micro-batches of one step, then the optimiser.

    Returns:
        Sums over all ranks for RunLog.step, and the norm of the gradient.

    Raises:
        FloatingPointError: the loss is not finite; in fp16, the loss scaler skips such a step.
    """
    sums = torch.zeros(len(SUMS) + 4, dtype=torch.float64, device=device)
    for micro_step in range(args.gradient_accumulation_steps):
        batch = next(batches)
        sums[len(SUMS) :] += batch.work().to(device)
        batch = batch.to(device)
        scores = engine(batch)
        engine.backward(pairwise_loss(scores, batch.pairs, batch.weight))
        sums[: len(SUMS)] += comparison_sums(scores.detach(), batch).sum(dim=0)
        if micro_step < args.gradient_accumulation_steps - 1:
            engine.step()  # only counts the micro-batch
    distributed.sum_over_ranks(sums)
    if not sums.isfinite().all() and args.dtype != "fp16":
        raise FloatingPointError(
            f"the loss is not finite at step {step}: lower --learning_rate, or check the data; "
            "nothing was saved over what --output_dir held before"
        )
    return sums, step_engine(engine)


def show_plan(args, ds_config, encoder, rows, collate, counts, plans) -> None:
    """Print what a run would do, for --dry_run."""
    parts = {"arguments": vars(args), "DeepSpeed": ds_config, "data": counts}
    for title, part in parts.items():
        distributed.log(f"{title}: {json.dumps(part, indent=2)}")
    distributed.log(
        f"global batch: {global_batch_size(args, plans, len(rows)):g} comparisons, "
        f"{count_steps(args, plans)} steps in all"
    )
    batch = PlannedBatches(rows, [MicroBatch([0, 1], [1.0, 1.0])], collate)[0]
    distributed.log(
        f"one batch, {args.batch_layout}, {batch.attention_mask.sum()} tokens, pairs (better, "
        f"worse) {batch.pairs.tolist()}:"
    )
    ends = encoder.tokenizer.batch_decode(batch.input_ids.flatten()[batch.end_index][:, None])
    sequences = [ids for row in rows[[0, 1]]["input_ids"] for ids in row]
    for number, (ids, end) in enumerate(zip(sequences, ends, strict=True)):
        text = encoder.tokenizer.decode(ids)
        distributed.log(f"[{number}] {len(ids)} tokens, scored at {end}: {text!r}")


def save(args, engine, encoder, counts, result) -> None:
    """Write the model; every rank takes part in gathering its weights."""
    state_dict = gather_weights(engine)
    if distributed.is_main():
        settings = asdict(encoder.settings)
        card = model_card(args, settings, counts, result)
        model = engine.module
        hub.save_model(model, state_dict, encoder.tokenizer, settings, card, args.output_dir)
    distributed.barrier()
    if engine.skipped_steps:
        distributed.log(f"{engine.skipped_steps} steps were skipped by the fp16 loss scaler")
    distributed.log(f"model, metrics.jsonl and training_curves.png are in {args.output_dir}")


if __name__ == "__main__":
    exit_code = 0
    try:
        main(ARGS)
    except (InputError, FloatingPointError) as error:
        exit_code = 2 if isinstance(error, InputError) else 1
        if distributed.is_first_on_node():
            print(f"error: {error}", file=sys.stderr)
    distributed.leave(exit_code)
