"""What requests and answers hold: this project's own, OpenRLHF's and vLLM's.

A request that pydantic has taken can be tokenised: what is wrong with it is a ValueError here,
which becomes the answer 422.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from utils.data.comparison import MAX_ANSWERS, Comparison, check_text
from utils.data.formats.messages import read_messages, read_tools

MAX_RENDERED = 2**23  # characters of a request, once the prompt stands before each response

TextOrMessages = str | list[dict[str, Any]]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_ANSWERS)]


class Request(BaseModel):
    """A request, in which a field that nobody knows is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")


class ScoreRequest(Request):
    """POST /score: a prompt and its answers.

    Attributes:
        prompt: text, or messages.
        responses: K of the same; a text answers messages too.
        tools: JSON schemas of the functions that the answers may call.
    """

    prompt: TextOrMessages
    responses: Annotated[list[TextOrMessages], Field(min_length=1, max_length=MAX_ANSWERS)]
    tools: list[dict[str, Any]] | None = None
    _comparison: Comparison = PrivateAttr()

    @model_validator(mode="after")
    def _read(self) -> Self:
        self._comparison = read_comparison(self.prompt, self.responses, self.tools)
        return self

    @property
    def comparison(self) -> Comparison:
        """What is scored."""
        return self._comparison


class ScoreAnswer(BaseModel):
    """The answer of /score: K scores and what there is to say of each.

    Attributes:
        scores: null for a response that cannot be scored.
        problems: why it cannot; null for those that are scored.
        cut: tokens that were taken from the prompt (or, in a model that was trained with
            truncate_end, from the end) so that prompt and response fit into max_seq_len.
        unrendered: a part of the prompt that the chat template does not write, or null.
    """

    scores: list[float | None]
    problems: list[str | None]
    cut: list[int]
    unrendered: str | None


class RewardRequest(Request):
    """POST /get_reward, as OpenRLHF's RemoteRewardModel and agents send it.

    Attributes:
        query: prompts with their answers, whole texts, special tokens and all.
        prompts: with which the queries begin; those of the same prompt share its tokens.
        labels: of no use to a reward model.
    """

    query: Texts
    prompts: list[str] | None = None
    labels: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_whole_texts("query", self.query)
        if self.prompts and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.query)} queries but {len(self.prompts)} prompts")
        return self

    def groups(self) -> list[tuple[str, list[int]]]:
        """Prompts and the numbers of their queries; one whose prompt is not known stands alone."""
        known: dict[str, list[int]] = {}
        alone = []
        prompts = self.prompts or [""] * len(self.query)
        for number, (query, prompt) in enumerate(zip(self.query, prompts, strict=True)):
            if prompt and query.startswith(prompt):
                known.setdefault(prompt, []).append(number)
            else:
                alone.append(("", [number]))
        return [*known.items(), *alone]


class RewardAnswer(BaseModel):
    """The answer of /get_reward.

    Attributes:
        rewards: a score for each query; null for one that is too long.
        scores: the same; OpenRLHF filters prompts by them.
        extra_logs: numbers, which OpenRLHF logs as means over its samples.
    """

    rewards: list[float | None]
    scores: list[float | None]
    extra_logs: dict[str, float]


class ClassifyRequest(Request):
    """POST /classify, as vLLM's clients send it: texts, or one conversation.

    Attributes:
        model: the one that is served, or null.
        input: one text or several, with what the chat template would have written.
        messages: a conversation, of which the last turn is scored.
        tools: as in ScoreRequest.
        use_activation: vLLM's own name for a score between 0 and 1, which is not given here.
        user: of no use here.
    """

    model: str | None = None
    input: str | Texts | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=2)] | None = None
    tools: list[dict[str, Any]] | None = None
    use_activation: Literal[False] | None = None
    user: str | None = None
    _comparison: Comparison | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _read(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected either input or messages")
        if self.messages:
            *prompt, answer = self.messages
            self._comparison = read_comparison(prompt, [[answer]], self.tools)
        else:
            check_whole_texts("input", self.texts)
        return self

    @property
    def texts(self) -> list[str]:
        """The texts of `input`; none if there are messages."""
        return [self.input] if isinstance(self.input, str) else self.input or []

    @property
    def comparison(self) -> Comparison | None:
        """The conversation of `messages`; None if there are texts."""
        return self._comparison


class Classified(BaseModel):
    """One of vLLM's results, with what keeps a text from being scored beside it."""

    index: int
    label: str = "LABEL_0"
    probs: list[float | None]
    num_classes: int = 1
    problem: str | None = None


class Usage(BaseModel):
    """Tokens of a request, as vLLM counts them: those that share a prompt have it each."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyAnswer(BaseModel):
    """The answer of /classify; data[i].probs[0] is the score."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


def read_comparison(
    prompt: TextOrMessages, responses: list[TextOrMessages], tools: list[dict[str, Any]] | None
) -> Comparison:
    """The comparison of a request; ValueError says what is wrong with it."""
    if not isinstance(prompt, str):
        prompt = read_messages(prompt, "user")
    elif tools:
        raise ValueError("the prompt is text, which has no place for tools: give messages")
    answers = [r if isinstance(r, str) else read_messages(r, "assistant") for r in responses]

    before = len(json.dumps([prompt, tools]))
    size = before * len(answers) + sum(len(json.dumps(answer)) for answer in answers)
    if size > MAX_RENDERED:
        raise ValueError(
            f"the responses have {size:,} characters with the prompt before each; expected at most "
            f"{MAX_RENDERED:,}: send fewer of them at once"
        )
    return Comparison(prompt, answers, [0] * len(answers), "request", tools=read_tools(tools or []))


def check_whole_texts(name: str, texts: list[str]) -> None:
    """Refuse what no tokenizer takes, and texts without any word, by a ValueError."""
    for number, text in enumerate(texts, 1):
        if not check_text(f"{name} {number}", text).strip():
            raise ValueError(f"{name} {number} is empty")
