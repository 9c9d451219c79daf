"""A reader for each column layout; layouts.py says which columns each has.

A reader makes a Comparison of a row, a dict with the layout's columns, and the name of its source.
It raises ValueError for a bad row. First come the layouts for data of one's own, then those of
public data sets, last what they share.
"""

import math
import re
from collections.abc import Callable, Iterable
from operator import getitem
from typing import Any

from utils.data.comparison import (
    Comparison,
    Message,
    check_number,
    check_text,
    ranks_from_scores,
    shorten,
)
from utils.data.formats.conversations import TURN, make_comparison, split_transcripts
from utils.data.formats.messages import as_messages, is_empty, read_list, read_messages

# Ranks for what Arena's column `winner` says.
WINNERS = {
    "model_a": (0, 1),
    "model_b": (1, 0),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), (0, 0)),
}


def pairs(row: dict, source: str, first: str) -> Comparison:
    """chosen, rejected, and what they answer in one of PROMPTS, perhaps with a history before it.

    Texts, or chat messages (TRL's preference type, LLaMA-Factory's and axolotl's).

    Args:
        row, source: as all readers take them.
        first: the column of PROMPTS that is read; where it is empty, the next that is not.
    """
    column = next((name for name in (first, *PROMPTS) if not is_empty(row.get(name))), first)
    prompt = PROMPTS[column](row, column)
    if column != "history" and (before := _history(row)):
        prompt = before + read_messages(as_messages(prompt), "user")
    return make_comparison(prompt, (row["chosen"], row["rejected"]), (0, 1), source)


def transcripts(row: dict, source: str) -> Comparison:
    """chosen, rejected: whole dialogues (Anthropic HH), or whole message lists."""
    answers = (row["chosen"], row["rejected"])
    if all(isinstance(as_messages(answer), list) for answer in answers):
        return make_comparison([], answers, (0, 1), source)
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError("chosen and rejected are neither two texts nor two lists of messages")
    return Comparison(*split_transcripts(answers), (0, 1), source)


def scored(row: dict, source: str) -> Comparison:
    """prompt, responses, scores: K answers, the higher score is better."""
    scores = _check_numbers("scores", _list(row, "scores"))
    return _graded(row["prompt"], _list(row, "responses"), scores, source)


def ranked(row: dict, source: str) -> Comparison:
    """prompt, responses, ranks: K answers, the lower rank is better."""
    ranks = ranks_from_scores([-rank for rank in _check_numbers("ranks", _list(row, "ranks"))])
    return make_comparison(row["prompt"], _list(row, "responses"), ranks, source)


def voted(row: dict, source: str) -> Comparison:
    """prompt, responses, votes: K answers, the one with more votes is better."""
    votes = _check_numbers("votes", _list(row, "votes"), least=0)
    ranks = ranks_from_scores(votes)
    return make_comparison(row["prompt"], _list(row, "responses"), ranks, source, votes=votes)


def unranked(row: dict, source: str) -> Comparison:
    """prompt, responses: K answers that nobody ranked."""
    answers = _list(row, "responses")
    return make_comparison(row["prompt"], answers, [0] * len(answers), source)


def single(row: dict, source: str) -> Comparison:
    """prompt, response: one answer."""
    return make_comparison(row["prompt"], [row["response"]], [0], source)


def webgpt(row: dict, source: str) -> Comparison:
    """openai/webgpt_comparisons: a question and two answers with scores."""
    scores = _check_numbers("scores", (row["score_0"], row["score_1"]))
    question = row["question"]
    text = question.get("full_text") if isinstance(question, dict) else question
    return _graded(_question(text), (row["answer_0"], row["answer_1"]), scores, source)


def shp(row: dict, source: str) -> Comparison:
    """stanfordnlp/SHP: a post and two comments; labels is 1 where the first is preferred.

    score_ratio, the preferred comment's votes by the other's (at least 1), is taken for the odds:
    its natural logarithm is the margin.
    """
    ranks = (0, 1) if _one_of(row, "labels", (0, 1)) == 1 else (1, 0)
    grades = None
    if row.get("score_ratio") is not None:
        margin = math.log(check_number("score_ratio", row["score_ratio"], least=1))
        grades = [margin if rank == 0 else 0 for rank in ranks]
    answers = (row["human_ref_A"], row["human_ref_B"])
    return make_comparison(_question(row["history"]), answers, ranks, source, grades=grades)


def ultrafeedback(row: dict, source: str) -> Comparison:
    """openbmb/UltraFeedback: an instruction and completions with an overall_score of 1 to 10."""
    scores = _check_numbers("overall_score", _parts(row, "completions", "overall_score"))
    answers = _parts(row, "completions", "response")
    return _graded(_question(row["instruction"]), answers, scores, source)


def helpsteer2(row: dict, source: str) -> Comparison:
    """nvidia/HelpSteer2, preference/: preference_strength -3 (first is much better) to 3.

    A prompt of several turns has lines <extra_id_1>Assistant and <extra_id_1>User between them.
    """
    grades = _grades("preference_strength", row["preference_strength"])
    text = check_text("prompt", row["prompt"])
    first, *others = re.split(r"\n<extra_id_1>(User|Assistant)\n", text)
    prompt = _question(first)
    for role, text in zip(others[::2], others[1::2], strict=True):
        prompt.append({"role": role.lower(), "content": text})
    return _graded(prompt, (row["response_1"], row["response_2"]), grades, source)


def helpsteer3(row: dict, source: str) -> Comparison:
    """nvidia/HelpSteer3, preference/: as HelpSteer2, with each annotator's score of -3 to 3."""
    grades = _grades("overall_preference", row["overall_preference"])
    votes = None
    if row.get("individual_preference") is not None:
        parts = _parts(row, "individual_preference", "score")
        scores = _check_numbers("individual_preference", parts, least=-3, most=3)
        votes = _votes([(score < 0) + 2 * (score > 0) for score in scores]) if scores else None
    answers = (row["response1"], row["response2"])
    return _graded(_list(row, "context"), answers, grades, source, votes)


def nectar(row: dict, source: str) -> Comparison:
    """berkeley-nest/Nectar: a prompt with its turns in the text, answers with a rank from 1."""
    ranks = ranks_from_scores(
        [-rank for rank in _check_numbers("rank", _parts(row, "answers", "rank"))]
    )
    return make_comparison(row["prompt"], _parts(row, "answers", "answer"), ranks, source)


def arena(row: dict, source: str) -> Comparison:
    """lmsys/chatbot_arena_conversations, lmarena-ai/arena-human-preference-140k."""
    conversations = (_list(row, "conversation_a"), _list(row, "conversation_b"))
    return make_comparison([], conversations, WINNERS[_one_of(row, "winner", WINNERS)], source)


def arena_55k(row: dict, source: str) -> Comparison:
    """lmsys/lmsys-arena-human-preference-55k: JSON texts of the user's and each model's turns."""
    questions, conversations = _list(row, "prompt"), []
    for column in ("response_a", "response_b"):
        answers = _list(row, column)
        if len(answers) != len(questions):
            raise ValueError(f"{column} has {len(answers)} turns, but prompt {len(questions)}")
        turns = zip(questions, answers, strict=True)
        pairs = [(*_question(q), {"role": "assistant", "content": a}) for q, a in turns]
        conversations.append([message for pair in pairs for message in pair])
    won = [_one_of(row, f"winner_{name}", (0, 1)) for name in ("model_a", "model_b", "tie")]
    if sum(won) != 1:
        raise ValueError(f"winner_model_a, winner_model_b, winner_tie are {won}; expected one 1")
    return make_comparison([], conversations, ((0, 1), (1, 0), (0, 0))[won.index(1)], source)


def pandalm(row: dict, source: str) -> Comparison:
    """WeOpenML/PandaLM, data/testset-v1.json: three annotators say 1, 2 or 0, a tie.

    The input stands below the instruction; without one it is null or NaN there.
    """
    votes = _votes([_one_of(row, f"annotator{i}", (0, 1, 2)) for i in (1, 2, 3)])
    answers, ranks = (row["response1"], row["response2"]), ranks_from_scores(votes)
    return make_comparison(_instruction(row), answers, ranks, source, votes=votes)


def _graded(prompt, responses, grades, source, votes=None) -> Comparison:
    """The answer with the higher grade is better."""
    ranks = ranks_from_scores(grades)
    return make_comparison(prompt, responses, ranks, source, grades=grades, votes=votes)


def _question(text) -> list[Message]:
    return [{"role": "user", "content": text}]


def _asked(row: dict, column: str) -> str | list[Message]:
    """A question as the user's message; messages, and a transcript with its turns, as they are."""
    value = as_messages(row[column])
    if isinstance(value, list):
        return read_messages(value, "user")
    text = check_text(column, value)
    return text if text.rstrip().endswith(TURN) else _question(text)


def _instruction(row: dict, column: str = "instruction") -> str | list[Message]:
    """An instruction as the user's message, and below it the input if there is one (Alpaca)."""
    asked = _asked(row, column)
    if is_empty(row.get("input")):
        return asked
    more = check_text("input", row["input"])
    if len(asked) != 1 or isinstance(asked, str):
        raise ValueError(f"input is {shorten(more)}, but {column} is a conversation")
    return _question(f"{asked[0]['content']}\n\n{more}")


def _turns(row: dict, column: str) -> list[Message]:
    """Messages; some tables have the chosen answer as the last one, which is none of the prompt."""
    turns = read_messages(_list(row, column), "user")
    answers = [read_messages(as_messages(row[c]), "assistant") for c in ("chosen", "rejected")]
    is_answered = turns and turns[-1]["role"] == "assistant"
    return turns[:-1] if is_answered and turns[-1:] in [a[-1:] for a in answers] else turns


def _history(row: dict, column: str = "history") -> list[Message]:
    """The turns before the prompt: messages, or [question, answer] of each (LLaMA-Factory)."""
    if is_empty(row.get(column)):
        return []
    turns = _list(row, column)
    if all(isinstance(turn, dict) for turn in turns):
        return read_messages(turns, "user")

    messages = []
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError(f"{column} has {shorten(turn)}; expected a question and its answer")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            if not is_empty(text):
                messages.append({"role": role, "content": check_text(column, text)})
    return messages


def is_history(value: Any) -> bool:
    """Whether a column `history` with this value is read."""
    try:
        return bool(_history({"history": value}))
    except ValueError:
        return False


def _history_alone(row: dict, column: str) -> str | list[Message]:
    """A history that is the whole prompt: as any other, or a text that asks (as in SHP)."""
    is_text = isinstance(row[column], str) and not row[column].lstrip().startswith("[")
    return _asked(row, column) if is_text else _history(row, column)


# What chosen and rejected may answer, in the order of preference, and how it is read.
PROMPTS: dict[str, Callable[[dict, str], Any]] = {
    "prompt": getitem,
    **dict.fromkeys(("conversations", "messages", "conversation"), _turns),
    "instruction": _instruction,
    **dict.fromkeys(("question", "query", "input"), _asked),
    "history": _history_alone,
}


def _grades(column: str, value: object) -> list[float]:
    """Grades of two answers: a strength of -3 to 3 is their difference, below 0 for the first."""
    strength = check_number(column, value, -3, 3)
    return [max(-strength, 0), max(strength, 0)]


def _votes(choices: list[int]) -> list[float]:
    """Votes for two answers of annotators who chose 1, 2 or 0, a tie: half a vote for each."""
    half = choices.count(0) / 2
    return [choices.count(1) + half, choices.count(2) + half]


def _list(row: dict, column: str) -> list:
    return read_list(column, row[column])


def _parts(row: dict, column: str, field: str) -> list:
    """One field of each dict in a list."""
    parts = _list(row, column)
    for part in parts:
        if not isinstance(part, dict) or field not in part:
            raise ValueError(f"{column} has {shorten(part)}; expected a field {field}")
    return [part[field] for part in parts]


def _check_numbers(column: str, values: Iterable, **limits: float) -> list[float]:
    return [check_number(column, value, **limits) for value in values]


def _one_of(row: dict, column: str, choices: Iterable):
    """The one of `choices` that the column has."""
    for choice in choices:
        if row[column] == choice:
            return choice
    listed = ", ".join(map(str, choices))
    raise ValueError(f"{column} is {shorten(row[column])}; expected one of {listed}")
