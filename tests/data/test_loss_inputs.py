import pytest
import torch

from tests.conftest import slow_prefix
from tests.data.test_packing import ALL_BUT_TOKENS, PAD, keys_of_ends, random_rows
from utils.data.batch import LossInputs
from utils.data.packing import PackedCollator, PaddedCollator


def slow_pairs(rows):
    """Comparison, the two kept answers and their numbers in the batch, of all different ones."""
    first = 0
    for number, row in enumerate(rows):
        kept = range(len(row["answers"]))
        for i, j in ((i, j) for i in kept for j in kept):
            if row["input_ids"][i] != row["input_ids"][j]:
                yield number, row["answers"][i], row["answers"][j], [first + i, first + j]
        first += len(kept)


@pytest.mark.parametrize("collator", [PaddedCollator, PackedCollator])
@pytest.mark.parametrize("seed", range(10))
def test_what_losses_need_equals_a_slow_loop(seed, collator):
    rows, weights = random_rows(seed)
    batch = collator(PAD, inputs=ALL_BUT_TOKENS)(rows, weights)
    pairs, ties = [], []
    for number, i, j, both in slow_pairs(rows):
        row = rows[number]
        gap = row["grades"][i] - row["grades"][j] if row["grades"] else 0.0
        votes = [row["votes"][i], row["votes"][j]] if row["votes"] else [0, 0]
        share = votes[0] / sum(votes) if sum(votes) else 1.0
        if row["ranks"][i] < row["ranks"][j]:
            pairs.append((number, both, gap, share))
        if row["ranks"][i] == row["ranks"][j] and both[0] < both[1]:
            ties.append((number, both))
    terms = [number for number, *_ in pairs + ties]
    own = [1.0 if row["weight"] is None else row["weight"] for row in rows]
    each = [
        w * o / max(terms.count(n), 1) for n, (w, o) in enumerate(zip(weights, own, strict=True))
    ]
    assert sorted(
        zip(
            *(getattr(batch, n).tolist() for n in ("pairs", "margin", "target", "weight")),
            strict=True,
        )
    ) == [
        (both, pytest.approx(gap, abs=1e-6), pytest.approx(share), pytest.approx(each[number]))
        for number, both, gap, share in sorted(pairs, key=lambda part: part[1])
    ]
    assert sorted(zip(batch.ties.tolist(), batch.tie_weight.tolist(), strict=True)) == [
        (both, pytest.approx(each[number])) for number, both in ties
    ]
    for name in ("margin", "target", "weight", "tie_weight"):
        assert getattr(batch, name).dtype == torch.float32
    assert batch.ties.dtype == torch.int64
    assert batch.counted.tolist() == [weight > 0 for weight in weights]


@pytest.mark.parametrize("seed", range(10))
def test_aligned_tokens_of_both_layouts_equal_a_slow_loop(seed):
    rows, weights = random_rows(seed)
    sequences = [ids for row in rows for ids in row["input_ids"]]
    for collator in (PaddedCollator, PackedCollator):
        batch = collator(PAD, inputs=LossInputs(tokens=True))(rows, weights)
        assert batch.end_segments is None  # all tokens are scored, not the ends alone
        expected = []
        for owner, answers in enumerate(batch.pairs.tolist()):
            both = [sequences[answer] for answer in answers]
            start = slow_prefix(both)
            for position in range(start, max(map(len, both))):
                places = [min(position, len(ids) - 1) for ids in both]
                expected.append((owner, answers, places))
        assert batch.token_owner.tolist() == [owner for owner, *_ in expected]
        assert batch.token_pairs.shape == (len(expected), 2)
        ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
        tokens = chains_of(batch, rows)
        for found, (_, answers, places) in zip(batch.token_pairs.tolist(), expected, strict=True):
            for token, answer, place in zip(found, answers, places, strict=True):
                assert token == tokens[answer][place]
                assert (ids[token], positions[token]) == (sequences[answer][place], place)


def chains_of(batch, rows):
    """Where the tokens of each answer are in a batch."""
    if batch.segments is not None:
        return keys_of_ends(PackedCollator(PAD)(rows, [1.0] * len(rows)))
    width = batch.input_ids.shape[1]
    lengths = batch.attention_mask.sum(dim=1).tolist()
    return [[line * width + t for t in range(length)] for line, length in enumerate(lengths)]


def test_an_evaluation_carries_nothing_for_losses():
    rows, weights = random_rows(0)
    for row in rows:
        for name in ("grades", "votes", "weight"):
            del row[name]
    for collator in (PaddedCollator, PackedCollator):
        batch = collator(PAD)(rows, weights)
        for name in ("margin", "target", "ties", "tie_weight", "token_pairs", "token_owner"):
            assert getattr(batch, name) is None
