"""The chat template that is saved with a model, so that whoever renders with it scores alike."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from utils.data.formats.messages import REASONING

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase

# Human and Assistant turns, where the tokenizer has no chat template.
TRANSCRIPT = (
    Path(__file__)
    .with_name("transcript.jinja")
    .read_text(encoding="utf-8")
    .replace("REASONING", json.dumps(REASONING))
)

# What stands before the tokenizer's own template, and what stands behind it.
_BEFORE, _BEHIND = (
    Path(__file__)
    .with_name("scored_end.jinja")
    .read_text(encoding="utf-8")
    .removesuffix("\n")
    .split("TEMPLATE")
)
_MARK = _BEFORE[: _BEFORE.index("-#}")]


def end_at_scored_token(tokenizer: "PreTrainedTokenizerBase", leading: str, end_token: str) -> None:
    """Make what the chat template writes end where the score is read.

    Many templates go on behind the answer's end token (ChatML: with a line end), and those who
    render with them score what comes last. Prompts for an answer stay as they are.

    Args:
        tokenizer: is changed; without a chat template it gets the TRANSCRIPT.
        leading: special tokens that it writes before every text.
        end_token: that ends every answer, and is scored.
    """
    special: dict[str, list[str]] = {}
    for token in special_tokens(tokenizer):
        special.setdefault(token[0], []).append(token)

    def ended(template: str) -> str:
        before = _BEFORE.replace("SPECIAL_TOKENS", json.dumps(special))
        behind = _BEHIND.replace("END_TOKEN", json.dumps(end_token))
        return before + own_template(template) + behind

    templates = tokenizer.chat_template or json.dumps(leading).join(["{{- ", " -}}\n"]) + TRANSCRIPT
    if isinstance(templates, dict):  # by what they are for
        tokenizer.chat_template = {name: ended(text) for name, text in templates.items()}
    else:
        tokenizer.chat_template = ended(templates)


def own_template(template: str) -> str:
    """The part of a template that `end_at_scored_token` did not write."""
    if not template.startswith(_MARK):
        return template.removesuffix("\n")  # Jinja leaves it out at the end of a file alone
    start, end = _BEFORE.rsplit("\n", 1)[-1], _BEHIND.split("\n", 1)[0]
    return template[template.index(start) + len(start) : template.rindex(end)]


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The tokens that stand for no text, the longest first, since one may begin with another."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted(tokens, key=len, reverse=True)
