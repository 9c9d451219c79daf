import json
from dataclasses import replace

import pytest
import torch

from utils.settings import InputError
from utils.training import settings
from utils.training.engine import _with_buffers, deepspeed_config, resolve_precision
from utils.training.settings import parse_training_arguments


def arguments(*words):
    args = parse_training_arguments(["--model_name_or_path", "m", *words])
    return replace(args, dtype=args.dtype or "fp32")


def test_batch_sizes_multiply():
    flags = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "3")
    config = deepspeed_config(arguments(*flags), world_size=5)
    assert config["train_batch_size"] == 60
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_offload_moves_the_optimizer_and_in_stage_3_the_parameters(stage):
    zero = deepspeed_config(arguments("--zero_stage", stage, "--offload"), 1)["zero_optimization"]
    assert zero["stage"] == int(stage)
    assert zero["offload_optimizer"] == {"device": "cpu"}
    assert ("offload_param" in zero) == (stage == "3")


MONITORS = {
    "tensorboard": ("tensorboard", {"output_path": "out/tensorboard"}),
    "wandb": ("wandb", {"project": "reward_model"}),
    "comet": ("comet", {"project": "reward_model"}),
    "csv": ("csv_monitor", {"output_path": "out", "job_name": "csv"}),
}


@pytest.mark.parametrize("asked", [[], *([name] for name in MONITORS), ["csv", "wandb"]])
def test_monitors_are_deepspeeds(asked, monkeypatch):
    from deepspeed.monitor.config import get_monitor_config

    monkeypatch.setattr(settings, "find_spec", lambda package: package)  # it need not be there
    args = replace(arguments("--output_dir", "out"), monitor=asked)
    config = get_monitor_config(deepspeed_config(args, 1))
    for name, (entry, expected) in MONITORS.items():
        read = getattr(config, entry)
        assert read.enabled is (name in asked)
        assert {setting: getattr(read, setting) for setting in expected} == expected


def test_the_folder_of_tensorboard():
    flags = ("--enable_tensorboard", "--tensorboard_path", "tb")
    entry = deepspeed_config(arguments(*flags), 1)["tensorboard"]
    assert (entry["enabled"], entry["output_path"]) == (True, "tb")


def test_a_config_file_says_what_a_monitor_needs(tmp_path, monkeypatch):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"wandb": {"project": "p"}}))
    monkeypatch.setattr(settings, "find_spec", lambda package: package)
    args = replace(arguments("--deepspeed_config", str(file)), monitor=["wandb"])
    assert deepspeed_config(args, 1)["wandb"] == {"enabled": True, "project": "p"}


@pytest.mark.parametrize("flags", [[], ["--use_node_local_storage"]])
def test_node_local_storage(flags):
    config = deepspeed_config(arguments(*flags), 1)
    assert config["checkpoint"] == {"use_node_local_storage": bool(flags)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_one_precision_at_most_is_on(dtype):
    config = deepspeed_config(arguments("--dtype", dtype), 1)
    on = {name for name in ("bf16", "fp16") if config[name]["enabled"]}
    assert on == {dtype} - {"fp32"}


def test_precision_on_a_cpu():
    cpu = torch.device("cpu")
    args = parse_training_arguments(["--model_name_or_path", "m"])
    args, notes = resolve_precision(args, cpu)
    assert args.dtype == "fp32"
    assert "fp32 on this CPU" in notes[0]
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        resolve_precision(arguments("--dtype", "fp16"), cpu)
    args, notes = resolve_precision(arguments("--dtype", "bf16"), cpu)
    assert "--zero_stage 1" in notes[0]
    assert args.zero_stage == 1


@pytest.mark.parametrize(("has_bf16", "dtype"), [(False, "fp16"), (True, "bf16")])
def test_precision_on_a_gpu(monkeypatch, has_bf16, dtype):
    """PyTorch says yes for a V100, too, which emulates bf16."""
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or has_bf16,
    )
    gpu, words = torch.device("cuda"), ["--model_name_or_path", "m"]
    args, notes = resolve_precision(parse_training_arguments(words), gpu)
    assert (args.dtype, args.zero_stage, len(notes)) == (dtype, 1, 2)
    for stage in ("1", "2", "3"):
        args = parse_training_arguments([*words, "--zero_stage", stage])
        assert resolve_precision(args, gpu)[0].zero_stage == int(stage)
    args, _ = resolve_precision(arguments("--dtype", "fp32"), gpu)
    assert (args.dtype, args.zero_stage) == ("fp32", 0)


def test_deepspeed_neither_looks_at_each_gradient_nor_at_the_clock():
    config = deepspeed_config(arguments("--dtype", "bf16"), 1)
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert config["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize(
    ("trained", "given", "expected"),
    [(1000, {}, 1000), (10**10, {}, 500_000_000), (1000, {"reduce_bucket_size": 7}, 7)],
)
def test_buffers_are_no_larger_than_what_trains(trained, given, expected):
    config = {"zero_optimization": {"stage": 1, **given}}
    zero = _with_buffers(config, trained)["zero_optimization"]
    assert zero == {"stage": 1, "reduce_bucket_size": expected}
    assert config == {"zero_optimization": {"stage": 1, **given}}


def test_a_config_file_overrides_entry_by_entry(tmp_path):
    file = tmp_path / "ds.json"
    given = {
        "train_batch_size": "auto",
        "zero_optimization": {"reduce_bucket_size": 123, "stage": "auto"},
        "gradient_clipping": 0.5,
    }
    file.write_text(json.dumps(given))
    flags = ("--zero_stage", "2", "--max_grad_norm", "2")
    plain = deepspeed_config(arguments(*flags), 1)
    merged = deepspeed_config(arguments(*flags, "--deepspeed_config", str(file)), 1)
    assert merged.pop("gradient_clipping") == 0.5
    assert merged["zero_optimization"].pop("reduce_bucket_size") == 123
    del plain["gradient_clipping"]
    assert merged == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ('{"train_batch_size": 99}', "train_batch_size is 99, but the flags make it 16"),
        ('{"optimizer": {"params": {"lr": "auto"}}}', "optimizer has the value auto"),
    ],
)
def test_a_config_file_that_cannot_hold_is_named(tmp_path, content, message):
    file = tmp_path / "ds.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        deepspeed_config(arguments("--deepspeed_config", str(file)), 1)
    assert str(file) in str(caught.value)
