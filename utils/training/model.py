"""What trains: the model with its head and adapters, and the tokenizer that writes its rows."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from utils import distributed
from utils.data.rendering.templates import fix_date
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.model import pretrained
from utils.model.lora import add_lora, find_layers
from utils.model.reward_model import RewardModel, check_head
from utils.settings import InputError
from utils.training.settings import TrainingSettings
from utils.training.throughput import parameter_size


def check_model(args: TrainingSettings, config: PreTrainedConfig) -> None:
    """See that the model will load, and that LoRA finds its layers; no weight is read."""
    empty = pretrained.empty_model(config, trust_remote_code=args.trust_remote_code)
    check_head(args.model_name_or_path, empty)
    # For a look at the data, nothing is downloaded that only training needs.
    if Path(args.model_name_or_path).is_dir() or not (args.audit_data or args.dry_run):
        pretrained.check_weights(args.model_name_or_path, config, True, args.trust_remote_code)
    if args.lora_dim:
        find_layers(empty.base_model, args.lora_module_name)


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
