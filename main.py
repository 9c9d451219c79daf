"""Train a reward model from comparisons.

    python main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl
    deepspeed main.py --model_name_or_path facebook/opt-350m --data_path comparisons.jsonl \
        --zero_stage 2

`python main.py --help` lists every flag; docs/ describes data, losses, output and more.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.settings import InputError, stop_on_signals
from utils.training.settings import TrainingSettings, parse_training_arguments

# A wrong flag is answered before the seconds that the imports below take.
if __name__ == "__main__":
    stop_on_signals()
    ARGS = parse_training_arguments()

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from utils import distributed
from utils.audit.audit import audit
from utils.data.batching import make_collator
from utils.data.rendering.templates import fix_date
from utils.data.sides import Sides, load_sides
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.data.training_data import choose, remove_repeats
from utils.estimates import estimate_seconds, print_estimate
from utils.model import pretrained
from utils.model.layout import choose_layout
from utils.model.lora import add_lora, find_layers, merge_lora, save_adapter
from utils.model.positions import fix_positions
from utils.model.reward_model import RewardModel, check_head
from utils.training.checkpoint import (
    NO_MODEL,
    Checkpoint,
    Progress,
    find_checkpoint,
    forget_saved_model,
    load_checkpoint,
    remove_foreign_states,
    reshard,
)
from utils.training.checks import CheckError, ModelChecks
from utils.training.engine import build_engine, deepspeed_config, gather_weights, resolve_precision
from utils.training.folders import check_folders
from utils.training.log import RunLog, write_arguments
from utils.training.loop import Trainer
from utils.training.loss import loss_inputs
from utils.training.model_card import model_card
from utils.training.plan import plan_evaluation, plan_run, show_plan
from utils.training.throughput import Throughput, parameter_size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# What an audit holds for.
AUDITED = ("data_path", "eval_data_path", "model_name_or_path", "max_seq_len", "overlength")


def main(args: TrainingSettings) -> None:
    """Train as the command line says: data, model, engine, loop, save."""
    pretrained.quieten_libraries()
    distributed.keep_freed_memory()
    device = distributed.initialize(args.local_rank)
    check_folders(args)
    args, notes = resolve_precision(args, device)
    distributed.log(*notes)
    ds_config = deepspeed_config(args, distributed.world_size())
    config = pretrained.load_config(args.model_name_or_path, args.trust_remote_code)
    pretrained.set_dropout(config, args.dropout)
    distributed.log(*fix_positions(config, args.max_seq_len))
    if args.estimate_memory:
        print_estimate(pretrained.empty_model(config, trust_remote_code=args.trust_remote_code))
        return
    check_model(args, config)  # before minutes of tokenising
    layout, notes = choose_layout(config, args.batch_layout, args.max_seq_len)
    args = replace(args, batch_layout=layout)
    distributed.log(*notes)
    checkpoint = find_checkpoint(args, device)
    progress = checkpoint.progress if checkpoint else Progress()
    args, encoder = prepare_text(args, config, checkpoint)
    collate = make_collator(encoder, layout, loss_inputs(args))
    eval_collate = make_collator(encoder, layout)
    sides = load_sides(args, encoder)
    remove_repeats(args, sides)
    look_at_data(args, config, sides, device)
    if args.audit_data:
        return
    data = choose(args, sides)
    plan = plan_run(args, data, collate, progress, device)
    data.counts.update(tokens_per_epoch=plan.tokens, comparisons_per_epoch=plan.epoch_size)
    if checkpoint:
        checkpoint.check_run(plan.run, plan.step_size, plan.said)
    if args.dry_run:
        show_plan(args, ds_config, encoder, data, plan, collate)
        return
    if checkpoint:
        state_folder = reshard(checkpoint, ds_config, args)
    model = load_model(args, config, encoder.tokenizer, ds_config)
    engine = build_engine(model, ds_config, args, plan.total_steps)
    if checkpoint:
        load_checkpoint(engine, checkpoint, state_folder)
    remove_foreign_states(args, checkpoint)
    write_arguments(args, ds_config, data.counts, plan.batch_size)
    throughput = Throughput(engine.module.model, device, args.dtype, distributed.world_size())
    before = checkpoint.log if checkpoint else None
    log = RunLog(args, plan.total_steps, engine.monitor, throughput, progress.step, before)
    checks = ModelChecks(args, data.evaluation, encoder, device)
    save_model = partial(save, args, engine, encoder, data.counts, checks)
    best = checkpoint.best(args.output_dir) if checkpoint and args.save_best else NO_MODEL
    run = plan.state()
    trainer = Trainer(args, engine, device, log, progress, plan.epoch_size, run, save_model, best)
    trainer.train(plan.batches, *plan_evaluation(args, data, eval_collate))
    conclude(args, trainer, checks)


def check_model(args: TrainingSettings, config: PreTrainedConfig) -> None:
    """See that the model will load, and that LoRA finds its layers; no weight is read."""
    empty = pretrained.empty_model(config, trust_remote_code=args.trust_remote_code)
    check_head(args.model_name_or_path, empty)
    # For a look at the data, nothing is downloaded that only training needs.
    if Path(args.model_name_or_path).is_dir() or not (args.audit_data or args.dry_run):
        pretrained.check_weights(args.model_name_or_path, config, True, args.trust_remote_code)
    if args.lora_dim:
        find_layers(empty.base_model, args.lora_module_name)


def prepare_text(
    args: TrainingSettings, config: PreTrainedConfig, checkpoint: Checkpoint | None
) -> tuple[TrainingSettings, ComparisonTokenizer]:
    """The settings with what the tokenizer says, and what makes rows of comparisons."""
    longest = getattr(config, "max_position_embeddings", None) or args.max_seq_len
    if args.max_seq_len > longest:
        raise InputError(
            f"--max_seq_len is {args.max_seq_len}, but {args.model_name_or_path} has "
            f"{longest} positions: give at most that"
        )
    tokenizer = pretrained.load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    end_token, notes = prepare_tokenizer(tokenizer, args.add_eot_token, args.chat_template)
    before = checkpoint.run.get("--chat_template_date") if checkpoint else None
    date = fix_date(tokenizer, args.chat_template_date or before)
    if date:
        notes.append(f"the chat template writes a date, for good {date}")
    distributed.log(*notes)
    padding = check_num_padding_at_beginning(tokenizer, end_token, args.num_padding_at_beginning)
    args = replace(args, chat_template_date=date, num_padding_at_beginning=padding)

    settings = TextSettings(
        end_token, args.max_seq_len, args.overlength, args.score_position, args.apply_chat_template
    )
    return args, ComparisonTokenizer(tokenizer, settings)


def look_at_data(
    args: TrainingSettings, config: PreTrainedConfig, sides: Sides, device: torch.device
) -> None:
    """Print what the data are like; with --audit_data write it; with --strict end if it is bad."""
    serious = False
    if distributed.is_main():
        folder = Path(args.output_dir) / "audit" if args.audit_data else None
        estimate = partial(
            estimate_seconds, args, config, device, world_size=distributed.world_size()
        )
        serious = audit(
            sides.train,
            sides.evaluation,
            {name: getattr(args, name) for name in AUDITED},
            ties=args.tie_threshold > 0,
            folder=folder,
            estimate=estimate if folder else None,
        )
        if folder:
            distributed.log(f"audit.md, rows.jsonl with every bad row and pictures are in {folder}")
    if args.strict and distributed.from_main(serious):
        distributed.log("ended by --strict: something serious was found in the data (marked !!)")
        raise SystemExit(3)


def load_model(
    args: TrainingSettings,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    ds_config: dict,
) -> RewardModel:
    """Load the model with its head, and add LoRA; ZeRO-3 partitions it."""
    transformers.set_seed(args.seed)  # the same head on every rank
    model, notes = pretrained.load_model(
        args.model_name_or_path,
        config,
        tokenizer,
        layout=args.batch_layout,
        new_head=True,
        trust_remote_code=args.trust_remote_code,
        ds_config=ds_config,
    )
    distributed.log(*notes)
    if args.lora_dim:
        layers = add_lora(
            model, args.lora_dim, args.lora_alpha, args.lora_module_name, args.only_optimize_lora
        )
        rate = f"--lora_learning_rate {args.lora_learning_rate:g}"
        distributed.log(f"LoRA of rank {args.lora_dim} on {layers} linear layers, {rate}")
    if args.gradient_checkpointing:
        model.model.activation_checkpointing_enable()
    sizes = {p: parameter_size(p) for p in model.parameters()}
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    distributed.log(f"{trained:,} of {sum(sizes.values()):,} parameters train")
    return model


def save(
    args: TrainingSettings,
    engine: "DeepSpeedEngine",
    encoder: ComparisonTokenizer,
    counts: dict,
    checks: ModelChecks,
    result: dict,
) -> None:
    """Write the model, checked; every rank takes part in scoring and in gathering its weights."""
    checks.score(engine)
    state_dict = gather_weights(engine)
    if distributed.is_main():
        settings = asdict(encoder.settings)

        def save_more(folder: Path) -> None:
            if args.save_adapter:
                rank, alpha, base = args.lora_dim, args.lora_alpha, args.model_name_or_path
                save_adapter(state_dict, rank, alpha, base, folder / "adapter")
            for check in checks.run(folder):
                distributed.log(f"check: {check}")
            card = model_card(args, settings, counts, result, checks.results)
            (folder / "README.md").write_text(card, encoding="utf-8")

        pretrained.save_model(
            engine.module,
            merge_lora(state_dict, args.lora_scale),
            encoder.tokenizer,
            settings,
            args.output_dir,
            save_more,
            args.save_format,
            {"mean": result["score_mean"], "std": result["score_std"]},
        )
    distributed.barrier()


def conclude(args: TrainingSettings, trainer: Trainer, checks: ModelChecks) -> None:
    """Draw the curves, save the last model, and fail if the saved one did not pass its checks."""
    trainer.log.finish()
    if args.save_best:
        accuracy, step = trainer.best
        start = ", the untrained start" if step == 0 else ""
        end = f"at the end it was {trainer.result['accuracy']:.4f}"
        distributed.log(f"kept the model of step {step}{start}: accuracy {accuracy:.4f}, {end}")
    else:
        forget_saved_model(args)
        trainer.save_model(trainer.result)
    if skipped := trainer.engine.skipped_steps:
        distributed.log(f"{skipped} steps were skipped by the fp16 loss scaler")
    distributed.log(f"model, metrics.jsonl and training_curves.png are in {args.output_dir}")
    checks.report()


if __name__ == "__main__":
    exit_code = 0
    try:
        main(ARGS)
    except SystemExit as stop:
        exit_code = int(stop.code or 0)
    except KeyboardInterrupt as stop:  # later ones save the training state (Trainer)
        exit_code = stop.args[0]
        distributed.log("stopped before the first step; the same command begins again")
    except (InputError, CheckError, FloatingPointError) as error:
        exit_code = 2 if isinstance(error, InputError) else 1
        if distributed.is_first_on_node():
            print(f"error: {error}", file=sys.stderr)
    distributed.leave(exit_code)
