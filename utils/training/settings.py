"""The command line of main.py, in groups, and what can be checked in it alone."""

import argparse
from dataclasses import MISSING, dataclass, replace
from importlib.util import find_spec

from utils.data.settings import (
    DATA_MAY_DIFFER,
    EVALUATIONS_MAY_DIFFER,
    ChatTemplateSettings,
    TokenSettings,
    TrainingDataSettings,
)
from utils.data.sources.names import parse_sources
from utils.settings import (
    FREE,
    SIZE,
    FlagParser,
    InputError,
    Settings,
    flag,
    layout_flag,
    remote_code_flag,
    user_path,
)

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

# What another value means to a run that goes on.
LENGTH = "the learning rate follows the schedule of the new length"

OWN_DROPOUT = "model"  # instead of a probability


def dropout_type(text: str) -> float | str:
    """The type of --dropout: a probability, or OWN_DROPOUT.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        return text if text == OWN_DROPOUT else float(text)
    except ValueError as error:
        expected = f"expected a probability or {OWN_DROPOUT}"
        raise argparse.ArgumentTypeError(f"{text!r}; {expected}") from error


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The model that is trained."""

    title = "model"
    model_name_or_path: str = flag(
        MISSING,
        "folder or hub name of the language model",
        type=user_path,
        resume=DATA_MAY_DIFFER,
    )
    score_position: str = flag(
        "end",
        "the score is the value at the end token, at one padding token after it, or the mean of "
        "the values over the answer",
        choices=("end", "first_pad", "mean"),
    )
    dropout: float | str = flag(
        0.0,
        f"dropout probability everywhere; {OWN_DROPOUT}: what the model's config says",
        type=dropout_type,
        metavar="X",
        also={
            "--disable_dropout": (
                0.0,
                "the same as --dropout 0, for DeepSpeed-Chat command lines",
            )
        },
    )
    trust_remote_code: bool = remote_code_flag()

    def _check(self) -> None:
        if not isinstance(self.dropout, str) and not self.dropout < 1:
            raise InputError(f"--dropout is {self.dropout}; it must be from 0 to less than 1")


@dataclass(frozen=True, kw_only=True)
class LossSettings(Settings):
    """The loss that trains."""

    title = "loss (evaluations report Bradley-Terry's)"
    loss: str = flag(
        "pairwise",
        "over pairs (Bradley-Terry), over rankings, or over pairs at each token",
        choices=("pairwise", "plackett_luce", "token_pairwise"),
    )
    margin: bool = flag(False, "scores are to differ by the data's margin at least")
    label: str = flag(
        "hard",
        "soft: the better answer is preferred with the probability that the data's votes say",
        choices=("hard", "soft"),
    )
    label_smoothing: float = flag(0.0, "share of labels that are taken to be wrong, below 0.5")
    tie_threshold: float = flag(
        0.0,
        "answers of equal rank train too: their scores are to differ by less than about this, "
        "others by more; 0: ties are left out",
    )
    sample_weights: bool = flag(False, "multiply losses by the data's weight")
    center_rewards_coefficient: float = flag(0.0, "of the mean of (better + worse score)^2, added")

    def _check(self) -> None:
        if self.label_smoothing >= 0.5:
            raise InputError(f"--label_smoothing is {self.label_smoothing}; it must be below 0.5")

        given = ["--margin"] * self.margin + ["--label soft"] * (self.label == "soft")
        given += ["--tie_threshold"] * (self.tie_threshold > 0)
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} exclude each other")

        given += ["--label_smoothing"] * (self.label_smoothing > 0)
        if given and self.loss != "pairwise":
            raise InputError(f"{given[0]} needs --loss pairwise, not --loss {self.loss}")


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How comparisons make micro-batches, and these a step."""

    title = "batches (sizes count comparisons, not answers)"
    per_device_train_batch_size: int = flag(16, "comparisons a micro-batch", least=1, resume=SIZE)
    max_tokens_per_micro_batch: int | None = flag(
        None,
        "the comparisons of a step run in as few micro-batches as have at most this many tokens "
        "each, and so do those of an evaluation; 0: in micro-batches of so many comparisons "
        "(default: 16,384 on a GPU, less if its memory is too small; but 0 in padded batches and "
        "in ZeRO stage 3; 0 on a CPU)",
        resume=FREE,
    )
    batch_layout: str = layout_flag()
    gradient_accumulation_steps: int = flag(1, "micro-batches a step", least=1, resume=SIZE)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """The optimiser, its schedule and how long it runs."""

    title = "optimisation"
    learning_rate: float = flag(5e-5, "peak learning rate")
    weight_decay: float = flag(0.0, "AdamW's decay; none on biases and norms")
    max_grad_norm: float = flag(1.0, "clip gradients to this norm; 0: never")
    num_train_epochs: int = flag(1, "passes over the data", least=1, resume=LENGTH)
    max_steps: int = flag(0, "stop after this many steps; 0: after the epochs", resume=LENGTH)
    lr_scheduler_type: str = flag(
        "cosine",
        f"of the learning rate after the warm-up: {', '.join(SCHEDULERS)}",
        choices=SCHEDULERS,
        metavar="NAME",
    )
    num_warmup_steps: int = flag(0, "steps in which the rate rises from 0")
    warmup_ratio: float = flag(0.0, "the same as a share of all steps")
    gradient_checkpointing: bool = flag(False, "recompute activations: less memory", resume=FREE)
    torch_compile: bool = flag(
        False,
        "compile the layers with torch.compile, in ZeRO stages 0 to 2: a slow first step; meant "
        "for GPUs, not measured",
        resume=FREE,
    )
    compute_fp32_loss: bool = flag(
        False,
        "kept for DeepSpeed-Chat command lines: the loss is always computed in fp32",
        resume=FREE,
    )
    seed: int = flag(1234, "of the head, the data order and the dropout")

    def _check(self) -> None:
        if not self.warmup_ratio < 1:
            raise InputError(
                f"--warmup_ratio is {self.warmup_ratio}; it must be from 0 to less than 1"
            )
        if self.num_warmup_steps and self.warmup_ratio:
            raise InputError("--num_warmup_steps and --warmup_ratio exclude each other")


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """Low-rank adapters."""

    title = "LoRA"
    lora_dim: int = flag(0, "rank of the adapters; 0: no LoRA")
    lora_alpha: float = flag(None, "their scale times their rank (default: twice the rank)")
    lora_module_name: str = flag(
        "layers.",
        "linear layers whose name contains this, as decoder.layers., get an adapter; their own "
        "weights no longer train",
    )
    only_optimize_lora: bool = flag(
        False, "train the adapters and the head alone, not embeddings, norms and biases"
    )
    lora_learning_rate: float = flag(5e-4, "peak rate of the adapters")
    save_adapter: bool = flag(
        False,
        "also write OUTPUT_DIR/adapter, for peft; with --only_optimize_lora",
        resume=FREE,
    )

    @property
    def lora_scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied with."""
        return self.lora_alpha / max(self.lora_dim, 1)

    def _check(self) -> None:
        if self.only_optimize_lora and not self.lora_dim:
            raise InputError("--only_optimize_lora needs --lora_dim above 0")
        if self.save_adapter and not self.only_optimize_lora:
            raise InputError(
                "--save_adapter needs --only_optimize_lora: an adapter holds nothing else"
            )


@dataclass(frozen=True, kw_only=True)
class DeepSpeedSettings(Settings):
    """Precision, ZeRO and what else DeepSpeed is told."""

    title = "DeepSpeed"
    dtype: str = flag(
        None,
        "default: bf16 where the GPU has it, else fp16; fp32 on a CPU",
        choices=("fp32", "bf16", "fp16"),
    )
    zero_stage: int = flag(0, "ZeRO stage", choices=(0, 1, 2, 3))
    offload: str | None = flag(
        None,
        "keep optimizer states (in stage 3 the parameters too) in CPU memory (stages 1 to 3)",
        nargs="?",
        const="cpu",
        choices=("cpu",),
        resume=FREE,
    )
    estimate_memory: bool = flag(
        False,
        "print what the ZeRO stages need for each device, with and without --offload, and which "
        "fit; train and write nothing",
        resume=FREE,
    )
    deepspeed_config: str | None = flag(
        None,
        "JSON file whose entries override the DeepSpeed configuration",
        type=user_path,
        resume="its entries hold from here on",
    )
    deepspeed: bool = flag(
        False,
        "kept for DeepSpeed-Chat command lines: training always runs under DeepSpeed",
        resume=FREE,
    )
    local_rank: int = flag(-1, "set by the launcher", least=None, resume=FREE)

    def _check(self) -> None:
        if self.offload and not self.zero_stage:
            raise InputError("--offload needs --zero_stage 1, 2 or 3")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """When and on how much the model is evaluated."""

    title = "evaluation (always before training and after each epoch)"
    per_device_eval_batch_size: int = flag(16, "comparisons a batch", least=1, resume=FREE)
    eval_interval: int = flag(
        0, "also every so many steps; 0: never", resume=EVALUATIONS_MAY_DIFFER
    )
    eval_iters: int = flag(
        0,
        "batches on each device in one evaluation, a fixed sample; 0: the whole set",
        resume=EVALUATIONS_MAY_DIFFER,
    )


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """What a run writes, and tells."""

    title = "output"
    output_dir: str = flag(
        "output", "folder for the model, metrics and curves", type=user_path, resume=FREE
    )
    save_format: str = flag(
        "hf",
        "hf: a folder for Transformers, TRL and rw_eval.py; folded: the same with the projections "
        "of OPT-350m multiplied out, as vLLM and OpenRLHF need it; dschat: one for step 3 of "
        "DeepSpeed-Chat (with --add_eot_token). rw_eval.py and main.py read all",
        choices=("hf", "folded", "dschat"),
        resume=FREE,
    )
    overwrite_output_dir: bool = flag(False, "replace the model and states in it", resume=FREE)
    logging_steps: int = flag(1, "steps between two lines of metrics.jsonl", least=1, resume=FREE)
    monitor: list[str] = flag(
        [],
        "send every logged line there too; what a service needs (project, team) is written under "
        "its name in --deepspeed_config",
        choices=("tensorboard", "wandb", "comet", "csv"),
        resume=FREE,
    )
    enable_tensorboard: bool = flag(False, "the same as --monitor tensorboard", resume=FREE)
    tensorboard_path: str | None = flag(
        None,
        "folder for its events (default: OUTPUT_DIR/tensorboard)",
        type=user_path,
        resume=FREE,
    )
    dry_run: bool = flag(
        False,
        "print the configuration, the data counts, the global batch and one decoded batch; train "
        "and write nothing",
        resume=FREE,
    )

    def _check(self) -> None:
        for name, package in (("wandb", "wandb"), ("comet", "comet_ml")):
            if name in self.monitor and find_spec(package) is None:
                raise InputError(f"--monitor {name} needs a package: pip install {package}")


@dataclass(frozen=True, kw_only=True)
class StateSettings(Settings):
    """Training states, and which model a run ends with."""

    title = "training state (SIGTERM and SIGINT save it and end with 143 and 130)"
    save_interval: int = flag(
        0,
        "save the training state under OUTPUT_DIR/checkpoints every so many steps; 0: only when a "
        "signal ends the run",
        resume=FREE,
    )
    save_total_limit: int = flag(0, "newest states that are kept; 0: all", resume=FREE)
    resume_from_checkpoint: str | None = flag(
        None,
        "go on where a training state was saved: the newest whole one of OUTPUT_DIR, or the start "
        "if there is none yet; or the folder PATH. Also on another number of devices",
        type=user_path,
        metavar="{latest,PATH}",
        resume=FREE,
    )
    use_node_local_storage: bool = flag(
        False,
        "OUTPUT_DIR is another disk on each node: every node keeps its part of the training "
        "state, and goes on with as many devices as before; the model is on the first node",
        resume=FREE,
    )
    save_best: bool = flag(
        False,
        "keep the model of the best evaluation accuracy (default: the last one)",
        resume=FREE,
    )
    early_stopping_patience: int = flag(
        0,
        "evaluations without a better accuracy after which training stops; 0: it never does",
        resume="evaluations before count too",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(
    ModelSettings,
    TrainingDataSettings,
    TokenSettings,
    ChatTemplateSettings,
    LossSettings,
    BatchSettings,
    OptimizerSettings,
    LoraSettings,
    DeepSpeedSettings,
    EvaluationSettings,
    OutputSettings,
    StateSettings,
):
    """All of main.py's flags, in the order of the help."""

    def _check(self) -> None:
        """Refuse what the groups contradict each other in."""
        if self.torch_compile and self.zero_stage == 3:
            raise InputError("--torch_compile needs --zero_stage 0, 1 or 2, not 3")
        if self.save_format == "dschat" and self.score_position != "end":
            raise InputError(
                f"--save_format dschat needs --score_position end, not {self.score_position}: "
                "step 3 reads the last token before the padding"
            )
        if self.loss == "token_pairwise" and self.score_position == "mean":
            raise InputError(
                "--loss token_pairwise needs --score_position end or first_pad, not mean"
            )

    def check_files(self) -> None:
        """Read what --data_path and --eval_data_path name, YAML files too."""
        parse_sources(self.eval_data_path or [], "--eval_data_path")
        parse_sources(self.data_path, "--data_path", columns=self.columns)


def parse_training_arguments(argv: list[str] | None = None) -> TrainingSettings:
    """Parse main.py's command line; a wrong flag or value exits with code 2.

    Args:
        argv: the words of the command line; None takes those of the process.
    """
    settings: TrainingSettings = training_parser().parse(argv)
    monitor, alpha = settings.monitor, settings.lora_alpha
    if settings.enable_tensorboard and "tensorboard" not in monitor:
        monitor = [*monitor, "tensorboard"]
    if alpha is None:
        alpha = 2.0 * settings.lora_dim
    return replace(settings, monitor=monitor, lora_alpha=alpha)


def training_parser() -> FlagParser:
    """The flags of main.py, in groups."""
    return FlagParser(
        TrainingSettings,
        prog="main.py",
        usage="main.py --model_name_or_path MODEL --data_path DATA [flags; see --help]",
        description="Finetune a causal language model into a reward model with DeepSpeed.",
        config="as max_seq_len: 512 or margin: true, or the training_args.json of a run",
        removed=REMOVED,
    )
