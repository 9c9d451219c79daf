"""Training in 16 bits on a CPU, as on a GPU: DeepSpeed's refusal of fp16 there is lifted."""

import json

import pytest

from tests.conftest import flags, read_metrics, save_language_model, train_opt_tokenizer
from tests.forking import run_program
from tests.model.test_gpu_branch import NARROW, SHAPES, SIZES

ON_A_GPU = """
import torch
from deepspeed.accelerator.real_accelerator import get_accelerator
from utils.training import engine

type(get_accelerator()).is_fp16_supported = lambda self: True
resolve = engine.resolve_precision
engine.resolve_precision = lambda args, device: resolve(args, torch.device("cuda"))
"""

TELLS_WHAT_IT_LOADS = """
from utils.model import pretrained

load = pretrained.load_model

def load_model(*args, dtype, **options):
    print("loads", dtype)
    return load(*args, dtype=dtype, **options)

pretrained.load_model = load_model
"""

NO_GRADIENT = """
from utils.training import loss
plain = loss.pairwise_loss
loss.pairwise_loss = lambda scores, *a, **k: plain(scores, *a, **k) + (0 * scores).sqrt().sum()
"""


def train(workspace, name, *words, code="", micro_batches=2):
    batch = 8 // micro_batches, micro_batches
    words = (*flags(workspace, name, *batch), "--learning_rate", 1e-3, *words)
    return run_program("main.py", *words, code=ON_A_GPU + code)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@pytest.fixture(scope="module")
def fp32_losses(workspace):
    done = train(workspace, "fp32", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    return losses(workspace / "fp32")


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize(("dtype", "near"), [("fp16", 3e-3), ("bf16", 2e-2)])
def test_16_bits_train_as_fp32_does_in_every_stage(workspace, fp32_losses, dtype, near, stage):
    """In DeepSpeed's own stage 0, fp16 moves the weights by a third."""
    name = f"{dtype}-{stage}"
    words = ("--dtype", dtype, "--zero_stage", stage)
    done = train(workspace, name, *words, code=TELLS_WHAT_IT_LOADS)
    assert done.returncode == 0, done.stderr
    loaded = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]  # no fp32 on each rank
    assert f"\nloads {loaded}\n" in done.stdout and "float32" not in done.stdout
    assert (f"{dtype} runs with --zero_stage 1" in done.stdout) is (stage == 0)

    # A loss scale of 65,536 is too high at first: such steps are skipped and counted.
    lines = [line for line in read_metrics(workspace / name) if "loss" in line]
    skipped = [line.get("skipped_steps", 0) for line in lines]
    assert len(lines) == len(fp32_losses) and skipped == sorted(skipped)
    if not skipped[-1]:
        assert losses(workspace / name) == pytest.approx(fp32_losses, abs=near)
    assert sum(losses(workspace / name)[-3:]) < sum(fp32_losses[:3])
    told = f"{skipped[-1]} steps were skipped by the fp16 loss scaler"
    assert (told in done.stdout) is (skipped[-1] > 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_gradient_that_is_no_number_ends_the_run(workspace, stage):
    done = train(workspace, "nan", "--dtype", "bf16", "--zero_stage", stage, code=NO_GRADIENT)
    assert done.returncode == 1
    assert "the loss or its gradient is not finite at step 1" in done.stderr
    assert not (workspace / "nan" / "config.json").exists()


def test_a_loss_scale_at_its_minimum_ends_the_run_with_what_to_do(workspace, tmp_path):
    scaler = {"enabled": True, "initial_scale_power": 1, "hysteresis": 1, "min_loss_scale": 1}
    (tmp_path / "ds.json").write_text(json.dumps({"fp16": scaler}))
    words = ("--dtype", "fp16", "--deepspeed_config", tmp_path / "ds.json")
    done = train(workspace, "minimum", *words, code=NO_GRADIENT)
    assert done.returncode == 1
    assert "error: gradients overflow in fp16 at step" in done.stderr
    assert "give --dtype bf16" in done.stderr and "Traceback" not in done.stderr


# Operations of a whole step of a model that deep: half of them are DeepSpeed's, which copies and
# measures gradients weight by weight. It waits five times for the norm, and the loop once more.
CEILINGS = {"OPT-350m": 2900, "Llama-1B": 2800}

COUNTING = """
from tests.counting import Counting
from utils.model import shared_prefix
from utils.training import loop

def kernel(query, key, value, *rest, **options):  # a few operations, as the real one has
    return query + 0 * (key.sum() + value.sum())

shared_prefix.varlen_attn = kernel
shared_prefix.has_varlen_kernel = lambda *given: True
run_step = loop.run_step

def counted_step(*args):
    with Counting() as counted:
        result = run_step(*args)
    print("step:", counted.operations.total(), counted.waits.total())
    return result

loop.run_step = counted_step
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_has_few_operations_and_waits(workspace, tmp_path, shape):
    kind, sizes = SHAPES[shape]
    sizes = {**SIZES, **NARROW[kind], **sizes, "max_position_embeddings": 256}
    del sizes["vocab_size"], sizes["pad_token_id"]
    save_language_model(tmp_path / "model", train_opt_tokenizer(), kind, **sizes)
    words = ("--dtype", "bf16", "--max_steps", 3, "--model_name_or_path", tmp_path / "model")
    done = train(workspace, shape, *words, code=COUNTING, micro_batches=1)
    assert done.returncode == 0, done.stderr
    steps = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("step: ")]
    assert len(steps) == 3
    for operations, waits in steps:
        assert int(operations) <= CEILINGS[shape] and int(waits) <= 5
