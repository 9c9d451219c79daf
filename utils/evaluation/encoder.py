"""How answers become tokens: as the checkpoint says, or for one of other origin as its tools do."""

import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from utils import distributed
from utils.data.rendering.templates import fix_date
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)
from utils.evaluation.settings import ScorerSettings
from utils.settings import InputError

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

OVERRIDING = ("max_seq_len", "score_position", "apply_chat_template")  # flags, if they are given
LONGEST = 2048  # tokens, where nothing says what training took


def make_scoring_encoder(
    args: ScorerSettings,
    config: "PreTrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    is_deepspeed_chat: bool,
) -> tuple[ScorerSettings, ComparisonTokenizer]:
    """The settings with the date that the chat template writes, and what makes rows of comparisons.

    The command line overrides what the checkpoint says of training.

    Args:
        args: the flags of text and of the chat template count.
        config: of the model.
        tokenizer: of the model; is changed.
        is_deepspeed_chat: whether the checkpoint is one of DeepSpeed-Chat.

    Raises:
        InputError: the checkpoint says what no TextSettings are, or a flag contradicts it.
    """
    saved = _saved_settings(args.model_name_or_path, config)

    # Who trained a model of other origin fed it what its chat template or its tokenizer writes;
    # DeepSpeed-Chat appends an end token to every answer, as main.py does.
    is_appended = bool(saved) or args.add_eot_token or is_deepspeed_chat
    answer_end = saved.get("answer_end", "token" if is_appended else "as_written")
    answer_end = args.answer_end or answer_end

    end_token, notes = prepare_tokenizer(
        tokenizer, args.add_eot_token, args.chat_template, answer_end == "as_written"
    )
    date = fix_date(tokenizer, args.chat_template_date)
    if date:
        notes.append(
            "the chat template asks for today's date: the scores hold for "
            f"{date} (--chat_template_date)"
        )

    settings = TextSettings(**saved or _foreign_settings(config, tokenizer, answer_end, end_token))
    given = {name: getattr(args, name) for name in OVERRIDING if getattr(args, name) is not None}
    if args.add_eot_token:
        given["end_token"] = end_token
    settings = replace(settings, **given, answer_end=answer_end)

    unscored = None
    if not saved:
        notes.append(_how_it_is_scored(settings, bool(tokenizer.chat_template)))
        if (settings.answer_end, settings.score_position) == ("as_written", "end"):
            unscored = getattr(config, "pad_token_id", None)
    distributed.log(*notes)

    check_num_padding_at_beginning(tokenizer, settings.end_token, args.num_padding_at_beginning)
    encoder = ComparisonTokenizer(tokenizer, settings, unscored)
    return replace(args, chat_template_date=date), encoder


def _saved_settings(path: str, config: "PreTrainedConfig") -> dict:
    """What a config says of how text became tokens in training; {} if it says nothing."""
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


def _foreign_settings(
    config: "PreTrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    answer_end: str,
    end_token: str,
) -> dict:
    """The TextSettings of a model whose config does not say how it was trained."""
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    as_written = answer_end == "as_written"
    return {
        "end_token": end_token,
        "max_seq_len": positions if as_written else min(positions, LONGEST),
        "apply_chat_template": as_written and bool(tokenizer.chat_template),
    }


def _how_it_is_scored(settings: TextSettings, has_template: bool) -> str:
    """A sentence for a model whose config does not say how it was trained."""
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
