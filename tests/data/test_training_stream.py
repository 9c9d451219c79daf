"""Batches of a stream, compared with what a slow loop over the same rows gives."""

import gzip
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import bot, user, write_jsonl
from tests.data.chat_styles import PLAIN
from tests.data.loading import make_encoder
from utils.data import training_stream
from utils.data.cache import Encoder
from utils.data.sampling import Grouping
from utils.data.sources.files import Rows
from utils.data.tokenization import text_key
from utils.data.training_stream import TrainingStream
from utils.settings import InputError

WINDOW, STEP = 16, 8  # rows, comparisons
TIED, MALFORMED = 7, 33


@pytest.fixture
def make(tmp_path, opt_tokenizer, monkeypatch):
    """Makes a stream of two files with 30 and 20 rows, and its progress.

    A batch is the list of its comparisons' numbers, with their weights.
    """
    monkeypatch.setattr(training_stream, "WINDOW", WINDOW)
    tokenizer = make_encoder(opt_tokenizer)
    rows = [
        {"prompt": f"Q{i}", "responses": ["a", f"b{i}"], "ranks": [1, 1 if i == TIED else 0]}
        for i in range(50)
    ]
    rows[MALFORMED]["ranks"] = [1]
    one = write_jsonl(tmp_path / "one.jsonl", rows[:30])
    two = tmp_path / "two.jsonl.gz"
    two.write_bytes(gzip.compress(write_jsonl(tmp_path / "two", rows[30:]).read_bytes()))
    number = {text_key(row["prompt"]): i for i, row in enumerate(rows)}

    def make(steps, position=0, world_size=1, rank=0, weights=None, **options):
        monkeypatch.setenv("RANK", str(rank))
        parts = [Rows(str(path), (str(path),)) for path in (one, two)]
        sources = [(part, Encoder(part, tokenizer, "s")) for part in parts]
        group = partial(
            Grouping.of,
            layout="packed",
            batch_size=STEP // 2 // world_size,
            accumulation=2,
            world_size=world_size,
        )
        progress = SimpleNamespace(position=position)
        options = {"seed": 5, "max_bad_rows": 0.1, **options}
        stream = TrainingStream(
            sources,
            weights,
            group,
            lambda rows, weights: ([number[row["prompt_key"]] for row in rows], weights),
            steps,
            progress=progress,
            **options,
        )
        return stream, progress

    return make


def read_steps(stream):
    """The comparisons of each step on this rank, sorted."""
    batches = [rows for rows, _ in stream]
    return [sorted(a + b) for a, b in zip(batches[::2], batches[1::2], strict=True)]


def slow_order(windows, seed, streams, weights=None):
    """Numbers of rows in the order of a stream, written as plain loops.

    Args:
        streams: lists of numbers that begin again when they end.
    """
    places, order = [0] * len(streams), []
    for window in range(windows):
        random = np.random.default_rng([seed, window])
        shares = np.array(weights or [1.0]) / sum(weights or [1.0])
        rows = []
        for source in random.choice(len(streams), WINDOW, p=shares):
            rows.append(streams[source][places[source] % len(streams[source])])
            places[source] += 1
        order += [rows[place] for place in random.permutation(WINDOW)]
    return order


@pytest.mark.parametrize("weights", [None, [0.2, 0.8]])
@pytest.mark.parametrize("ties", [False, True])
def test_steps_follow_the_order_of_the_rows(make, weights, ties):
    stream, progress = make(12, weights=weights, ties=ties)
    streams = [range(30), range(30, 50)] if weights else [range(50)]
    order = slow_order(8, 5, streams, weights)
    usable = [i for i in order if i != MALFORMED and (ties or i != TIED)]
    expected = [sorted(usable[start : start + STEP]) for start in range(0, 12 * STEP, STEP)]
    assert read_steps(stream) == expected
    last = [place for place, i in enumerate(order) if i in usable][12 * STEP - 1]
    assert progress.position == last + 1


def test_shares_of_a_stream_are_its_weights(make):
    drawn = Counter(i >= 30 for step in read_steps(make(300, weights=[3, 1])[0]) for i in step)
    assert abs(drawn[True] / drawn.total() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / drawn.total())


@pytest.mark.parametrize("weights", [None, [0.5, 0.5]])
def test_a_stream_goes_on_where_it_was_left(make, weights):
    whole, progress = make(15, weights=weights)
    batches, positions = [], []
    for batch in whole:
        batches.append(batch)
        positions.append(progress.position)
    for step in range(15):
        rest, later = make(15 - step, position=positions[2 * step - 1] if step else 0)
        if weights:
            rest, later = make(15 - step, later.position, weights=weights)
        assert list(rest) == batches[2 * step :]
        assert later.position == progress.position


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_steps_of_one(make, world_size):
    alone = read_steps(make(10)[0])
    parts = [read_steps(make(10, 0, world_size, rank)[0]) for rank in range(world_size)]
    assert [sorted(sum(step, [])) for step in zip(*parts, strict=True)] == alone


def test_other_seeds_give_other_orders(make):
    first, again, other = (read_steps(make(5, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again != other


def test_too_many_malformed_rows_end_a_stream(make, monkeypatch):
    monkeypatch.setattr(training_stream, "FEWEST", 1)
    with pytest.raises(InputError, match=r"1 of \d+ rows read are malformed.*ranks or scores"):
        list(make(20, max_bad_rows=0.001)[0])


def test_nothing_usable_is_an_error_and_no_endless_loop(make, monkeypatch):
    stream, _ = make(5)
    stream.usable = ("nothing",)
    with pytest.raises(InputError, match="no usable comparison in"):
        list(stream)


def test_a_stream_says_once_what_the_chat_template_does_not_write(tmp_path, opt_tokenizer, capsys):
    rows = [{"prompt": [user(f"Q{i}")], "chosen": [bot("a")], "rejected": "b"} for i in range(9)]
    for row in rows[2:4]:
        row["chosen"] = [{**bot("a"), "reasoning_content": "Hm."}]
    for row in rows[5:8]:
        row["tools"] = [{"name": "f"}]
    part = Rows(str(write_jsonl(tmp_path / "s.jsonl", rows)), (str(tmp_path / "s.jsonl"),))
    encoder = Encoder(part, make_encoder(opt_tokenizer, PLAIN), "s")
    sizes = {"layout": "packed", "batch_size": 7, "accumulation": 1, "world_size": 1}
    options = (None, partial(Grouping.of, **sizes), lambda rows, _: rows, 2, 5)
    (first, _) = TrainingStream([(part, encoder)], *options, SimpleNamespace(position=0))
    said = capsys.readouterr().out
    assert len(first) == 7 and said.count("!! s: a part of a row is not rendered by the") == 1
    assert "dropped (not rendered by the chat template)" in said and "without tools, not" in said
