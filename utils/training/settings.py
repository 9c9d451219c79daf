"""The command line of main.py, in groups, and what can be checked in it alone."""

import argparse
from functools import partial
from importlib.util import find_spec

from utils.data.settings import add_data, add_data_checks, add_tokenization, check_data
from utils.settings import FlagParser, add_layout, require, user_path

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)

# Flags that there were once, and what to do instead.
REMOVED = {
    "--streaming": "leave it out; tokenised rows are a file that is mapped, not held in memory "
    "(--data_output_path says where, --num_workers makes it faster)",
    "--offload nvme": "give --offload cpu, or name the device nvme in --deepspeed_config",
    "--nvme_path": "name the device nvme and its nvme_path in --deepspeed_config",
    "--pad_to_multiple_of": "leave it out; no batch needs it",
}


def parse_training_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse main.py's command line; a wrong flag or value exits with code 2.

    Args:
        argv: the words of the command line; None takes those of the process.
    """
    parser = training_parser()
    args = parser.parse(argv)
    _check_training(parser, args)
    return args


def training_parser() -> FlagParser:
    """The flags of main.py, in groups."""
    parser = FlagParser(
        prog="main.py",
        usage="main.py --model_name_or_path MODEL --data_path DATA [flags; see --help]",
        description="Finetune a causal language model into a reward model with DeepSpeed.",
        config="as max_seq_len: 512 or margin: true, or the training_args.json of a run",
        removed=REMOVED,
    )
    _add_model(parser)
    add_data(parser)
    add_data_checks(parser)
    add_tokenization(parser)
    _add_loss(parser)
    _add_batches(parser)
    _add_optimization(parser)
    _add_lora(parser)
    _add_deepspeed(parser)
    _add_evaluation(parser)
    _add_output(parser)
    _add_checkpoints(parser)
    return parser


def _add_model(parser):
    add = parser.add_argument_group("model").add_argument
    add(
        "--model_name_or_path",
        type=user_path,
        required=True,
        help="folder or hub name of the language model",
    )
    add(
        "--score_position",
        choices=("end", "first_pad", "mean"),
        default="end",
        help="the score is the value at the end token, at one padding token after it, or the mean "
        "of the values over the answer",
    )
    add("--dropout", type=float, help="dropout probability everywhere (default: the model's)")
    add(
        "--disable_dropout",
        dest="dropout",
        action="store_const",
        const=0.0,
        help="the same as --dropout 0, for early DeepSpeed-Chat command lines",
    )
    add(
        "--trust_remote_code",
        action="store_true",
        help="run model code that comes with the checkpoint; only for sources you trust",
    )


def _add_loss(parser):
    add = parser.add_argument_group("loss (evaluations report Bradley-Terry's)").add_argument
    add(
        "--loss",
        choices=("pairwise", "plackett_luce", "token_pairwise"),
        default="pairwise",
        help="over pairs (Bradley-Terry), over rankings, or over pairs at each token",
    )
    add("--margin", action="store_true", help="scores are to differ by the data's margin at least")
    add(
        "--label",
        choices=("hard", "soft"),
        default="hard",
        help="soft: the better answer is preferred with the probability that the data's votes say",
    )
    number = partial(add, type=float, default=0.0)
    number("--label_smoothing", help="share of labels that are taken to be wrong, below 0.5")
    number(
        "--tie_threshold",
        help="answers of equal rank train too: their scores are to differ by less than about this, "
        "others by more; 0: ties are left out",
    )
    add("--sample_weights", action="store_true", help="multiply losses by the data's weight")
    number("--center_rewards_coefficient", help="of the mean of (better + worse score)^2, added")


def _add_batches(parser):
    add = parser.add_argument_group("batches (sizes count comparisons, not answers)").add_argument
    add("--per_device_train_batch_size", type=int, default=16, help="comparisons a micro-batch")
    add(
        "--max_tokens_per_micro_batch",
        type=int,
        default=0,
        help="instead of a fixed number of comparisons: as many as have this many tokens together, "
        "in training and evaluation; 0: the fixed number",
    )
    add_layout(add)
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-batches a step")


def _add_optimization(parser):
    add = parser.add_argument_group("optimisation").add_argument
    add("--learning_rate", type=float, default=5e-5, help="peak learning rate")
    add("--weight_decay", type=float, default=0.0, help="AdamW's decay; none on biases and norms")
    add("--max_grad_norm", type=float, default=1.0, help="clip gradients to this norm; 0: never")
    add("--num_train_epochs", type=int, default=1, help="passes over the data")
    add("--max_steps", type=int, default=0, help="stop after this many steps; 0: after the epochs")
    add(
        "--lr_scheduler_type",
        choices=SCHEDULERS,
        metavar="NAME",
        default="cosine",
        help=f"of the learning rate after the warm-up: {', '.join(SCHEDULERS)}",
    )
    add("--num_warmup_steps", type=int, default=0, help="steps in which the rate rises from 0")
    add("--warmup_ratio", type=float, default=0.0, help="the same as a share of all steps")
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory")
    add(
        "--compute_fp32_loss",
        action="store_true",
        help="kept for DeepSpeed-Chat command lines: the loss is always computed in fp32",
    )
    add("--seed", type=int, default=1234, help="of the head, the data order and the dropout")


def _add_lora(parser):
    add = parser.add_argument_group("LoRA").add_argument
    add("--lora_dim", type=int, default=0, help="rank of the adapters; 0: no LoRA")
    add("--lora_alpha", type=float, help="their scale times their rank (default: twice the rank)")
    add(
        "--lora_module_name",
        default="layers.",
        help="linear layers whose name contains this, as decoder.layers., get an adapter; their "
        "own weights no longer train",
    )
    add(
        "--only_optimize_lora",
        action="store_true",
        help="train the adapters and the head alone, not embeddings, norms and biases",
    )
    add("--lora_learning_rate", type=float, default=5e-4, help="peak rate of the adapters")
    add(
        "--save_adapter",
        action="store_true",
        help="also write OUTPUT_DIR/adapter, for peft; with --only_optimize_lora",
    )


def _add_deepspeed(parser):
    add = parser.add_argument_group("DeepSpeed").add_argument
    add(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="default: bf16 where the GPU has it, else fp16; fp32 on a CPU",
    )
    add("--zero_stage", type=int, choices=(0, 1, 2, 3), default=0, help="ZeRO stage")
    add(
        "--offload",
        nargs="?",
        const="cpu",
        choices=("cpu",),
        help="keep optimizer states (in stage 3 the parameters too) in CPU memory (stages 1 to 3)",
    )
    add(
        "--estimate_memory",
        action="store_true",
        help="print what the ZeRO stages need for each device, with and without --offload, and "
        "which fit; train and write nothing",
    )
    add(
        "--deepspeed_config",
        type=user_path,
        help="JSON file whose entries override the DeepSpeed configuration",
    )
    add(
        "--deepspeed",
        action="store_true",
        help="kept for DeepSpeed-Chat command lines: training always runs under DeepSpeed",
    )
    add("--local_rank", type=int, default=-1, help="set by the launcher")


def _add_evaluation(parser):
    add = parser.add_argument_group(
        "evaluation (always before training and after each epoch)"
    ).add_argument
    add("--per_device_eval_batch_size", type=int, default=16, help="comparisons a batch")
    add("--eval_interval", type=int, default=0, help="also every so many steps; 0: never")
    add(
        "--eval_iters",
        type=int,
        default=0,
        help="batches on each device in one evaluation, a fixed sample; 0: the whole set",
    )


def _add_output(parser):
    add = parser.add_argument_group("output").add_argument
    add(
        "--output_dir",
        type=user_path,
        default="output",
        help="folder for the model, metrics and curves",
    )
    add(
        "--save_format",
        choices=("hf", "dschat"),
        default="hf",
        help="hf: a folder for Transformers, TRL and rw_eval.py; dschat: one for step 3 of "
        "DeepSpeed-Chat, which rw_eval.py and main.py read too",
    )
    add("--overwrite_output_dir", action="store_true", help="replace the model and states in it")
    add("--logging_steps", type=int, default=1, help="steps between two lines of metrics.jsonl")
    add(
        "--monitor",
        nargs="+",
        choices=("tensorboard", "wandb", "comet", "csv"),
        default=[],
        help="send every logged line there too; what a service needs (project, team) is written "
        "under its name in --deepspeed_config",
    )
    add("--enable_tensorboard", action="store_true", help="the same as --monitor tensorboard")
    add(
        "--tensorboard_path",
        type=user_path,
        help="folder for its events (default: OUTPUT_DIR/tensorboard)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print the configuration, the data counts, the global batch and one decoded batch; "
        "train and write nothing",
    )


def _add_checkpoints(parser):
    add = parser.add_argument_group(
        "training state (SIGTERM and SIGINT save it and end with 143 and 130)"
    ).add_argument
    add(
        "--save_interval",
        type=int,
        default=0,
        help="save the training state under OUTPUT_DIR/checkpoints every so many steps; 0: only "
        "when a signal ends the run",
    )
    add("--save_total_limit", type=int, default=0, help="newest states that are kept; 0: all")
    add(
        "--resume_from_checkpoint",
        type=user_path,
        metavar="{latest,PATH}",
        help="go on where a training state was saved: the newest whole one of OUTPUT_DIR, or the "
        "start if there is none yet; or the folder PATH. Also on another number of devices",
    )
    add(
        "--use_node_local_storage",
        action="store_true",
        help="OUTPUT_DIR is another disk on each node: every node keeps its part of the training "
        "state, and goes on with as many devices as before; the model is on the first node",
    )
    add(
        "--save_best",
        action="store_true",
        help="keep the model of the best evaluation accuracy (default: the last one)",
    )
    add(
        "--early_stopping_patience",
        type=int,
        default=0,
        help="evaluations without a better accuracy after which training stops; 0: it never does",
    )


def _check_training(parser, args):
    require(
        parser,
        args,
        1,
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "logging_steps",
    )
    numbers = [name for name, value in vars(args).items() if isinstance(value, (int, float))]
    numbers.remove("local_rank")  # -1 without a launcher
    require(parser, args, 0, *numbers)
    if not 0 <= args.warmup_ratio < 1:
        parser.error(f"--warmup_ratio is {args.warmup_ratio}; it must be from 0 to less than 1")
    if args.num_warmup_steps and args.warmup_ratio:
        parser.error("--num_warmup_steps and --warmup_ratio exclude each other")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        parser.error(f"--dropout is {args.dropout}; it must be from 0 to less than 1")
    if args.save_format == "dschat" and args.score_position != "end":
        parser.error(
            f"--save_format dschat needs --score_position end, not {args.score_position}: step 3 "
            "reads the last token before the padding"
        )
    check_data(parser, args)
    _check_loss(parser, args)
    _check_lora(parser, args)
    _check_offload(parser, args)
    if args.enable_tensorboard and "tensorboard" not in args.monitor:
        args.monitor = [*args.monitor, "tensorboard"]
    for name, package in (("wandb", "wandb"), ("comet", "comet_ml")):
        if name in args.monitor and find_spec(package) is None:
            parser.error(f"--monitor {name} needs a package: pip install {package}")


def _check_loss(parser, args):
    if args.label_smoothing >= 0.5:
        parser.error(f"--label_smoothing is {args.label_smoothing}; it must be below 0.5")
    given = ["--margin"] * args.margin + ["--label soft"] * (args.label == "soft")
    given += ["--tie_threshold"] * (args.tie_threshold > 0)
    if len(given) > 1:
        parser.error(f"{given[0]} and {given[1]} exclude each other")
    given += ["--label_smoothing"] * (args.label_smoothing > 0)
    if given and args.loss != "pairwise":
        parser.error(f"{given[0]} needs --loss pairwise, not --loss {args.loss}")
    if args.loss == "token_pairwise" and args.score_position == "mean":
        parser.error("--loss token_pairwise needs --score_position end or first_pad, not mean")


def _check_lora(parser, args):
    if args.only_optimize_lora and not args.lora_dim:
        parser.error("--only_optimize_lora needs --lora_dim above 0")
    if args.save_adapter and not args.only_optimize_lora:
        parser.error("--save_adapter needs --only_optimize_lora: an adapter holds nothing else")
    if args.lora_alpha is None:
        args.lora_alpha = 2.0 * args.lora_dim


def _check_offload(parser, args):
    if args.offload and not args.zero_stage:
        parser.error("--offload needs --zero_stage 1, 2 or 3")
