"""What trains: the model with its head and adapters, and the tokenizer that writes its rows."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from utils import distributed
from utils.data.rendering.saved_templates import end_at_scored_token
from utils.data.rendering.templates import fix_date
from utils.data.tokenization import (
    END_OF_TEXT,
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    leading_text,
    prepare_tokenizer,
)
from utils.model import pretrained
from utils.model.folding import can_fold
from utils.model.lora import add_lora, find_layers
from utils.model.reward_model import RewardModel, check_head, compile_layers
from utils.settings import InputError
from utils.training.settings import TrainingSettings
from utils.training.throughput import count_weights


def check_model(args: TrainingSettings, config: PreTrainedConfig) -> None:
    """See that the model will load, and that LoRA finds its layers; no weight is read."""
    empty = pretrained.empty_model(config, trust_remote_code=args.trust_remote_code)
    check_head(args.model_name_or_path, empty)
    if args.save_format == "folded" and not can_fold(config):
        raise InputError(
            f"--save_format folded: {args.model_name_or_path} ({config.model_type}) has no "
            "projections, as OPT-350m has, that could be folded: give --save_format hf"
        )
    # For a look at the data, nothing is downloaded that only training needs.
    if Path(args.model_name_or_path).is_dir() or not (args.audit_data or args.dry_run):
        pretrained.check_weights(args.model_name_or_path, config, True, args.trust_remote_code)
    if args.lora_dim:
        find_layers(empty.base_model, args.lora_module_name)


def check_save_format(
    args: TrainingSettings, tokenizer: PreTrainedTokenizerBase, end_token: str
) -> None:
    """Refuse a folder for DeepSpeed-Chat where that would score another token.

    Raises:
        InputError: it pads with the tokenizer's own end token, and scores what stands before.
    """
    if args.save_format == "dschat" and end_token == tokenizer.eos_token:
        remedy = "give --add_eot_token, here and in step 3"
        if end_token == END_OF_TEXT:
            remedy = "give --save_format hf, since --add_eot_token would add the same token"
        raise InputError(
            f"--save_format dschat: DeepSpeed-Chat pads with the tokenizer's end token {end_token} "
            f"and scores the token before it, not the end of the answer: {remedy}"
        )


def make_training_encoder(
    args: TrainingSettings, config: PreTrainedConfig, date_before: str | None = None
) -> tuple[TrainingSettings, ComparisonTokenizer]:
    """The settings with what the tokenizer says, and what makes rows of comparisons.

    Args:
        args: model_name_or_path and the flags of text count.
        config: of the model.
        date_before: the date that the chat template of the state to go on from writes.

    Raises:
        InputError: --max_seq_len is more than the model has positions.
    """
    longest = getattr(config, "max_position_embeddings", None) or args.max_seq_len
    if args.max_seq_len > longest:
        raise InputError(
            f"--max_seq_len is {args.max_seq_len}, but {args.model_name_or_path} has "
            f"{longest} positions: give at most that"
        )

    tokenizer = pretrained.load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    end_token, notes = prepare_tokenizer(tokenizer, args.add_eot_token, args.chat_template)
    if not tokenizer.chat_template:
        notes.append("the tokenizer has no chat template: messages become Human / Assistant turns")
    end_at_scored_token(tokenizer, leading_text(tokenizer), end_token)
    check_save_format(args, tokenizer, end_token)
    date = fix_date(tokenizer, args.chat_template_date or date_before)
    if date:
        notes.append(f"the chat template writes a date, for good {date}")
    distributed.log(*notes)

    padding = check_num_padding_at_beginning(tokenizer, end_token, args.num_padding_at_beginning)
    args = replace(args, chat_template_date=date, num_padding_at_beginning=padding)

    settings = TextSettings(
        end_token, args.max_seq_len, args.overlength, args.score_position, args.apply_chat_template
    )
    return args, ComparisonTokenizer(tokenizer, settings)


def build_model(
    args: TrainingSettings,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    ds_config: dict,
) -> RewardModel:
    """The model with its head and adapters, ready for the engine; ZeRO-3 partitions it."""
    set_seed(args.seed)  # the same head on every rank
    model, notes = pretrained.load_model(
        args.model_name_or_path,
        config,
        tokenizer,
        dtype=pretrained.DTYPES[args.dtype],  # what the engine would make of it
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
    if args.torch_compile:
        compile_layers(model)

    weights = count_weights(model.parameters())
    distributed.log(f"{weights.trained:,} of {weights.all:,} parameters train")
    return model
