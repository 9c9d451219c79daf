"""Messages as data sets write them, brought into one form.

A message is {"role", "content"} as chat templates take it, both texts, and in some "name",
"tool_call_id" (texts), "tool_calls" (a list of dicts) and whatever else a template may write, such
as "reasoning_content". Columns of a table have one type, so that a field of one row is null in all
others: null fields are as if they were not there.
"""

import math
import re
from typing import Any

from utils.data.comparison import MAX_DEPTH, Message, check_text, shorten
from utils.data.formats.spelling import read_spelled

# ShareGPT's names, and what chat templates call them. LLaMA-Factory (data/README.md) has human,
# gpt, system, function_call and observation; others are in the sets that ShareGPT's users shared.
SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "claude"), "assistant"),
    **dict.fromkeys(("model", "bot", "chatbot", "ai"), "assistant"),
}
ROLES = {
    "system": "system",
    **SPEAKERS,
    "function_call": "assistant",
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
}
# Roles of chat templates that ShareGPT does not have.
OTHER_ROLES = ("developer", "function", "ipython")


# Fields in which a message says something beside its content: thoughts, by the names that APIs and
# templates have for them, and calls ("function_call" is OpenAI's older name).
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "tool_plan")
CALLS = ("tool_calls", "function_call")


def read_messages(value: object, role: str) -> list[Message]:
    """Messages in one form; a text is one message of the given role.

    Args:
        value: text, or a list of dicts: role, content as in TRL and the OpenAI API, or from, value
            as in ShareGPT. Content may be a list of parts [{"type": "text", "text": ...}], which
            are joined, and null where the message calls tools or thinks. Further fields stay if
            they hold text, but for what is only noted about a message.

    Raises:
        ValueError: it is neither, a part is no text, or a field has another type.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"found {shorten(value)}; expected text or a list of messages")
    return [_read_message(message) for message in value]


def is_empty(value: object) -> bool:
    """Whether a table has nothing there: null, NaN, an empty list, or a text of white space."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return not value
    return value is None or (isinstance(value, float) and math.isnan(value))


# How a list of messages begins, whether JSON, Python or NumPy has spelled it; and how any list of
# dicts does, of which the first field may be another.
SPELLED = re.compile(r"\s*(?:array\()?\[?\s*\{\s*['\"](?:role|from|content|value)['\"]\s*:")
DICTS = re.compile(r"\s*(?:array\()?\[?\s*\{\s*['\"]\w+['\"]\s*:")
ROLE = re.compile(r"['\"](?:role|from)['\"]\s*:")


def as_messages(value: Any) -> Any:
    """A list of messages where the value is one, or one message, or the text of either.

    What is none of these comes back as it is: an answer that merely is JSON stays a text.
    """
    if isinstance(value, str) and DICTS.match(value) and ROLE.search(value):
        try:
            spelled = read_spelled(value)
        except ValueError:
            return value
        spelled = [spelled] if isinstance(spelled, dict) else spelled
        return spelled if _are_messages(spelled) else value
    return [value] if isinstance(value, dict) else value


def spells_messages(text: str) -> bool:
    """Whether a text begins as the spelling of messages does; it may still be something else."""
    return SPELLED.match(text) is not None


def spells_value(text: str) -> bool:
    """Whether a text is the spelling of a value from its beginning to its end."""
    try:
        read_spelled(text)
    except ValueError:
        return False
    return True


def _are_messages(value: Any) -> bool:
    """Whether a value is a list of dicts that have a role which chat templates or ShareGPT know."""
    if not isinstance(value, list) or not value:
        return False
    for message in value:
        fields = message if isinstance(message, dict) else {}
        role = fields.get("role") or fields.get("from")
        says = "value" if fields.get("role") is None else "content"
        known = isinstance(role, str) and role.strip().lower() in (*ROLES, *OTHER_ROLES)
        if not known or not (says in fields or "tool_calls" in fields):
            return False
    return True


def read_list(name: str, value: object) -> list:
    """A list, or that which a text spells; ValueError if it is neither."""
    if isinstance(value, str):
        value = _parse(name, value)
    if not isinstance(value, list):
        raise ValueError(f"{name} is {type(value).__name__}; expected a list")
    return value


def read_tools(value: object) -> list[dict] | None:
    """JSON schemas of functions, or their JSON text; None if there are none, ValueError if bad."""
    return without_nulls("tools", read_list("tools", value)) if value not in ("", []) else None


def without_nulls(name: str, value: Any, depth: int = 0) -> Any:
    """A JSON value without null fields of dicts; ValueError if nested deeper than MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [without_nulls(name, part, depth + 1) for part in value]
    if isinstance(value, dict):
        parts = {key: part for key, part in value.items() if part is not None}
        return {key: without_nulls(name, part, depth + 1) for key, part in parts.items()}
    return value


def says_something(message: Message) -> bool:
    """Whether a message has content, thoughts or calls."""
    fields = (message.get(name) for name in (*REASONING, *CALLS))
    return bool(message["content"].strip()) or any(map(holds_text, fields))


def holds_text(value: object) -> bool:
    """Whether a JSON value has a text that is not blank somewhere in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(map(holds_text, value))
    return isinstance(value, str) and bool(value.strip())


# What data sets note about a message, by the last word of the field's name: no template writes it,
# and two copies of a message may differ in it.
_NOTES = (
    *("id", "ids", "uuid", "index", "hash", "ip", "url", "identifier", "model", "source"),
    *("timestamp", "time", "date", "at", "created", "updated", "status", "type"),
    *("lang", "language", "country", "state", "header", "headers", "metadata", "meta", "reason"),
    *("weight", "train", "mask", "score", "scores", "rating", "ratings", "label", "labels"),
    *("tokens", "usage", "logprobs", "moderation"),
)
_NOTE = re.compile(rf"(.*_)?({'|'.join(_NOTES)})", re.IGNORECASE)


def _read_message(message: dict) -> Message:
    if message.get("role") is None and message.get("from") is not None:
        message = _from_sharegpt(message)

    read = {"role": _plain_role(message.get("role")), "content": message.get("content")}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            read[key] = check_text(key, message[key])

    calls = message.get("tool_calls")
    if calls is not None and calls != []:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise ValueError(f"tool_calls is {shorten(calls)}; expected a list of calls")
        read["tool_calls"] = without_nulls("tool_calls", calls)

    for key, value in message.items():
        if key not in (*read, "tool_calls") and not _NOTE.fullmatch(key):
            value = without_nulls(key, value)
            if holds_text(value):
                read[key] = value

    if not read["content"] and any(name in read for name in (*REASONING, *CALLS)):
        read["content"] = ""
    if isinstance(read["content"], list):
        read["content"] = _join_parts(read["content"])

    if not isinstance(read["role"], str) or not isinstance(read["content"], str):
        raise ValueError(f"found {shorten(message)}; expected a message with role and content")
    return read


def _plain_role(role: object) -> object:
    """ShareGPT's names of user and assistant become those of chat templates; others stay."""
    if not isinstance(role, str):
        return role
    plain = role.strip().lower()
    return SPEAKERS.get(plain, plain if plain in ("system", "tool", *OTHER_ROLES) else role)


def _join_parts(parts: list) -> str:
    if not parts:
        raise ValueError("content has no parts")
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError(f"content has {shorten(part)}; expected parts of the type text")
    return "".join(check_text("a part of the content", part.get("text")) for part in parts)


def _from_sharegpt(message: dict) -> dict:
    """{"from", "value"} with the field's usual names; the value of a function call is its JSON."""
    role, value = message["from"], message.get("value")
    others = {key: part for key, part in message.items() if key not in ("from", "value")}
    role = role.strip().lower() if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"from is {shorten(role)}; expected one of {', '.join(ROLES)}")
    if role != "function_call":
        return {**others, "role": ROLES[role], "content": value}
    calls = _parse("function_call", check_text("function_call", value))
    calls = calls if isinstance(calls, list) else [calls]  # one call, or several at once
    if not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"function_call is {shorten(calls)}; expected objects with a name")
    calls = [{"type": "function", "function": call} for call in calls]
    return {**others, "role": ROLES[role], "tool_calls": calls}


def _parse(name: str, text: str) -> Any:
    try:
        return read_spelled(text)
    except ValueError as error:
        raise ValueError(f"{name} is text, but no JSON: {error}") from None
