"""Train a reward model from comparisons.

    python main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl
    deepspeed main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl \
        --zero_stage 2

`python main.py --help` lists every flag; docs/ describes data, losses, output and more.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils.settings import InputError, Stopped, stop_on_signals
from utils.training.settings import TrainingSettings, parse_training_arguments

# A wrong flag is answered before the seconds that the imports below take.
if __name__ == "__main__":
    stop_on_signals()
    ARGS = parse_training_arguments()

import torch
from transformers import PreTrainedConfig

from utils import distributed
from utils.audit.audit import audit
from utils.data.packing import make_collator
from utils.data.row_selection import Split, choose_rows, join_rows
from utils.estimates import estimate_seconds, print_estimate
from utils.model import pretrained
from utils.model.layout_trial import choose_layout
from utils.model.positions import fix_positions
from utils.training.checkpoint import remove_foreign_states
from utils.training.checks import CheckError, ModelChecks
from utils.training.engine import build_engine, deepspeed_config, resolve_precision
from utils.training.folders import check_folders
from utils.training.log import RunLog, write_arguments
from utils.training.loop import Trainer
from utils.training.loss import loss_inputs
from utils.training.micro_batches import choose_max_tokens, fit_max_tokens
from utils.training.model import build_model, check_model, make_training_encoder
from utils.training.plan import PlannedBatches, plan_evaluation, plan_run, show_plan
from utils.training.resume import Resume
from utils.training.saving import ModelSaver, conclude
from utils.training.throughput import Throughput

# The flags on which an audit depends; its report names them.
AUDITED = ("data_path", "eval_data_path", "model_name_or_path", "max_seq_len", "overlength")


def main(args: TrainingSettings) -> None:
    """Train as the command line says: data, model, engine, loop, save."""
    pretrained.quieten_libraries()
    distributed.keep_freed_memory()
    device = distributed.initialize(args.local_rank)
    check_folders(args)

    # What the flags leave open: the device and the model's config decide it.
    args, notes = resolve_precision(args, device)
    distributed.log(*notes)
    ds_config = deepspeed_config(args, distributed.world_size())
    config = pretrained.load_config(args.model_name_or_path, args.trust_remote_code)
    if not isinstance(args.dropout, str):  # OWN_DROPOUT
        pretrained.set_dropout(config, args.dropout)
    distributed.log(*fix_positions(config, args.max_seq_len))
    if args.estimate_memory:
        print_estimate(pretrained.empty_model(config, trust_remote_code=args.trust_remote_code))
        return

    # What is wrong with the model or the state shows before minutes of tokenising.
    check_model(args, config)
    layout, notes = choose_layout(config, args.batch_layout, args.max_seq_len)
    args = replace(args, batch_layout=layout)
    distributed.log(*notes)
    resume = Resume(args, device)

    # The data: token rows, why some are not used, and what is found in them.
    args, encoder = make_training_encoder(args, config, resume.template_date)
    inputs = loss_inputs(args)
    splits = choose_rows(args, encoder, inputs, args.seed)
    look_at_data(args, config, splits, device)
    if args.audit_data:
        return

    # The steps that are left.
    data = join_rows(args, splits, inputs)
    collate = make_collator(encoder, layout, inputs)
    limit_is_open = args.max_tokens_per_micro_batch is None
    args, notes = choose_max_tokens(args, data, device)
    distributed.log(*notes)
    plan = plan_run(args, data, resume.progress, device)
    data.counts.update(tokens_per_epoch=plan.tokens, comparisons_per_epoch=plan.left.epoch_size)
    resume.check(plan.identity)
    if args.dry_run:
        show_plan(args, data, plan, encoder, ds_config=ds_config, collate=collate)
        return

    # The model in its engine, as it was when the state was saved.
    resume.prepare(ds_config)
    model = build_model(args, config, encoder.tokenizer, ds_config)
    engine = build_engine(model, ds_config, args, plan.total_steps)
    resume.load(engine)
    if limit_is_open and args.max_tokens_per_micro_batch:
        args = fit_max_tokens(args, engine, data, collate, device)

    # What is written from here on.
    remove_foreign_states(args, resume.checkpoint)
    write_arguments(args, ds_config, data.counts, plan.identity.batch)
    throughput = Throughput(
        engine.module, device, args.dtype, distributed.world_size(), ends_only=collate.ends_only
    )
    log = RunLog(
        args,
        plan.total_steps,
        engine.monitor,
        throughput,
        step=resume.progress.step,
        before=resume.log,
    )
    checks = ModelChecks(args, data.evaluation, encoder, device)
    save_model = ModelSaver(
        args=args, engine=engine, encoder=encoder, counts=data.counts, checks=checks
    )

    trainer = Trainer(
        args=args,
        engine=engine,
        device=device,
        log=log,
        progress=resume.progress,
        epoch_size=plan.left.epoch_size,
        run=plan.identity.as_dict(),
        save_model=save_model,
        best=resume.best_model(),
    )
    steps = plan.left.within(args.max_tokens_per_micro_batch or 0)
    evaluation = plan_evaluation(args, data, make_collator(encoder, layout))
    trainer.train(PlannedBatches(data.train, steps, collate), *evaluation)
    conclude(trainer, checks)


def look_at_data(
    args: TrainingSettings, config: PreTrainedConfig, splits: list[Split], device: torch.device
) -> None:
    """Print what the data are like; with --audit_data write it; with --strict end if it is bad."""
    serious = False

    if distributed.is_main():
        folder = Path(args.output_dir) / "audit" if args.audit_data else None
        estimate = partial(
            estimate_seconds, args, config, device=device, world_size=distributed.world_size()
        )

        serious = audit(
            splits,
            {name: getattr(args, name) for name in AUDITED},
            folder=folder,
            estimate=estimate if folder else None,
        )
        if folder:
            distributed.log(f"audit.md, rows.jsonl with every bad row and pictures are in {folder}")

    if args.strict and distributed.from_main(serious):
        distributed.log("ended by --strict: something serious was found in the data (marked !!)")
        raise SystemExit(3)


if __name__ == "__main__":
    exit_code = 0

    try:
        main(ARGS)
    except SystemExit as stop:
        exit_code = int(stop.code or 0)
    except Stopped as stop:  # once it trains, Trainer saves the state
        exit_code = stop.exit_code
        distributed.log("stopped before the first step; the same command begins again")
    except (InputError, CheckError, FloatingPointError) as error:
        exit_code = 2 if isinstance(error, InputError) else 1
        if distributed.is_first_on_node():
            print(f"error: {error}", file=sys.stderr)

    distributed.leave(exit_code)
