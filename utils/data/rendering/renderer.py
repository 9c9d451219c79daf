"""Comparisons become texts, by the tokenizer's chat template or without one."""

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from utils.data.comparison import Comparison, Message
from utils.data.formats.messages import CALLS
from utils.data.rendering.saved_templates import TRANSCRIPT, special_tokens
from utils.data.rendering.templates import names
from utils.data.rendering.unrendered import (
    IS_THOUGHT,
    Searched,
    look_alike,
    may_be_chance,
    said,
    tool_names,
    without,
)

if TYPE_CHECKING:  # slow to import, and tokenization.py imports this file
    from transformers import PreTrainedTokenizerBase

    from utils.data.tokenization import TextSettings

Messages = list[Message]
Tools = list[dict] | None


class Rendered(NamedTuple):
    """The K answers of a comparison as whole texts.

    Attributes:
        texts: each with its prompt.
        prompt_ends: where in each the prompt ends.
        chat: whether a chat template wrote them.
        lost: a part of an answer that does not stand in its text; "" if there is none.
        unrendered: the same of the prompt, and of thoughts before the last turn of the user, which
            templates leave out by design.
    """

    texts: list[str]
    prompt_ends: list[int]
    chat: bool
    lost: str = ""
    unrendered: str = ""


class _Written(NamedTuple):
    """A conversation, and the text that the chat template made of it."""

    messages: Messages
    tools: Tools
    text: str


class Renderer:
    """Turns comparisons into texts.

    Args:
        tokenizer: its chat template renders messages; without one the TRANSCRIPT does.
        settings: how text becomes tokens.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: "TextSettings"):
        self.tokenizer, self.settings = tokenizer, settings
        self.special = re.compile("|".join(map(re.escape, special_tokens(tokenizer))))
        self.chat = bool(tokenizer.chat_template)
        self.template = None if self.chat else TRANSCRIPT  # None: the tokenizer's own

    def __call__(self, comparison: Comparison) -> Rendered:
        """Render a comparison; jinja2.TemplateError, TypeError or ValueError if it cannot be."""
        prompt, tools = comparison.prompt, comparison.tools
        if isinstance(prompt, str) and self.settings.apply_chat_template:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str):
            texts = [_join_texts(prompt, str(answer)) for answer in comparison.responses]
            return Rendered(texts, [len(prompt)] * len(texts), False)

        answers = [
            [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
            for answer in comparison.responses
        ]
        rendered = self._render(prompt, answers, tools)
        return rendered._replace(lost=rendered.lost or look_alike(rendered.texts, answers))

    def _render(self, prompt: Messages, answers: list[Messages], tools: Tools) -> Rendered:
        """By the chat template."""
        ends_by_token = self.chat and self.settings.answer_end == "token"
        if ends_by_token:  # only the template itself writes special tokens
            prompt, answers, tools = map(self._without_special, (prompt, answers, tools))

        before = self._apply(prompt, tools, add_generation_prompt=True)
        texts = [self._apply(prompt + answer, tools) for answer in answers]

        # Some templates write the prompt otherwise where an answer follows.
        closed = before
        if not all(text.startswith(before) for text in texts):
            closed = self._apply(prompt, tools)
        ends = [
            len(before) if text.startswith(before) else len(os.path.commonprefix([text, closed]))
            for text in texts
        ]

        written = [
            _Written(prompt + answer, tools, text)
            for answer, text in zip(answers, texts, strict=True)
        ]
        unrendered, lost = self._missing_of_prompt(prompt, written[0]), ""
        for number, (answer, one, end) in enumerate(zip(answers, written, ends, strict=True), 1):
            users = [place for place, message in enumerate(answer) if message["role"] == "user"]
            last_turn = users[-1] if users else 0
            for place, part, is_thought in self._missing(answer, Searched(one.text[end:]), one):
                if is_thought and place < last_turn:
                    unrendered = unrendered or part
                else:
                    lost = lost or f"answer {number}: {part}"

        if ends_by_token:
            # The end token is appended as an id; the template's own would make it two.
            texts = [text.rstrip().removesuffix(self.settings.end_token) for text in texts]

        return Rendered(texts, ends, self.chat, lost, unrendered)

    def _apply(self, messages: Messages, tools: Tools, add_generation_prompt: bool = False) -> str:
        template = str(self.template or self.tokenizer.chat_template)
        if "function_call" not in template and "tool_calls" in template:
            messages = [_with_tool_calls(message) for message in messages]

        render = partial(
            self.tokenizer.apply_chat_template,
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        try:
            return render(messages)
        except (jinja2.TemplateError, TypeError):
            others = [_with_other_arguments(message) for message in messages]
            if others == messages:
                raise
            return render(others)

    def _missing_of_prompt(self, prompt: Messages, written: _Written) -> str:
        """A part of the prompt that does not stand in the text; "" if there is none."""
        searched, tools = Searched(written.text), written.tools
        template = self.tokenizer.get_chat_template(self.template, tools)
        if tools and not (names(template, "tools") and searched.holds(tool_names(tools))):
            return "tools"
        return next((part for _, part, _ in self._missing(prompt, searched, written)), "")

    def _missing(
        self, messages: Messages, searched: Searched, written: _Written
    ) -> Iterator[tuple[int, str, bool]]:
        """Of some messages of a conversation, the fields that do not stand in their part of it.

        Yields:
            The place of the message, the field with the message's role, and whether it thinks.
        """
        for place, message in enumerate(messages):
            for name, texts in said(message):
                if not searched.holds(texts) or (
                    may_be_chance(name, texts) and self._is_ignored(message, name, written)
                ):
                    yield place, f"{name} ({message['role']})", name in IS_THOUGHT

    def _is_ignored(self, message: Message, name: str, written: _Written) -> bool:
        """Whether the template writes the same text without a field."""
        others = [without(one, name) if one is message else one for one in written.messages]
        try:
            return self._apply(others, written.tools) == written.text
        except (jinja2.TemplateError, TypeError, ValueError):
            return False  # it misses the field

    def _without_special(self, value):
        """A copy in which an invisible space breaks the spelling of special tokens."""
        if isinstance(value, str):
            return self.special.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], value)
        if isinstance(value, list):
            return [self._without_special(part) for part in value]
        if isinstance(value, dict):
            parts = value.items()
            return {self._without_special(k): self._without_special(v) for k, v in parts}
        return value


def _join_texts(prompt: str, answer: str) -> str:
    """Without white space at the seam, the last word of one and the first of the other merge."""
    seam = " " if prompt and not prompt[-1].isspace() and not answer[:1].isspace() else ""
    return prompt + seam + answer


def _with_other_arguments(message: Message) -> Message:
    """A message whose calls have objects for the JSON text of arguments, or else the text of it.

    Some templates take the one (Qwen 3 Coder), some the other (DeepSeek V3).
    """

    def other(value):
        if not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        try:
            return json.loads(value)
        except ValueError:
            return value

    def turned(value, key=""):
        if key == "arguments":
            return other(value)
        if isinstance(value, dict):
            return {name: turned(part, name) for name, part in value.items()}
        return [turned(part) for part in value] if isinstance(value, list) else value

    return {name: turned(part) if name in CALLS else part for name, part in message.items()}


def _with_tool_calls(message: Message) -> Message:
    """A message whose call, by its older name, stands where templates look for calls."""
    if "function_call" not in message or "tool_calls" in message:
        return message
    call = {"type": "function", "function": message["function_call"]}
    return {**message, "tool_calls": [call]}
