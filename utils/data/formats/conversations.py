"""A prompt and its answers, in whatever shape a row has them: a Comparison with one copy of each.

The turns of a conversation (u: the user's, a: the assistant's) are spread over the prompt's column
and an answer's in one of four ways:

    prompt      answer           what comes of both
    u1 a1 u2    a2               u1 a1 u2 a2
    u1 a1 u2    u2 a2            u1 a1 u2 a2, with one copy of what overlaps
    u2          u1 a1 u2 a2      the answer, since it holds the prompt
                u1 a1 u2 a2      the answer

So each answer becomes a whole conversation, and what all of them begin with is the prompt:

    answer 1    u1 a1 u2 | a2
    answer 2    u1 a1 u2 | b2
                prompt   | answers

Texts stay texts, without a prompt that they repeat; where a row has any list of messages, all of it
becomes messages.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from utils.data.comparison import Comparison, Message, shorten
from utils.data.formats.messages import (
    CALLS,
    REASONING,
    ROLES,
    as_messages,
    is_empty,
    read_messages,
    spells_messages,
    spells_value,
)

TURN = "\n\nAssistant:"
WHOLE = re.compile(r"\n\nHuman:.*?\n\nAssistant:", re.DOTALL)  # how a whole transcript begins

SYSTEM_ROLES = ("system", "developer")
ASKING_ROLES = (*SYSTEM_ROLES, "user")
# With a message of these nobody answers.
NO_ANSWER = (*ASKING_ROLES, "tool")


def make_comparison(
    prompt: Any,
    responses: Sequence,
    ranks: Sequence[int],
    source: str,
    *,
    grades: Sequence[float] | None = None,
    votes: Sequence[float] | None = None,
) -> Comparison:
    """The comparison of a row.

    Args:
        prompt: text, messages, one message, or what spells messages (messages.as_messages); [] or
            "" where the responses hold it.
        responses: K of the same.
        ranks, source, grades, votes: those of Comparison.

    Raises:
        ValueError: a value is none of these, prompt and conversation contradict each other, or an
            answer does not end with a message of the assistant.
    """
    prompt, responses = _read_spellings(prompt, responses)
    if any(isinstance(part, list) for part in (prompt, *responses)):
        prompt, responses = _of_messages(prompt, responses)
    else:
        prompt, responses = _of_texts(prompt, responses)
    return Comparison(prompt, responses, ranks, source, grades, votes)


def with_system(comparison: Comparison, text: str, as_message: bool = False) -> str | list[Message]:
    """The prompt of a comparison with a system text before it, unless it is there already.

    Args:
        comparison: of which the prompt is taken.
        text: of the system; of messages it becomes the first, before a text it stands in front,
            with a blank line between.
        as_message: whether a text prompt becomes a user's message, and the system's another.

    Raises:
        ValueError: the conversation begins with another system message.
    """
    prompt, system = comparison.prompt, {"role": "system", "content": text}
    if isinstance(prompt, str):
        before, there, _ = prompt.partition(text.strip())
        if there and not remainder(before, []):
            return prompt
        if as_message:
            return [system, {"role": "user", "content": prompt}]
        return f"{text.rstrip()}\n\n{prompt.lstrip()}" if prompt.strip() else text
    first = prompt[0]
    if first["role"] not in SYSTEM_ROLES:
        return [system, *prompt]
    if not first["content"].strip().startswith(text.strip()):
        raise ValueError(
            f"the system text is {shorten(text)}, but the conversation begins with the system "
            f"message {shorten(first['content'])}"
        )
    return prompt


def split_transcripts(texts: Sequence[str]) -> tuple[str, list[str]]:
    """What transcripts share up to the last turn of the assistant, and what follows it in each."""
    shared = commonprefix(texts)
    start = shared.rfind(TURN)
    cut = start + len(TURN) if start >= 0 else 0
    return shared[:cut], [text[cut:] for text in texts]


# What chat templates write around a message, and names of those who speak.
MARKUP = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]|<</?SYS>>")
SPEAKER = re.compile(rf"\b(?:{'|'.join(ROLES)})\b:?", re.IGNORECASE)


def remainder(text: str, parts: Sequence[str]) -> str:
    """What a text says beyond some others: without them, without markup and names of speakers."""
    left = _plain(text)
    wholes = [_plain(part) for part in parts]
    if any(_occurs(left, whole) for whole in (*wholes, " ".join(wholes))):
        return ""
    for part in sorted(wholes, key=len, reverse=True):
        if part and part in left:
            left = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", " ", left)
    return SPEAKER.sub(" ", MARKUP.sub(" ", left)).strip()


def _plain(text: str) -> str:
    return " ".join(text.split())


def _occurs(text: str, whole: str) -> bool:
    return text in whole and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", whole) is not None


def _read_spellings(prompt: Any, responses: Sequence) -> tuple[Any, list]:
    """Messages where a text spells them; answers are messages if all of a row's are."""
    prompt = as_messages(prompt)
    if isinstance(prompt, str) and spells_messages(prompt):
        raise ValueError(f"prompt is {shorten(prompt)}; it begins like messages, but is no list")
    spelled = [as_messages(response) for response in responses]
    if all(isinstance(response, list) for response in spelled):
        return prompt, spelled
    if all(isinstance(r, str) and spells_messages(r) for r in responses):
        for number, response in enumerate(responses, 1):
            if not spells_value(response):  # of one alone, it may be what was asked for
                raise ValueError(
                    f"answer {number} is {shorten(response)}; it begins like messages, but is no "
                    "list"
                )
    return prompt, [r if isinstance(r, str) else as_messages(r) for r in responses]


def _of_texts(prompt: Any, responses: list) -> tuple[Any, list]:
    """A text prompt and text answers, without the prompt where they repeat it."""
    text = "" if is_empty(prompt) else prompt
    if not all(isinstance(part, str) for part in (text, *responses)):
        return prompt, responses
    if (rests := _after_prompt(text, responses)) is not None:
        return text.rstrip(), rests
    if responses and all(map(WHOLE.match, responses)):
        return _of_transcripts(text, responses)
    return prompt, responses


def _of_messages(prompt: Any, responses: list) -> tuple[str | list[Message], list]:
    """A prompt of messages, and answers that are texts where they say nothing but that."""
    if not responses:
        raise ValueError("no answers")

    asked = [] if is_empty(prompt) else read_messages(prompt, "user")
    if asked and all(isinstance(response, str) for response in responses):
        if all(map(WHOLE.match, responses)):
            return _of_transcripts(asked, responses)
        responses = _after_prompt(asked[-1]["content"], responses) or responses
    conversations = [
        _conversation(asked, response, number) for number, response in enumerate(responses, 1)
    ]

    # An answer needs a message of its own, also where one conversation begins another.
    turns = zip(*(_trimmed(conversation[:-1]) for conversation in conversations), strict=False)
    shared = len(list(takewhile(lambda turn: all(m == turn[0] for m in turn), turns)))
    if not shared:
        raise ValueError(
            "the answers have no message before them in common; expected a prompt (which column "
            "has it? --columns prompt=COLUMN)"
        )

    prompt, answers = conversations[0][:shared], [turns[shared:] for turns in conversations]
    texts = [answer[0]["content"] for answer in answers]
    is_text = answers == [[{"role": "assistant", "content": text}] for text in texts]
    return prompt, texts if is_text else answers


def _of_transcripts(
    prompt: str | list[Message], responses: list[str]
) -> tuple[str | list[Message], list[str]]:
    """The prompt where answers are whole transcripts: messages stay some if they say all of it."""
    shared, rests = split_transcripts(responses)
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if any(remainder(text, [shared]) for text in texts):
        raise ValueError("the answers are whole transcripts that do not hold the prompt")
    is_all = isinstance(prompt, list) and not remainder(shared, texts)
    return (prompt if is_all else shared), rests


FEWEST_WORDS = 4  # an answer may begin with the words of a shorter prompt, as a greeting does


def _after_prompt(prompt: str, responses: list[str]) -> list[str] | None:
    """What follows the prompt in answers that begin with all of it; None if they do not.

    A transcript is known by its marker wherever it stands. Another prompt must have some words, and
    all answers begin with it and say more.
    """
    stem = prompt.strip()
    begins = [bool(stem) and response.lstrip().startswith(stem) for response in responses]
    rests = [response.lstrip().removeprefix(stem) for response in responses]
    if TURN in prompt and any(begins):
        both = zip(begins, rests, responses, strict=True)
        return [rest if begun else response for begun, rest, response in both]
    if not all(begins) or len(stem.split()) < FEWEST_WORDS:
        return None
    inside_a_word = any(stem[-1].isalnum() and rest[:1].isalnum() for rest in rests)
    return rests if all(rest.strip() for rest in rests) and not inside_a_word else None


def _conversation(asked: list[Message], response: Any, number: int) -> list[Message]:
    """The whole conversation of an answer, whether or not the response repeats the prompt."""
    said = read_messages(response, "assistant")
    if not said:
        raise ValueError(f"answer {number} has no messages")
    if said[-1]["role"] in NO_ANSWER:
        raise ValueError(
            f"answer {number} ends with a message of the role {said[-1]['role']}; expected the "
            "assistant's"
        )
    if not asked or said[0]["role"] not in ASKING_ROLES:
        return asked + said

    (system, before), (own_system, after) = _split_system(asked), _split_system(said)
    if system and own_system and _trimmed(system) != _trimmed(own_system):
        raise ValueError(f"prompt and answer {number} have two different system messages")
    system = own_system or system

    if _holds(own_system + after[:-1], before):
        return system + after
    for length in range(min(len(before), len(after) - 1), 0, -1):
        if _trimmed(before[-length:]) == _trimmed(after[:length]):
            return system + before + after[length:]
    raise ValueError(
        f"answer {number} is a conversation that begins with a message of the role "
        f"{said[0]['role']}, but it does not hold the prompt"
    )


def _holds(turns: list[Message], prompt: list[Message]) -> bool:
    """Whether the turns before an answer say all that the prompt says."""
    turns = _trimmed(turns)
    texts = [turn["content"] for turn in turns]
    for message in _trimmed(prompt):
        if message in turns:
            continue
        text = message["content"]
        if any(name in message for name in (*REASONING, *CALLS)) or not re.search(r"\w", text):
            return False
        if re.search(r"\w", remainder(text, texts)):
            return False
    return True


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages that a conversation begins with, and the others."""
    system = list(takewhile(lambda message: message["role"] in SYSTEM_ROLES, messages))
    return system, messages[len(system) :]


def _trimmed(messages: list[Message]) -> list[Message]:
    """Messages as they are compared: white space at the ends makes no difference."""
    return [{**message, "content": message["content"].strip()} for message in messages]
