import pytest
import torch
from torch import nn

from utils.training.optimizer import build_optimizer, build_scheduler, parameter_groups
from utils.training.settings import parse_training_arguments


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.lora_A = nn.Linear(3, 2, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def arguments(*words):
    return parse_training_arguments(["--model_name_or_path", "m", *words])


def test_every_trained_parameter_is_in_one_group_with_its_decay_and_rate():
    model = Model()
    args = arguments("--weight_decay", "0.1", "--learning_rate", "1", "--lora_learning_rate", "2")
    expected = {
        model.linear.weight: (0.1, 1),
        model.linear.bias: (0.0, 1),
        model.norm.weight: (0.0, 1),
        model.norm.bias: (0.0, 1),
        model.lora_A.weight: (0.1, 2),
    }
    found = [
        (parameter, (group["weight_decay"], group["lr"]))
        for group in parameter_groups(model, args)
        for parameter in group["params"]
    ]
    assert len(found) == len(expected)
    assert {id(p): v for p, v in found} == {id(p): v for p, v in expected.items()}


@pytest.mark.parametrize(
    "words", [("--num_warmup_steps", "4"), ("--warmup_ratio", "0.2")], ids=["steps", "ratio"]
)
def test_warm_up_rises_to_the_peak_and_cosine_falls_to_zero(words):
    args = arguments("--learning_rate", "0.5", *words)
    optimizer = build_optimizer(parameter_groups(Model(), args), offload=False)
    scheduler = build_scheduler(optimizer, args, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert isinstance(optimizer, torch.optim.AdamW)
