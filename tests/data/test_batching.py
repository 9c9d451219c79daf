import random

import datasets
import pytest
import torch

from utils.data.batching import PaddedCollator, PlannedBatches, end_positions
from utils.data.comparison import Comparison
from utils.data.sampling import MicroBatch
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)

PAD = 1


def random_rows(seed, comparisons=4):
    chance = random.Random(seed)
    rows = []
    for _ in range(comparisons):
        total = chance.randint(2, 5)
        answers = sorted(chance.sample(range(total), chance.randint(2, total)))
        # Few tokens, padding among them: answers repeat each other and contain the padding id.
        ids = [[chance.randint(0, 2) for _ in range(chance.randint(1, 4))] for _ in answers]
        rows.append(
            {
                "input_ids": ids,
                "answers": answers,
                "ranks": [chance.randint(0, 2) for _ in range(total)],
                "answer_starts": [chance.randrange(len(sequence)) for sequence in ids],
            }
        )
    return rows, [chance.choice([0.0, 1.0, 1.5]) for _ in rows]


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


def test_batch_of_all_equals_its_comparisons_one_by_one():
    rows, weights = random_rows(99, comparisons=6)
    batch = PaddedCollator(PAD)(rows, weights)
    assert batch.mean_index is None and batch.mean_answer is None
    alone = [PaddedCollator(PAD)([row], [w]) for row, w in zip(rows, weights, strict=True)]
    assert torch.equal(batch.weight, torch.cat([one.weight for one in alone]))
    tokens = batch.input_ids.flatten()[batch.end_index]
    assert torch.equal(tokens, torch.cat([one.input_ids.flatten()[one.end_index] for one in alone]))


def slow_end(line, pad, leading):
    for column, token in enumerate(line):
        if column >= leading and token == pad:
            return column - 1
    return len(line) - 1


@pytest.mark.parametrize("leading", [0, 1, 2])
def test_end_positions_equal_a_slow_loop(leading):
    input_ids = torch.randint(0, 4, (200, 6), generator=torch.Generator().manual_seed(leading))
    before = input_ids.clone()
    expected = [slow_end(line, PAD, leading) for line in input_ids.tolist()]
    assert {5, leading}.issubset(expected)  # rows without padding, and padding early on
    assert end_positions(input_ids, PAD, leading).tolist() == expected
    assert torch.equal(input_ids, before)


@pytest.mark.parametrize("eot", [False, True])
@pytest.mark.parametrize("name", ["opt_tokenizer", "gpt2_tokenizer", "llama_tokenizer"])
def test_end_positions_agree_with_the_collator(name, eot, request):
    tokenizer = request.getfixturevalue(name)
    end, _ = prepare_tokenizer(tokenizer, eot)
    leading = check_num_padding_at_beginning(tokenizer, end, None)
    assert leading == (1 if name == "opt_tokenizer" and not eot else 0)
    spelled = [" </s>", " <pad>", "<|endoftext|><s>", " a<pad></s> b <|endoftext|>", "</s></s>"]
    rows = ComparisonTokenizer(tokenizer, TextSettings(end)).rows(
        [Comparison("<pad></s> Q:", [answer, " It is not so."], (0, 1), "s") for answer in spelled]
    )
    batch = PaddedCollator(tokenizer.pad_token_id)(rows, [1.0] * len(rows))
    width = batch.input_ids.shape[1]
    slow = [slow_end(line, tokenizer.pad_token_id, leading) for line in batch.input_ids.tolist()]
    ends = end_positions(batch.input_ids, tokenizer.pad_token_id, leading)
    assert ends.tolist() == slow
    assert (torch.arange(len(ends)) * width + ends).tolist() == batch.end_index.tolist()
    assert set(batch.input_ids.flatten()[batch.end_index].tolist()) == {
        tokenizer.convert_tokens_to_ids(end)
    }
    assert len(set(slow)) > 2 and width - 1 in slow


def test_planned_batches_return_the_rows_of_the_plan_in_order():
    rows, _ = random_rows(5, comparisons=7)
    plan = [MicroBatch([6, 0, 3], [1.0, 0.5, 0.0]), MicroBatch([2], [2.0]), MicroBatch([5, 5], [])]
    batches = PlannedBatches(datasets.Dataset.from_list(rows), plan, lambda *given: given)
    assert len(batches) == len(plan)
    assert [batches[i] for i in range(len(plan))] == [
        ([rows[i] for i in numbers], weights) for numbers, weights in plan
    ]
