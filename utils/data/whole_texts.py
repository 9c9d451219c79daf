"""Texts that were rendered elsewhere, special tokens and all, become the rows that are scored."""

import os
from collections.abc import Sequence
from contextlib import suppress

import jinja2

from utils.data.token_rows import empty_row
from utils.data.tokenization import ComparisonTokenizer, leading_text


class WholeTextTokenizer(ComparisonTokenizer):
    """Turns whole texts into the token ids that their conversations have as comparisons.

    A special token that a text spells is one token, as it was when a policy or a chat template
    wrote it. What belongs around a text, leading tokens and the end token, is added where it is
    not spelled.
    """

    def __init__(self, encoder: ComparisonTokenizer):
        super().__init__(encoder.tokenizer, encoder.settings, encoder.unscored)
        self.leading_text = leading_text(self.tokenizer)
        self.opening = self._template_opening()

    def row(self, texts: Sequence[str], prompt: str = "") -> dict:
        """Tokenise the texts of one prompt.

        Args:
            texts: K, each with the prompt at its beginning.
            prompt: "" if nobody knows where the answers begin; then nothing can be cut, and texts
                that are too long are left out.

        Returns:
            The columns that are computed (token_rows.COLUMNS), all ranks being 0.
        """
        row = empty_row("")
        row["answers"] = list(range(len(texts)))
        row["ranks"] = [0] * len(texts)

        plain, leading = zip(*(self._plain(text, len(prompt)) for text in texts), strict=True)
        encoded = zip(leading, self._encode(plain), strict=True)
        self._fit(row, [(lead + ids, len(lead) + start) for lead, (ids, start) in encoded])
        return row

    def is_ended(self, text: str) -> bool:
        """Whether no end token has to be appended to a text."""
        return self.as_written or text.rstrip().endswith(self.settings.end_token)

    def _plain(self, text: str, prompt_end: int) -> tuple[tuple[str, int, bool], list[int]]:
        """What `_encode` takes for a text, and the tokens that then stand before it."""
        chat = self.opening is not None and text.startswith(self.opening)
        if not chat and text.startswith(self.leading_text):
            text = text.removeprefix(self.leading_text)
            prompt_end = max(prompt_end - len(self.leading_text), 0)
        if self.as_written:
            return (text, prompt_end, chat), []

        # The end token is appended as an id; a chat template writes white space behind it.
        if chat or self.is_ended(text):
            text = text.rstrip().removesuffix(self.settings.end_token)
        return (text, prompt_end, True), [] if chat else self.leading_ids

    def _template_opening(self) -> str | None:
        """What all conversations begin with in the chat template; None if there is none."""
        if not self.tokenizer.chat_template:
            return None
        user, system = ({"role": role, "content": role} for role in ("user", "system"))
        other = {"role": "user", "content": "another one"}

        texts = []
        for messages in ([user], [other], [system, user]):
            with suppress(jinja2.TemplateError):  # some have no place for a system message
                texts.append(self.tokenizer.apply_chat_template(messages, tokenize=False))
        return os.path.commonprefix(texts) if texts else None
