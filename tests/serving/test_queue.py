"""Waiting, packing, dropping and failing, with a model that is only numbers."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
import torch

from utils.serving.queue import ClientGone, ModelError, QueueFull, ScoreQueue
from utils.settings import InputError


class FakeScorer:
    """Scores a row by its number; holds the model thread until it may go on."""

    device = torch.device("cpu")
    max_tokens = 100

    def __init__(self):
        self.batches = []
        self.entered, self.go = threading.Event(), threading.Event()

    def size(self, row):
        return row["size"]

    def score_rows(self, rows):
        self.batches.append([row["number"] for row in rows])
        self.entered.set()
        self.go.wait()
        for row in rows:
            if row["number"] < 0:
                raise InputError("a score is not finite") if row["number"] == -1 else KeyError("x")
            row["scores"][0] = float(row["number"])


def make_row(number, size=1):
    return {"number": number, "size": size, "ranks": [0]}


async def stays():
    return False


async def goes():
    return True


@asynccontextmanager
async def working_queue(scorer, max_answers=100):
    """A queue whose model is at a first row, which is number 0."""
    queue = ScoreQueue(scorer, max_answers)
    work = asyncio.create_task(queue.run())
    first = asyncio.create_task(queue.score(lambda: [make_row(0)], 1, stays))
    await asyncio.to_thread(scorer.entered.wait)
    try:
        yield queue
        assert (await first)[0]["scores"] == [0.0]
        assert queue.waiting == 0
    finally:
        scorer.go.set()
        work.cancel()
        queue.close()


async def put(queue, rows, is_gone=stays):
    """A request that waits, tokenised."""
    before = len(queue._jobs)
    task = asyncio.create_task(queue.score(lambda: rows, len(rows), is_gone))
    while len(queue._jobs) == before:
        await asyncio.sleep(0)
    return task


def test_those_that_wait_are_packed_up_to_the_size_of_a_batch():
    async def run():
        async with working_queue(scorer := FakeScorer()) as queue:
            sizes = [30, 40, 20, 50, 120, 1]
            tasks = [await put(queue, [make_row(i, size)]) for i, size in enumerate(sizes, 1)]
            scorer.go.set()
            scored = [(await task)[0]["scores"] for task in tasks]
        assert scored == [[float(number)] for number in range(1, 7)]
        assert scorer.batches == [[0], [1, 2, 3], [4], [5], [6]]

    asyncio.run(run())


def test_what_is_too_much_is_refused_at_once():
    async def run():
        async with working_queue(scorer := FakeScorer(), max_answers=4) as queue:
            task = await put(queue, [make_row(1), make_row(2)])
            with pytest.raises(QueueFull, match="3 answers wait already, of 4"):
                await queue.score(lambda: [make_row(3), make_row(4)], 2, stays)
            scorer.go.set()
            await task
            # Where none waits, any request is taken, else it never could be.
            rows = [make_row(number) for number in range(9)]
            assert len(await queue.score(lambda: rows, 9, stays)) == 9

    asyncio.run(run())


def test_who_has_gone_is_not_scored():
    async def run():
        async with working_queue(scorer := FakeScorer()) as queue:
            gone = await put(queue, [make_row(1)], goes)
            cancelled = await put(queue, [make_row(2)])
            task = await put(queue, [make_row(3)])
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            scorer.go.set()
            await task
            with pytest.raises(ClientGone):
                await gone
        assert scorer.batches == [[0], [3]]

    asyncio.run(run())


def test_one_alone_fails_and_the_next_is_scored(capsys):
    async def run():
        async with working_queue(scorer := FakeScorer()) as queue:
            tasks = [await put(queue, [make_row(number)]) for number in (1, -1, 2, -2)]
            scorer.go.set()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [row["scores"] for (row,) in (done[0], done[2])] == [[1.0], [2.0]]
            assert all(isinstance(done[place], ModelError) for place in (1, 3))
            assert str(done[1]) == "a score is not finite"
            assert "KeyError" not in str(done[3])
            (after,) = await queue.score(lambda: [make_row(5)], 1, stays)
            assert after["scores"] == [5.0]

    asyncio.run(run())
    assert "KeyError" in capsys.readouterr().err


def test_what_cannot_be_tokenised_raises_where_it_was_asked():
    def fail():
        raise ValueError("no")

    async def run():
        async with working_queue(scorer := FakeScorer()) as queue:
            with pytest.raises(ValueError, match="no"):
                await queue.score(fail, 1, stays)
            scorer.go.set()

    asyncio.run(run())
