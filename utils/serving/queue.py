"""Requests wait here for the model, and those that wait together are scored in one batch.

    requests --> tokenizing thread --> waiting --> model thread --> answers
                 one at a time         in order    as many as fit in a batch

Everything but the two threads' own work happens on the event loop, so nothing needs a lock.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from utils.evaluation.scoring import Scorer
from utils.settings import InputError


class QueueFull(Exception):
    """More answers wait than may."""


class ClientGone(Exception):
    """Nobody waits for the scores any more."""


class ModelError(Exception):
    """The model cannot score a request; the message is for whoever sent it."""


@dataclass(frozen=True, eq=False)
class _Job:
    """The rows of a request, tokenised.

    Attributes:
        rows: with `scores`, to be filled in.
        size: their tokens in a batch.
        is_gone: whether the client has closed the connection.
        scored: done once the scores are there.
    """

    rows: list[dict]
    size: int
    is_gone: Callable[[], Awaitable[bool]]
    scored: asyncio.Future = field(default_factory=asyncio.Future)


class ScoreQueue:
    """Scores rows for many requests at once.

    Args:
        scorer: the model; only one thread calls it.
        max_answers: that may wait.
    """

    def __init__(self, scorer: Scorer, max_answers: int):
        self.scorer, self.max_answers = scorer, max_answers
        self.waiting = 0  # answers that were accepted and are not scored yet
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        # One thread each: tokenizers change their settings between calls.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._model = ThreadPoolExecutor(1, "model", initializer=self._choose_device)

    async def score(
        self,
        make_rows: Callable[[], Sequence[dict]],
        answers: int,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> Sequence[dict]:
        """Tokenise a request, wait for its turn, and score it.

        Args:
            make_rows: makes its rows, in another thread.
            answers: how many it has.
            is_gone: whether its client has gone, asked when its turn comes.

        Returns:
            The rows, each with `scores`: K floats, None for an answer that was not kept.

        Raises:
            QueueFull, ClientGone, ModelError: it is not scored.
        """
        if self.waiting and self.waiting + answers > self.max_answers:
            raise QueueFull(
                f"{self.waiting} answers wait already, of {self.max_answers} that may (--max_queue)"
            )

        self.waiting += answers
        try:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._tokenizing, make_rows)
            for row in rows:
                row["scores"] = [None] * len(row["ranks"])

            job = _Job(list(rows), sum(map(self.scorer.size, rows)), is_gone)
            self._jobs.append(job)
            self._arrived.set()
            await job.scored
            return rows
        finally:
            self.waiting -= answers

    async def run(self) -> None:
        """Score what arrives, batch after batch, until it is cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while jobs := await self._next_jobs():
                await self._score(jobs)

    def close(self) -> None:
        """End both threads, once they have done what they are at."""
        self._tokenizing.shutdown(cancel_futures=True)
        self._model.shutdown(cancel_futures=True)

    async def _next_jobs(self) -> list[_Job]:
        """The first jobs that wait, as many as fit in a batch; at least one if any waits."""
        jobs: list[_Job] = []
        size = 0
        while self._jobs:
            job = self._jobs[0]
            if jobs and size + job.size >= self.scorer.max_tokens:
                break
            self._jobs.popleft()

            if job.scored.cancelled():
                continue
            if await job.is_gone():
                job.scored.set_exception(ClientGone())
                continue
            jobs.append(job)
            size += job.size
        return jobs

    async def _score(self, jobs: list[_Job]) -> None:
        """Score jobs in one batch; where that fails, each by itself, so that one alone fails."""
        rows = [row for job in jobs for row in job.rows]
        loop = asyncio.get_running_loop()
        error: Exception | None = None

        try:
            await loop.run_in_executor(self._model, self.scorer.score_rows, rows)
        except Exception as caught:  # noqa: BLE001  # whatever it is, the next request is served
            error = caught

        if error and len(jobs) > 1:
            for job in jobs:
                await self._score([job])
            return

        for job in jobs:
            if job.scored.done():  # the handler was cancelled meanwhile
                continue
            if error:
                job.scored.set_exception(_model_error(error))
            else:
                job.scored.set_result(None)

    def _choose_device(self) -> None:
        if self.scorer.device.index is not None:
            torch.cuda.set_device(self.scorer.device)


def _model_error(error: Exception) -> ModelError:
    """What the client gets to know: our own messages alone; the rest goes to standard error."""
    if isinstance(error, InputError):
        return ModelError(str(error))
    traceback.print_exception(error)
    return ModelError("the model failed; the server's standard error says how")
