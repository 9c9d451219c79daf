"""Chat templates before they render: read from a file, and with a date that stays the same."""

import datetime
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from utils import distributed
from utils.settings import InputError

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase

# What Transformers gives templates to ask for the date, and the two ways in which they use it.
ASKS_DATE = "strftime_now"
_IS_DEFINED = re.compile(rf"\b{ASKS_DATE}\s+is\s+(not\s+)?defined\b")
_LITERAL_CALL = re.compile(rf"""\b{ASKS_DATE}\(\s*(?:format\s*=\s*)?(['"])((?:(?!\1).)*)\1\s*\)""")


def set_chat_template(tokenizer: "PreTrainedTokenizerBase", path: str) -> None:
    """Take the chat template of a file; InputError if it does not render a question and answer."""
    trial = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        tokenizer.apply_chat_template(trial, tokenize=False)
    except (OSError, UnicodeDecodeError, jinja2.TemplateError, TypeError) as error:
        raise InputError(
            f"--chat_template {path}: {error}; expected a file with a Jinja template that renders "
            "`messages`"
        ) from error


def fix_date(tokenizer: "PreTrainedTokenizerBase", date: str | None) -> str | None:
    """Put a date in the place of today's, wherever the tokenizer's chat templates ask for it.

    Otherwise scores would change from day to day.

    Args:
        tokenizer: is changed, so that what is saved of it has the date too.
        date: YYYY-MM-DD, at midnight; None: the day on which the first rank comes here.

    Returns:
        The date; None if no template asks for it.

    Raises:
        InputError: one asks in a way that a date cannot stand in for.
    """
    date = distributed.from_main(date or datetime.date.today().isoformat())
    day = datetime.datetime.fromisoformat(date)
    templates = tokenizer.chat_template
    if isinstance(templates, dict):  # by what they are for
        dated: str | dict = {name: _with_date(text, day) for name, text in templates.items()}
    else:
        dated = _with_date(templates or "", day)
    if dated == (templates or ""):
        return None
    tokenizer.chat_template = dated
    return date


@lru_cache(maxsize=16)  # every row asks
def names(template: str, variable: str) -> bool:
    """Whether a template reads a variable; InputError if it is no template."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if variable not in template:
        return False
    try:
        tree = _compile_jinja_template(template).environment.parse(template)
    except jinja2.TemplateError as error:
        raise InputError(
            f"the chat template is not one that Jinja reads: {error}; give another one with "
            "--chat_template"
        ) from error
    return any(name.name == variable for name in tree.find_all(jinja2.nodes.Name))


def _with_date(template: str, day: datetime.datetime) -> str:
    """A template that asks for no date; repr writes what is a literal in Jinja too."""
    if not names(template, ASKS_DATE):
        return template
    text = _IS_DEFINED.sub(lambda test: "false" if test[1] else "true", template)
    text = _LITERAL_CALL.sub(lambda call: repr(day.strftime(call[2])), text)
    if names(text, ASKS_DATE):
        raise InputError(
            f"the chat template asks for today's date other than by {ASKS_DATE} with a text, such "
            f"as {ASKS_DATE}('%d %b %Y'), so that scores would change from day to day; give a "
            "template with a date in it (--chat_template)"
        )
    return text
