import threading
from dataclasses import fields, replace
from itertools import combinations
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from tests.conftest import slow_prefix
from utils.data.batch import LossInputs, Segments
from utils.data.comparison import Comparison
from utils.data.packing import PackedCollator, PaddedCollator, make_collator
from utils.data.sampling import MicroBatch
from utils.data.token_rows import empty_row
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.training.plan import PlannedBatches

PAD = 1
ALL_BUT_TOKENS = LossInputs(margins=True, votes=True, ties=True, sample_weights=True)


def make_row(sequences, chance):
    """A tokenised comparison: some of its answers, in order, have these token ids."""
    total = len(sequences) + int(chance.integers(0, 3))
    return {
        **empty_row(""),
        "input_ids": sequences,
        "answers": sorted(chance.permutation(total)[: len(sequences)].tolist()),
        "ranks": chance.integers(0, 3, total).tolist(),
        "answer_starts": [int(chance.integers(len(ids))) for ids in sequences],
        "shared": slow_prefix(sequences),
        "grades": [] if chance.random() < 0.3 else chance.normal(size=total).tolist(),
        "votes": [] if chance.random() < 0.3 else chance.integers(0, 3, total).tolist(),
        "weight": None if chance.random() < 0.3 else float(chance.random()),
    }


def random_rows(seed, comparisons=4):
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(comparisons):
        # Few tokens, padding among them: answers repeat each other and contain the padding id.
        prompt = chance.integers(0, 3, chance.integers(0, 6)).tolist()
        answers = [
            chance.integers(0, 3, chance.integers(1, 5)).tolist()
            for _ in range(chance.choice([2, 3, 5, 11]))
        ]
        rows.append(make_row([prompt + ids for ids in answers], chance))
    return rows, chance.choice([0.0, 1.0, 1.5], comparisons).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_padded_collator_equals_a_slow_loop(seed):
    rows, weights = random_rows(seed)
    batch = PaddedCollator(PAD, mean_score=True)(rows, weights)
    width = max(len(ids) for row in rows for ids in row["input_ids"])
    input_ids, mask, ends, mean, pairs, weight, pair_counts = [], [], [], [], [], [], []
    for row, row_weight in zip(rows, weights, strict=True):
        first, found = len(input_ids), []
        for i, better in enumerate(row["answers"]):
            for j, worse in enumerate(row["answers"]):
                different = row["input_ids"][i] != row["input_ids"][j]
                if row["ranks"][better] < row["ranks"][worse] and different:
                    found.append([first + i, first + j])
        pairs += found
        weight += [row_weight / len(found) for _ in found]
        pair_counts.append(len(found))
        for ids, start in zip(row["input_ids"], row["answer_starts"], strict=True):
            line = len(input_ids)
            input_ids.append(ids + [PAD] * (width - len(ids)))
            mask.append([True] * len(ids) + [False] * (width - len(ids)))
            ends.append(line * width + len(ids) - 1)
            mean += [(line * width + column, line) for column in range(start, len(ids))]
    assert batch.input_ids.tolist() == input_ids
    assert batch.attention_mask.tolist() == mask
    assert batch.end_index.tolist() == ends
    positions = batch.position_ids.tolist()
    for line, line_mask in zip(positions, mask, strict=True):
        assert [position for position, real in zip(line, line_mask, strict=True) if real] == [
            *range(sum(line_mask))
        ]
    assert sorted(zip(batch.pairs.tolist(), batch.weight.tolist(), strict=True)) == [
        (found, pytest.approx(value)) for found, value in sorted(zip(pairs, weight, strict=True))
    ]
    assert batch.answer_counts.tolist() == [len(row["answers"]) for row in rows]
    assert batch.pair_counts.tolist() == pair_counts
    assert list(zip(batch.mean_index.tolist(), batch.mean_answer.tolist(), strict=True)) == mean
    assert batch.attention_mask.dtype == torch.bool and batch.weight.dtype == torch.float32
    assert {batch.input_ids.dtype, batch.end_index.dtype, batch.pairs.dtype} == {torch.int64}


@pytest.mark.parametrize("collate", [PaddedCollator(PAD), PackedCollator(PAD)])
def test_batch_of_all_equals_its_comparisons_one_by_one(collate):
    rows, weights = random_rows(99, comparisons=6)
    batch = collate(rows, weights)
    assert batch.mean_index is None and batch.mean_answer is None
    alone = [collate([row], [w]) for row, w in zip(rows, weights, strict=True)]
    assert torch.equal(batch.weight, torch.cat([one.weight for one in alone]))
    tokens = batch.input_ids.flatten()[batch.end_index]
    assert torch.equal(tokens, torch.cat([one.input_ids.flatten()[one.end_index] for one in alone]))


CASES = {
    "two answers": [[5, 6, 7], [5, 6, 8, 9]],
    "an answer that begins another": [[5, 6], [5, 6, 7, 8]],
    "an answer that begins the one before it": [[5, 6, 7, 8], [5, 6]],
    "all answers equal": [[5, 6, 7]] * 3,
    "two answers equal": [[5, 6, 7], [5, 8], [5, 6, 7]],
    "nothing in common": [[5, 6], [7], [8, 6, 5]],
    "one token in common": [[5, 6, 7], [5, 8, 9]],
    "tails of one token": [[5, 6, 7], [5, 6, 8], [5, 6, 9]],
    "only some answers go on together": [[5, 6, 7], [5, 6, 8], [5, 9]],
    "one token each": [[5], [6]],
    "padding token in the text": [[PAD, 5, PAD], [PAD, 5, 6]],
    "five answers": [[5, 6, *range(9, 9 + length)] for length in (3, 1, 0, 4, 2)],
    "eleven answers": [[5, 6, 7, *[number] * (number % 4 + 1)] for number in range(20, 31)],
}


def rows_of(sample):
    """Rows and weights of a case alone, of all cases, or random ones."""
    if isinstance(sample, int):
        return random_rows(sample)
    chance = np.random.default_rng(0)
    sequences = list(CASES.values()) if sample == "all of these" else [CASES[sample]]
    return [make_row(ids, chance) for ids in sequences], [1.5, *[0.5] * (len(sequences) - 1)]


EACH_SAMPLE = pytest.mark.parametrize("sample", [*CASES, "all of these", *range(10)])


def keys_of_ends(batch):
    """The keys of each answer's last token, in order: the answer's chain of tokens."""
    ends = batch.end_segments
    assert ends.query_lengths == [1] * len(batch.end_index)
    assert ends.query_starts.tolist() == list(range(len(batch.end_index) + 1))
    chains, start = [], 0
    for length, key_start in zip(key_lengths(ends), ends.key_starts.tolist(), strict=False):
        assert key_start == start
        chains.append(ends.key_index.tolist()[start : start + length])
        start += length
    assert ends.key_starts.tolist()[-1] == start == len(ends.key_index)
    return chains


def packed_tokens(rows):
    """Comparison, position and answers of each token of a packed row, in its order."""
    tokens = []
    for number, row in enumerate(rows):
        everyone = set(range(len(row["input_ids"])))
        tokens += [(number, position, everyone) for position in range(row["shared"])]
        for answer, ids in enumerate(row["input_ids"]):
            tokens += [(number, p, {answer}) for p in range(row["shared"], len(ids))]
    return tokens


def key_lengths(segments):
    """Keys of each segment."""
    return [p + own for p, own in zip(segments.prefix_lengths, segments.own_lengths, strict=True)]


@EACH_SAMPLE
def test_chains_of_a_packed_batch_are_the_answers(sample):
    rows, weights = rows_of(sample)
    batch = PackedCollator(PAD)(rows, weights)
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    chains = keys_of_ends(batch)
    sequences = [sequence for row in rows for sequence in row["input_ids"]]
    assert [[ids[key] for key in chain] for chain in chains] == sequences
    assert [[positions[key] for key in chain] for chain in chains] == [
        list(range(len(sequence))) for sequence in sequences
    ]
    assert [chain[-1] for chain in chains] == batch.end_index.tolist()


@EACH_SAMPLE
def test_packed_answers_share_the_tokens_that_all_begin_with_and_no_others(sample):
    rows, weights = rows_of(sample)
    batch = PackedCollator(PAD)(rows, weights)
    chains = keys_of_ends(batch)
    owners = [row for row in rows for _ in row["input_ids"]]
    for (chain, row), (other, other_row) in combinations(zip(chains, owners, strict=True), 2):
        common = chain[: row["shared"]] if row is other_row else []
        assert sorted(set(chain) & set(other)) == common
    tokens = sorted({key for chain in chains for key in chain})
    assert tokens == list(range(len(packed_tokens(rows)))) == list(range(batch.input_ids.shape[1]))


@EACH_SAMPLE
def test_packed_tokens_see_what_stands_before_them_in_an_answer(sample):
    rows, weights = rows_of(sample)
    batch = PackedCollator(PAD)(rows, weights)
    segments, width = batch.segments, batch.input_ids.shape[1]
    keys, positions = segments.key_index.tolist(), batch.position_ids[0].tolist()
    # Counted, not only marked: a key that stood twice would weigh twice in the softmax.
    seen = np.zeros((width, width), dtype=int)
    query_start = key_start = 0
    for queries, length in zip(segments.query_lengths, key_lengths(segments), strict=True):
        piece = keys[key_start : key_start + length]
        for query in range(queries):
            for key in piece[: length - queries + query + 1]:
                seen[query_start + query, key] += 1
        # A sliding window counts keys, so they stand in the order of their positions.
        assert [positions[key] for key in piece] == list(range(length))
        query_start, key_start = query_start + queries, key_start + length
    assert query_start == width and key_start == len(keys)
    tokens = packed_tokens(rows)
    expected = np.zeros((len(tokens), len(tokens)), dtype=int)
    for a, (comparison, position, answers) in enumerate(tokens):
        for b, (other, earlier, with_answers) in enumerate(tokens):
            same_chain = comparison == other and answers & with_answers
            expected[a, b] = bool(same_chain and earlier <= position)
    assert seen.tolist() == expected.tolist()
    assert seen.any(axis=1).all()  # a softmax over nothing is not a number


@EACH_SAMPLE
def test_starts_of_segments_are_the_sums_of_the_lengths_before(sample):
    batch = PackedCollator(PAD)(*rows_of(sample))
    for segments in (batch.segments, batch.end_segments):
        for lengths, longest, starts in (
            (segments.query_lengths, segments.most_queries, segments.query_starts),
            (key_lengths(segments), segments.most_keys, segments.key_starts),
        ):
            assert min(lengths) > 0
            assert longest == max(lengths)
            assert starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
            assert starts.dtype == torch.int32  # what the kernel takes
        assert segments.key_index.dtype == torch.int64


@EACH_SAMPLE
def test_each_key_of_the_row_has_one_first_use(sample):
    batch = PackedCollator(PAD)(*rows_of(sample))
    for segments in (batch.segments, batch.end_segments):
        keys = segments.key_index.tolist()
        assert segments.first_use.tolist() == [keys.index(i) for i in range(max(keys) + 1)]
        both = segments.first_use.tolist() + segments.reuses.tolist()
        assert sorted(both) == list(range(len(keys)))
        assert segments.reused.tolist() == [keys[i] for i in segments.reuses.tolist()]


@EACH_SAMPLE
def test_packed_row_has_no_padding(sample):
    rows, weights = rows_of(sample)
    batch = PackedCollator(PAD)(rows, weights)
    tokens = sum(len(ids) for row in rows for ids in row["input_ids"])
    tokens -= sum(row["shared"] * (len(row["input_ids"]) - 1) for row in rows)
    for part in (batch.input_ids, batch.attention_mask, batch.position_ids):
        assert part.shape == (1, tokens)
    assert batch.attention_mask.all()
    assert batch.attention_mask.dtype == torch.bool
    assert {batch.input_ids.dtype, batch.position_ids.dtype, batch.end_index.dtype} == {torch.int64}


@EACH_SAMPLE
@pytest.mark.parametrize("mean_score", [False, True])
def test_packed_and_padded_batches_have_the_same_pairs_and_counts(sample, mean_score):
    rows, weights = rows_of(sample)
    padded = PaddedCollator(PAD, mean_score)(rows, weights)
    packed = PackedCollator(PAD, mean_score)(rows, weights)
    for name in ("pairs", "weight", "answer_counts", "pair_counts"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))
    ends = [batch.input_ids.flatten()[batch.end_index] for batch in (padded, packed)]
    assert torch.equal(*ends)


@EACH_SAMPLE
def test_packed_and_padded_batches_take_the_mean_over_the_same_tokens(sample):
    rows, weights = rows_of(sample)
    found = []
    for collate in (PaddedCollator(PAD, True), PackedCollator(PAD, True)):
        batch = collate(rows, weights)
        assert batch.end_segments is None  # all tokens are scored, not the ends alone
        assert batch.mean_index.dtype == batch.mean_answer.dtype == torch.int64
        answers = [[] for _ in batch.end_index]
        for index, answer in zip(batch.mean_index, batch.mean_answer, strict=True):
            place = batch.input_ids.flatten()[index], batch.position_ids.flatten()[index]
            answers[answer].append(tuple(map(int, place)))
        found.append(answers)
    starts = [start for row in rows for start in row["answer_starts"]]
    sequences = [ids for row in rows for ids in row["input_ids"]]
    expected = [
        [(ids[position], position) for position in range(start, len(ids))]
        for ids, start in zip(sequences, starts, strict=True)
    ]
    assert found == [expected, expected]


@EACH_SAMPLE
def test_work_of_a_batch_equals_a_slow_loop(sample):
    rows, weights = rows_of(sample)
    sequences = [ids for row in rows for ids in row["input_ids"]]
    alone = sum(map(len, sequences))
    seen_alone = sum(position + 1 for ids in sequences for position in range(len(ids)))
    slots = len(sequences) * max(map(len, sequences))
    work = PaddedCollator(PAD)(rows, weights).work()
    assert work.dtype == torch.float64
    assert work.tolist() == [alone, slots, alone, seen_alone]
    packed = packed_tokens(rows)
    seen = sum(position + 1 for _, position, _ in packed)
    work = PackedCollator(PAD)(rows, weights).work()
    assert work.tolist() == [len(packed), len(packed), alone, seen]


@pytest.mark.parametrize("name", ["opt_tokenizer", "gpt2_tokenizer", "llama_tokenizer"])
@pytest.mark.parametrize("score_position", ["end", "first_pad", "mean"])
def test_packed_rows_of_a_tokenizer_have_the_tokens_that_it_counted(name, score_position, request):
    tokenizer = request.getfixturevalue(name)
    end, _ = prepare_tokenizer(tokenizer, False)
    settings = TextSettings(end, max_seq_len=24, score_position=score_position)
    encoder = ComparisonTokenizer(tokenizer, settings)
    answers = [" It is.", " It is not.", " It is.", " No", " It is not. It is."]
    prompts = ["Why?", "", "What does a lighthouse do? " * 3]
    rows = encoder.rows(
        [Comparison(p, answers[i:], range(5 - i), "s") for i, p in enumerate(prompts)]
    )
    batch = make_collator(encoder, "packed")(rows, [1.0] * len(rows))
    assert batch.attention_mask.sum() == batch.input_ids.numel() == sum(r["tokens"] for r in rows)
    assert rows[0]["shared"] and rows[2]["cut"]
    last = [ids[-1] for row in rows for ids in row["input_ids"]]
    assert batch.input_ids.flatten()[batch.end_index].tolist() == last


def values_of(record):
    """The fields of a batch, those of its segments among them."""
    for field in fields(record):
        value = getattr(record, field.name)
        yield from values_of(value) if isinstance(value, Segments) else [value]


@pytest.mark.parametrize("collator", [PaddedCollator, PackedCollator])
@pytest.mark.parametrize("mean_score", [False, True])
def test_batch_moves_to_a_device_with_its_segments(collator, mean_score):
    inputs = replace(ALL_BUT_TOKENS, tokens=not mean_score)
    batch = collator(PAD, mean_score, inputs=inputs)(*random_rows(3))
    moved = batch.to(torch.device("meta"))
    for value, copy in zip(values_of(batch), values_of(moved), strict=True):
        if isinstance(value, torch.Tensor):
            assert (value.device.type, copy.device.type) == ("cpu", "meta")
            assert (copy.shape, copy.dtype) == (value.shape, value.dtype)
        else:
            assert copy == value  # the lengths of segments stay lists


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("score_position", ["end", "first_pad", "mean"])
def test_make_collator_knows_layout_padding_and_score(layout, score_position):
    encoder = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=77),
        settings=TextSettings("</s>", score_position=score_position),
    )
    rows, weights = rows_of("nothing in common")
    batch = make_collator(encoder, layout)(rows, weights)
    tokens = len(packed_tokens(rows))
    assert batch.input_ids.shape == {"padded": (3, 3), "packed": (1, tokens)}[layout]
    assert (batch.segments is None) == (layout == "padded")
    assert (batch.mean_index is None) == (score_position != "mean")
    assert batch.ties is None
    assert make_collator(encoder, layout, ALL_BUT_TOKENS)(rows, weights).ties is not None
    padding = batch.input_ids[~batch.attention_mask].tolist()
    assert set(padding) == ({77} if layout == "padded" else set())


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_planned_batches_return_the_rows_of_the_plan_in_order(ahead):
    rows, _ = random_rows(5, comparisons=7)
    plan = [MicroBatch([6, 0, 3], [1.0, 0.5, 0.0]), MicroBatch([2], [2.0]), MicroBatch([5, 5], [])]
    batches = PlannedBatches(datasets.Dataset.from_list(rows), plan, lambda *given: given)
    batches.ahead = ahead
    assert len(batches) == len(plan)
    expected = [([rows[i] for i in numbers], weights) for numbers, weights in plan]
    assert list(batches) == list(batches) == expected
    batches.plan = [plan[:1], plan[1:]]  # of steps
    assert list(batches) == [expected[:1], expected[1:]]


class OnAGpu:
    """Tells the device that the thread in which its memory was pinned had been given."""

    def pin_memory(self):
        return getattr(GIVEN, "device", 0)


GIVEN = threading.local()


def test_batches_for_a_gpu_are_pinned_for_the_one_of_this_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(GIVEN, "device", device))
    rows = datasets.Dataset.from_list([{"a": 1}])
    batches = PlannedBatches(rows, [MicroBatch([0], [1.0])] * 5, lambda *given: OnAGpu())
    assert batches.ahead > 0 and list(batches) == [3] * 5


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_while_batches_are_made_shows_where_they_are_used(ahead):
    def collate(rows, weights):
        raise ValueError(f"weights {weights}")

    plan = [MicroBatch([0], [1.0])]
    batches = PlannedBatches(datasets.Dataset.from_list([{"a": 1}]), plan, collate)
    batches.ahead = ahead
    with pytest.raises(ValueError, match=r"weights \[1.0\]"):
        next(iter(batches))
