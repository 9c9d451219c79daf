import pytest
import torch

from utils.data.batch import end_positions
from utils.data.comparison import Comparison
from utils.data.packing import PaddedCollator
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    prepare_tokenizer,
)

PAD = 1


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
    assert leading == (1 if name == "opt_tokenizer" else 0)
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
