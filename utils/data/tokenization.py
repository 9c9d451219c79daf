"""Comparisons become token ids, with one stated truncation policy that counts what it drops."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from utils.data.comparison import Comparison, common_prefix_length
from utils.data.formats.messages import says_something
from utils.data.rendering.renderer import Renderer
from utils.data.rendering.templates import set_chat_template
from utils.data.token_rows import Reason, empty_row
from utils.settings import InputError

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"

WRITE_IT = "give a template that writes it (--chat_template), or remove it from the data"


@dataclass(frozen=True)
class TextSettings:
    """Everything besides the tokenizer that decides how text becomes the tokens that are scored.

    Saved in the model's config, so that scoring repeats what training did.

    Attributes:
        end_token: the token that ends every answer, and is scored.
        max_seq_len: longest sequence in tokens, all special tokens included.
        overlength: truncate_prompt, drop or truncate_end (see main.py --help).
        score_position: end, first_pad or mean (see main.py --help).
        apply_chat_template: whether a text prompt is rendered as one user message.
        answer_end: token: white space behind a chat template's text goes and the end token is
            appended; as_written: nothing is cut or appended, and what a text spells may become a
            special token, as with Transformers' own apply_chat_template and tokenizer.
    """

    end_token: str
    max_seq_len: int = 512
    overlength: str = "truncate_prompt"
    score_position: str = "end"
    apply_chat_template: bool = False
    answer_end: str = "token"


def prepare_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
    add_eot_token: bool,
    chat_template: str | None = None,
    as_written: bool = False,
) -> tuple[str, list[str]]:
    """Make sure that the tokenizer has an end token and a padding token that differs from it.

    A padding token equal to the end token would make Transformers' own pooling pass over the end
    of the answer.

    Args:
        tokenizer: is changed.
        add_eot_token: whether <|endoftext|> is the end token, and one of the tokenizer's.
        chat_template: file of another chat template.
        as_written: whether the tokenizer gets no new token, since a text may spell it.

    Returns:
        The end token, and sentences about what was changed.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} is a slow tokenizer; "
            "expected one with a tokenizer.json"
        )

    if chat_template:
        set_chat_template(tokenizer, chat_template)

    notes = []
    if add_eot_token:
        tokenizer.add_tokens([END_OF_TEXT], special_tokens=True)
    end = END_OF_TEXT if add_eot_token else tokenizer.eos_token or tokenizer.sep_token
    if end is None and as_written:  # nobody appends it, and any token can pad
        end = tokenizer.convert_ids_to_tokens(0)

    if end is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no end token (eos_token); "
            "set one in its tokenizer_config.json, or give --add_eot_token"
        )

    if as_written:
        tokenizer.pad_token = tokenizer.pad_token or end
    elif tokenizer.pad_token is None or tokenizer.pad_token == end:
        found = "no padding token" if tokenizer.pad_token is None else f"the end token {end} for it"
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        notes.append(f"the tokenizer has {found}: padding is {tokenizer.pad_token_id} (<pad>)")

    tokenizer.padding_side = "right"
    return end, notes


def leading_special_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The special tokens that the tokenizer puts before every text."""
    encoded = tokenizer("x", return_special_tokens_mask=True)
    return encoded.input_ids[: encoded.special_tokens_mask.index(0)]


def leading_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The same tokens, as who spells them in a text writes them."""
    return "".join(tokenizer.convert_ids_to_tokens(leading_special_ids(tokenizer)))


def check_num_padding_at_beginning(
    tokenizer: "PreTrainedTokenizerBase", end_token: str, given: int | None
) -> int:
    """How many leading tokens have the padding's or an end's id; InputError if another is given.

    The tokenizer's own end token counts beside `end_token`: OPT has one with --add_eot_token too.
    """
    lookalikes = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    lookalikes.add(tokenizer.convert_tokens_to_ids(end_token))
    found = sum(token in lookalikes for token in leading_special_ids(tokenizer))
    if given is not None and given != found:
        raise InputError(
            f"--num_padding_at_beginning is {given}, but {tokenizer.name_or_path} puts {found} "
            f"such tokens before a text: give {found} or leave the flag out"
        )
    return found


class ComparisonTokenizer:
    """Turns comparisons into rows of token ids.

    Args:
        tokenizer: a fast Transformers tokenizer that `prepare_tokenizer` has seen.
        settings: how text becomes tokens.
        unscored: a token that Transformers takes for padding even where a text ends with it, so
            that it scores the one before; None: there is none.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: TextSettings,
        unscored: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.settings = settings
        self.unscored = unscored
        self.render = Renderer(tokenizer, settings)
        self.leading_ids = leading_special_ids(tokenizer)
        self.as_written = settings.answer_end == "as_written"
        self.end_ids = []
        if not self.as_written:
            self.end_ids.append(tokenizer.convert_tokens_to_ids(settings.end_token))
        # With first_pad, the padding token that is scored is a part of the sequence.
        if settings.score_position == "first_pad":
            self.end_ids.append(tokenizer.pad_token_id)

    def rows(self, comparisons: Sequence[Comparison]) -> list[dict]:
        """Tokenise comparisons: the columns of token_rows.COLUMNS but `index` for each of them."""
        rows, texts = [], []

        for comparison in comparisons:
            try:
                rendered = self.render(comparison)
            except (jinja2.TemplateError, TypeError, ValueError) as error:
                problem = f"chat template: {error}"
                rows.append(empty_row(comparison.source, Reason.MALFORMED, problem))
                continue

            row = empty_row(comparison.source)
            said = [i for i, response in enumerate(comparison.responses) if has_text(response)]
            row["answers"], row["empty_answers"] = said, len(comparison.responses) - len(said)
            row["ranks"], row["weight"] = list(comparison.ranks), comparison.weight
            row["grades"] = list(comparison.grades or ())
            row["votes"] = list(comparison.votes or ())

            row["prompt_key"] = text_key(comparison.prompt)
            row["answer_keys"] = [text_key(response) for response in comparison.responses]
            row["unrendered"] = rendered.unrendered

            if rendered.lost:
                row.update(answers=[], dropped=Reason.NOT_RENDERED, problem=rendered.lost)

            texts += [
                (rendered.texts[i], rendered.prompt_ends[i], rendered.chat) for i in row["answers"]
            ]
            rows.append(row)

        encoded = iter(self._encode(texts))
        for row in rows:
            self._fit(row, [next(encoded) for _ in row["answers"]])
        return rows

    def _encode(self, texts: Sequence[tuple[str, int, bool]]) -> list[tuple[list[int], int]]:
        """Token ids with leading and end tokens, and the token at which the answer starts."""
        encoded: dict[int, tuple[list[int], int]] = {}

        for chat in {chat for _, _, chat in texts}:
            numbers = [i for i, text in enumerate(texts) if text[2] == chat]
            # Text from the data never becomes a special token; what a chat template writes does.
            batch = self.tokenizer(
                [texts[i][0] for i in numbers],
                add_special_tokens=self.as_written and not chat,
                split_special_tokens=not (self.as_written or chat),
                return_attention_mask=False,
            )

            leading = [] if self.as_written or chat else self.leading_ids

            for row, i in enumerate(numbers):
                text, prompt_end, _ = texts[i]
                ids = batch.input_ids[row]
                # White space at the answer's beginning is the prompt's.
                start = batch.char_to_token(row, len(text) - len(text[prompt_end:].lstrip()))
                start = len(ids) if start is None else start

                while len(ids) > 1 and ids[-1] == self.unscored:
                    ids = ids[:-1]
                start = min(start, len(ids))
                encoded[i] = (leading + ids + self.end_ids, len(leading) + start)

        return [encoded[i] for i in range(len(texts))]

    def _fit(self, row: dict, encoded: list[tuple[list[int], int]]) -> None:
        """Apply the truncation policy to one comparison and say whether it can train."""
        row["prompt_tokens"] = min((start for _, start in encoded), default=0)

        fitted = [self._shorten(ids, start) for ids, start in encoded]
        kept = [i for i, shortened in enumerate(fitted) if shortened]
        whole = [encoded[i] for i in kept]
        row["long_answers"] = len(encoded) - len(kept)
        row["answers"] = [row["answers"][i] for i in kept]
        row["input_ids"] = [ids for ids, _ in filter(None, fitted)]
        row["answer_starts"] = [start for _, start in filter(None, fitted)]
        row["answer_tokens"] = [len(ids) - start for ids, start in whole]

        row["length"] = max(map(len, row["input_ids"]), default=0)
        row["cuts"] = [
            len(before) - len(ids) for (before, _), ids in zip(whole, row["input_ids"], strict=True)
        ]
        row["cut"] = max(row["cuts"], default=0)
        row["shared"] = common_prefix_length(row["input_ids"])
        row["tokens"] = sum(map(len, row["input_ids"])) - row["shared"] * (len(row["answers"]) - 1)

        row["dropped"] = row["dropped"] or _why_unusable(row)
        if row["dropped"] == Reason.IDENTICAL and any(ids != whole[0][0] for ids, _ in whole):
            row["dropped"] = Reason.CUT_IDENTICAL

    def _shorten(self, ids: list[int], start: int) -> tuple[list[int], int] | None:
        """What the truncation policy leaves of one answer with its prompt.

        It looks at no other answer to the prompt, since a score must not depend on those.

        Args:
            ids: of prompt and answer.
            start: where the answer begins.

        Returns:
            The same two of what is left; None if that is nothing.
        """
        excess = len(ids) - self.settings.max_seq_len
        if excess <= 0:
            return ids, start

        if self.settings.overlength == "truncate_end":
            kept = self.settings.max_seq_len - len(self.end_ids)
            return ids[:kept] + self.end_ids, min(start, kept)

        # The prompt is cut from its left, behind the leading special tokens.
        head = len(self.leading_ids)
        if not head or ids[:head] != self.leading_ids:
            head = int(ids[0] == self.tokenizer.bos_token_id)  # a chat template wrote it
        if self.settings.overlength == "drop" or excess > start - head:
            return None
        return ids[:head] + ids[head + excess :], start - excess


def _why_unusable(row: dict) -> str:
    if len(row["answers"]) < 2:
        if row["empty_answers"]:
            return Reason.EMPTY
        return Reason.TOO_LONG if row["long_answers"] else Reason.FEW
    if all(ids == row["input_ids"][0] for ids in row["input_ids"]):
        return Reason.IDENTICAL
    # Where two answers differ and two ranks do, some pair of answers differs in both.
    return Reason.TIED if len({row["ranks"][i] for i in row["answers"]}) == 1 else ""


def text_key(value: str | list) -> int:
    """A hash of a text or of messages, 64 bits: equal but for white space at the ends of a text."""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def has_text(response: str | list) -> bool:
    """Whether an answer, a text or messages, says anything."""
    if isinstance(response, str):
        return bool(response.strip())
    return any(map(says_something, response))
