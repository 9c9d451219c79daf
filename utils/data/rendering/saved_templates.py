"""The chat template that is saved with a model, so that whoever renders with it scores alike."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from utils.data.formats.messages import REASONING
from utils.settings import InputError

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

    Raises:
        InputError: the template writes something else inside another one (one with blocks does).
    """
    special: dict[str, list[str]] = {}
    for token in special_tokens(tokenizer):
        special.setdefault(token[0], []).append(token)

    def ended(template: str) -> str:
        own = own_template(template)
        before, behind = _BEFORE, _BEHIND.replace("END_TOKEN", _jinja_literal(end_token))
        whole = before.replace("SPECIAL_TOKENS", _jinja_literal(special)) + own + behind
        _check_ended(tokenizer, own, whole, end_token)
        return whole

    templates = tokenizer.chat_template or f"{{{{- {_jinja_literal(leading)} -}}}}\n{TRANSCRIPT}"
    if isinstance(templates, dict):  # by what they are for
        tokenizer.chat_template = {name: ended(text) for name, text in templates.items()}
    else:
        tokenizer.chat_template = ended(templates)


def _jinja_literal(value: str | dict) -> str:
    """Texts as Jinja reads them; it knows no pairs of surrogates, which JSON would escape by."""
    return json.dumps(value, ensure_ascii=False)


def _check_ended(
    tokenizer: "PreTrainedTokenizerBase", own: str, whole: str, end_token: str
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    try:
        expected = render(turns, chat_template=own).rstrip().removesuffix(end_token) + end_token
        prompt = render(turns[:1], chat_template=own, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError, ValueError):
        return  # it wants another conversation

    try:
        found = render(turns, chat_template=whole)
        kept = render(turns[:1], chat_template=whole, add_generation_prompt=True) == prompt
        problem = "" if kept and found == expected else f"{found!r} for {expected!r}"
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise InputError(
            f"the chat template cannot be made to end at the scored token {end_token}: inside "
            f"another template it writes otherwise ({problem}); give one without blocks "
            "(--chat_template)"
        )


def own_template(template: str) -> str:
    """The part of a template that `end_at_scored_token` did not write."""
    if not template.startswith(_MARK):
        return template.removesuffix("\n")  # Jinja leaves it out at the end of a file alone
    start, end = _BEFORE.rstrip("\n").rsplit("\n", 1)[-1] + "\n", _BEHIND.split("\n", 1)[0]
    return template[template.index(start) + len(start) : template.rindex(end)]


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The tokens that stand for no text, the longest first, since one may begin with another."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted(tokens, key=len, reverse=True)
