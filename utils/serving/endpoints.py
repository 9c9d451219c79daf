"""What a request is answered with: rows are made of it, and of their scores the answer."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fastapi import Request
from starlette.exceptions import HTTPException

from utils.data.comparison import MAX_ANSWERS, MAX_CHARACTERS
from utils.data.token_rows import Reason
from utils.data.tokenization import has_text
from utils.data.whole_texts import WholeTextTokenizer
from utils.evaluation.settings import ScorerSettings
from utils.serving.gate import MAX_BODY
from utils.serving.protocols import (
    Classified,
    ClassifyAnswer,
    ClassifyRequest,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoreRequest,
    Usage,
)
from utils.serving.queue import ScoreQueue


class Endpoints:
    """The three protocols, and /health.

    Args:
        args: of rw_eval.py; /health tells of them.
        queue: where requests wait for the model.
    """

    def __init__(self, args: ScorerSettings, queue: ScoreQueue):
        self.args, self.queue = args, queue
        self.encoder = queue.scorer.encoder
        self.whole = WholeTextTokenizer(self.encoder)

        checks = Path(args.model_name_or_path, "checks.json")
        self.checks = json.loads(checks.read_text(encoding="utf-8")) if checks.is_file() else None

    async def score(self, body: ScoreRequest, request: Request) -> ScoreAnswer:
        """Score the answers to one prompt."""
        comparison = body.comparison
        rows = await self._score(request, comparison.responses, self.encoder.rows, [comparison])
        (row,) = rows
        cuts = dict(zip(row["answers"], row["cuts"], strict=True))
        return ScoreAnswer(
            scores=row["scores"],
            problems=why_not_scored(row, comparison.responses),
            cut=[cuts.get(number, 0) for number in range(len(comparison.responses))],
            unrendered=row["unrendered"] or None,
        )

    async def get_reward(self, body: RewardRequest, request: Request) -> RewardAnswer:
        """Score OpenRLHF's queries."""
        groups = body.groups()
        texts = [([body.query[i] for i in numbers], prompt) for prompt, numbers in groups]
        rows = await self._score(request, body.query, self._whole_rows, texts)

        rewards: list[float | None] = [None] * len(body.query)
        for (_, numbers), row in zip(groups, rows, strict=True):
            for number, score in zip(numbers, row["scores"], strict=True):
                rewards[number] = score
        logs = {
            "end_token_appended": sum(not self.whole.is_ended(text) for text in body.query),
            "prompt_tokens_cut": sum(sum(row["cuts"]) for row in rows),
            "not_scored": rewards.count(None),
        }
        return RewardAnswer(
            rewards=rewards,
            scores=rewards,
            extra_logs={name: value / len(body.query) for name, value in logs.items()},
        )

    async def classify(self, body: ClassifyRequest, request: Request) -> ClassifyAnswer:
        """Score vLLM's texts, or its messages."""
        served = self.args.model_name_or_path
        if body.model not in (None, served):
            raise HTTPException(404, f"the model is {served}; expected it, or none, in model")

        if comparison := body.comparison:
            answers: Sequence = comparison.responses
            rows = await self._score(request, answers, self.encoder.rows, [comparison])
        else:
            answers = body.texts
            texts = [([text], "") for text in answers]
            rows = await self._score(request, answers, self._whole_rows, texts)

        data = []
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            (problem,) = why_not_scored(row, [answer])
            data.append(Classified(index=index, probs=row["scores"], problem=problem))

        tokens = sum(len(ids) for row in rows for ids in row["input_ids"])
        return ClassifyAnswer(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=served,
            data=data,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    async def health(self) -> dict:
        """What is served, how text becomes tokens, and the limits."""
        args = self.args
        return {
            "model": args.model_name_or_path,
            "dtype": args.dtype,
            "batch_layout": args.batch_layout,
            "normalize": args.normalize,
            "text": asdict(self.encoder.settings),
            "checks": self.checks,
            "waiting": self.queue.waiting,
            "limits": {
                "max_queue": self.queue.max_answers,
                "body_bytes": MAX_BODY,
                "answers_a_request": MAX_ANSWERS,
                "characters_a_text": MAX_CHARACTERS,
            },
        }

    async def _score(
        self, request: Request, answers: Sequence, make_rows: Callable, inputs: Sequence
    ) -> Sequence[dict]:
        """The scored rows of a request; HTTPException if its conversation cannot be rendered."""
        rows = await self.queue.score(
            lambda: make_rows(inputs), len(answers), request.is_disconnected
        )
        for row in rows:
            if row["dropped"] == Reason.MALFORMED:
                raise HTTPException(422, row["problem"])
        return rows

    def _whole_rows(self, texts: Sequence[tuple[Sequence[str], str]]) -> list[dict]:
        """The rows of texts with their prompts; "" for one that is not known."""
        if self.encoder.settings.score_position == "mean" and not all(p for _, p in texts):
            raise HTTPException(
                422,
                "the score is the mean over the answer (score_position), so it must be known where "
                "the answer begins: give prompts that the queries begin with, or ask /score",
            )
        return [self.whole.row(*one) for one in texts]


def why_not_scored(row: dict, answers: Sequence) -> list[str | None]:
    """For each of the K answers of a row why it has no score; None for those that have one."""
    problems: list[str | None] = []
    for number, answer in enumerate(answers):
        if number in row["answers"]:
            problems.append(None)
        elif row["dropped"] == Reason.NOT_RENDERED:
            problems.append(f"{row['problem']} is {Reason.NOT_RENDERED}")
        else:
            problems.append(Reason.TOO_LONG if has_text(answer) else Reason.EMPTY)
    return problems
