"""How many tokens a micro-batch has where nobody said so."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from tests.model.test_shared_prefix import tiny_config
from utils.data.packing import PackedCollator
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.training.micro_batches import FILLING, choose_max_tokens, fit_max_tokens
from utils.training.settings import parse_training_arguments

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def make_rows(lengths):
    rows = []
    for length in lengths:
        ids = [4 + i % 6 for i in range(length - 2)]
        counts = {"shared": length - 2, "tokens": length}
        row = {"input_ids": [[*ids, 2], [*ids, 3]], "answers": [0, 1], "ranks": [0, 1]}
        rows.append({**row, **counts, "answer_starts": [0, 0]})
    return rows


def make_data(lengths, eval_lengths=(5,)):
    return SimpleNamespace(
        train=Dataset.from_list(make_rows(lengths)),
        train_sizes={"tokens": np.array(lengths)},
        evaluation_sizes={"tokens": np.array(eval_lengths)},
    )


def arguments(*words):
    return parse_training_arguments(["--model_name_or_path", "m", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "device", "tokens"),
    [
        ([], GPU, FILLING),
        (["--zero_stage", 2], GPU, FILLING),
        (["--zero_stage", 3], GPU, 0),
        (["--batch_layout", "padded"], GPU, 0),
        ([], CPU, 0),
        (["--max_tokens_per_micro_batch", 0], GPU, 0),
        (["--max_tokens_per_micro_batch", 500], GPU, 500),
        (["--max_tokens_per_micro_batch", 500], CPU, 500),
    ],
)
def test_a_gpu_is_filled_unless_the_command_line_says_otherwise(words, device, tokens):
    args, notes = choose_max_tokens(arguments(*words), make_data([9, 20]), device)
    assert args.max_tokens_per_micro_batch == tokens
    assert bool(notes) is (tokens == FILLING)


def test_the_longest_comparison_has_room():
    data = make_data([30_000, 9], eval_lengths=[40_000])
    args, _ = choose_max_tokens(arguments(), data, GPU)
    assert args.max_tokens_per_micro_batch == 40_000


class Network(RewardModel):
    """A tiny OPT for so many tokens at most; `seen` has those of each batch."""

    def __init__(self, room):
        super().__init__(
            AutoModelForSequenceClassification.from_config(
                tiny_config("opt"), attn_implementation=SHARED_PREFIX
            )
        )
        self.room, self.seen, self.error = room, [], torch.OutOfMemoryError("CUDA out of memory.")
        for weight in self.parameters():
            weight.register_post_accumulate_grad_hook(self.fail)

    def fail(self, weight):
        raise AssertionError("DeepSpeed would count this gradient")

    def forward(self, batch):
        assert self.training
        self.seen.append(batch.input_ids.shape[1])
        if self.seen[-1] > self.room:
            raise self.error
        return super().forward(batch)


LENGTHS = [10, 40, 20, 30, 12, 50, 47, 14]


@pytest.mark.parametrize(
    ("room", "limit", "seen"),
    [(1000, 130, [127]), (126, 65, [127, 64]), (49, 0, [127, 64])],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_does_not_fit_is_halved_once_and_then_as_asked_for(
    capsys, room, limit, seen, checkpointing
):
    network = Network(room)
    if checkpointing:
        network.model.activation_checkpointing_enable()
    network.eval()  # as from_pretrained leaves it
    args = arguments(
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2),
        *("--max_tokens_per_micro_batch", 130),
    )
    engine = SimpleNamespace(module=network, train=network.train)
    fitted = fit_max_tokens(args, engine, make_data(LENGTHS), PackedCollator(1), CPU)
    assert fitted.max_tokens_per_micro_batch == limit
    # The longest that go together, four at most: 50 + 47 + 30, and 50 + 14.
    assert network.seen == seen
    assert all(weight.grad is None for weight in network.parameters())
    said = capsys.readouterr().out
    assert ("too small for micro-batches of 130 tokens" in said) is (room < 127)
    assert ("--per_device_train_batch_size 2 comparisons" in said) is (room < 50)


def test_another_error_is_not_taken_for_too_little_memory():
    network = Network(10)
    network.error = RuntimeError("an assertion on the device")
    args = arguments("--max_tokens_per_micro_batch", 130)
    with pytest.raises(RuntimeError, match="an assertion"):
        engine = SimpleNamespace(module=network, train=network.train)
        fit_max_tokens(args, engine, make_data(LENGTHS), PackedCollator(1), CPU)
