"""The real commands through the real launchers, against a plain PyTorch loop."""

import json
import math
from itertools import product

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, set_seed

from tests.conftest import (
    BATCH,
    CLIP,
    DECAY,
    EPOCHS,
    RATE,
    flags,
    free_port,
    read_metrics,
    run_command,
)
from tests.forking import run_program
from utils.model import pretrained

STEPS = 10


@pytest.fixture(scope="module")
def plain_run(workspace):
    """`python main.py` in one process, stage 0."""
    done = run_program("main.py", *flags(workspace, "plain", 8, 1))
    assert done.returncode == 0, done.stderr
    return workspace / "plain"


def slow_losses(workspace) -> list[float]:
    """Plain PyTorch: one answer at a time, AdamW, no DeepSpeed, no code of this project but the
    loading of the model (the head's weights) and the order of the data."""
    from utils.data.sampling import Grouping, TrainingPlan

    folder = str(workspace / "model")
    tokenizer = pretrained.load_tokenizer(folder)
    config = pretrained.load_config(folder)
    pretrained.set_dropout(config, 0.0)
    set_seed(1234)
    model = pretrained.load_model(folder, config, tokenizer, new_head=True)[0].model
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    rows = [json.loads(line) for line in (workspace / "train.jsonl").read_text().splitlines()]
    sizes = torch.ones(len(rows)).int().numpy()  # the order inside a step does not matter
    losses = []
    plan = TrainingPlan(Grouping(sizes, BATCH), 0, 1234, range(EPOCHS))
    for step, [(numbers, _)] in enumerate(plan):
        loss = sum(comparison_loss(model, tokenizer, rows[n]) for n in numbers) / len(numbers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        warm = step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 8))
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm
        optimizer.step()
        losses.append(loss.item())
    return losses


def comparison_loss(model, tokenizer, row):
    scores = []
    for response in row["responses"]:
        seam = "" if response.startswith(" ") else " "
        ids = tokenizer(row["prompt"] + seam + response).input_ids + [tokenizer.eos_token_id]
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        scores.append(model.score(hidden[0, -1])[0])
    losses = [
        torch.log1p(torch.exp(scores[j] - scores[i]))
        for i, rank_i in enumerate(row["ranks"])
        for j, rank_j in enumerate(row["ranks"])
        if rank_i < rank_j
    ]
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def oracle(workspace):
    return slow_losses(workspace)


def check_losses(folder, oracle):
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    assert len(oracle) == STEPS
    assert losses == pytest.approx(oracle, abs=1e-5)


def test_one_process_is_a_plain_pytorch_loop(plain_run, oracle):
    check_losses(plain_run, oracle)


# Each ZeRO stage with another option. Two of them are started by the real launchers.
OPTIONS = {1: (), 2: ("--batch_layout", "padded"), 3: ("--gradient_checkpointing",)}
LAUNCHERS = {
    1: ("deepspeed", "--num_gpus", 2, "--master_port"),
    3: ("torchrun", "--nproc_per_node", 2, "--master_port"),
}


@pytest.fixture(scope="module", params=OPTIONS, ids="stage{}".format)
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def run_of_two(workspace, stage):
    """Two processes in a ZeRO stage, which saved their training state after step 3."""
    words = (*flags(workspace, f"stage{stage}", 2, 2), "--zero_stage", stage, *OPTIONS[stage])
    words += ("--save_interval", 3)
    if stage in LAUNCHERS:
        done = run_command(*LAUNCHERS[stage], free_port(), "main.py", *words)
    else:
        done = run_program("main.py", *words, processes=2)
    assert done.returncode == 0, done.stderr
    return workspace / f"stage{stage}"


def check_metrics(folder, plain_run):
    for ours, plain in zip(read_metrics(folder), read_metrics(plain_run), strict=True):
        for key in ("grad_norm", "lr", "accuracy", "eval_loss", "eval_accuracy", "eval_pairs"):
            assert ours.get(key) == pytest.approx(plain.get(key), abs=1e-4)


def test_two_processes_give_the_losses_of_one(run_of_two, plain_run, oracle):
    check_losses(run_of_two, oracle)
    check_metrics(run_of_two, plain_run)
    # Same weights, whichever stage gathered them.
    ours, plain = (load_weights(folder) for folder in (run_of_two, plain_run))
    assert ours.keys() == plain.keys()
    for key in plain:
        torch.testing.assert_close(ours[key], plain[key], atol=2e-4, rtol=1e-3)


def test_a_run_goes_on_with_another_number_of_processes(
    workspace, stage, run_of_two, plain_run, oracle
):
    """Two processes to step 3, one to step 6, two to the end: the losses of plain PyTorch."""
    options = ("--zero_stage", stage, *OPTIONS[stage], "--save_interval", 3)
    alone, again = f"stage{stage}-1", f"stage{stage}-1-2"
    saved = ("--resume_from_checkpoint", run_of_two / "checkpoints" / "step_3")
    done = run_program("main.py", *flags(workspace, alone, 4, 2), *options, *saved)
    assert done.returncode == 0, done.stderr
    saved = ("--resume_from_checkpoint", workspace / alone / "checkpoints" / "step_6")
    words = (*flags(workspace, again, 2, 2), *options, *saved)
    done = run_program("main.py", *words, processes=2)
    assert done.returncode == 0, done.stderr
    for name in (alone, again):
        check_losses(workspace / name, oracle)
        check_metrics(workspace / name, plain_run)


def test_neither_micro_batches_by_tokens_nor_the_number_of_ranks_change_a_step(workspace):
    # AdamW blows up rounding where a gradient is zero in exact arithmetic (the keys' biases), to
    # a share of the learning rate; hence a lower one than in the other runs.
    words = ("--max_steps", 5, "--learning_rate", 1e-3)
    limit = ("--max_tokens_per_micro_batch", 300)
    runs = {
        "by number": ((3, 2), (), 1),
        "tokens1": ((6, 1), limit, 1),
        "tokens2": ((1, 3), limit, 2),
    }
    for name, (batch, limited, processes) in runs.items():
        words_of_run = (*flags(workspace, name, *batch), *words, *limited)
        done = run_program("main.py", *words_of_run, processes=processes)
        assert done.returncode == 0, done.stderr

    start, expected, *others = (load_weights(workspace / name) for name in ("model", *runs))
    for weights, name in product(others, expected):
        torch.testing.assert_close(weights[name], expected[name], atol=1e-5, rtol=0)
    moved = max((expected[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-3


KILLED_IN_THE_CHECKS = """
import os
from utils.training.checks import ModelChecks

ModelChecks.run = lambda self, folder: os._exit(9)
"""


def test_a_run_that_dies_while_it_checks_the_model_has_saved_it(workspace):
    """As where the first rank checks a large model on its CPU for longer than the others wait."""
    words = (*flags(workspace, "unchecked", 8, 1), "--max_steps", 2)
    done = run_program("main.py", *words, code=KILLED_IN_THE_CHECKS)
    assert done.returncode == 9, done.stderr
    folder = workspace / "unchecked"
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert "the run ended before they were made" in (folder / "README.md").read_text()
    assert not (folder / "checks.json").exists()


def load_weights(folder, name="model"):
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def test_output_folder_holds_what_the_readme_says(plain_run):
    lines = read_metrics(plain_run)
    evaluations = [line["step"] for line in lines if "eval_loss" in line]
    assert evaluations == [0, 3, 5, 6, 9, 10]  # before, every 3, after each epoch of 5
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    for line in lines:
        if "loss" in line:
            assert line["padding_fraction"] == 0
            assert 0 < line["shared_fraction"] < 1
            assert line["tokens_per_second"] > line["comparisons_per_second"] > 0
            assert "mfu" not in line  # nobody knows the peak of this CPU
    seconds = [line["seconds"] for line in lines if "loss" in line]
    assert seconds == sorted(seconds)
    record = json.loads((plain_run / "training_args.json").read_text())
    assert record["arguments"]["learning_rate"] == RATE
    assert record["global_batch_size"] == BATCH
    assert record["data"]["train_comparisons"] == 37
    tokens = record["data"]["tokens_per_epoch"]
    counted = sum(
        line["tokens_per_second"] * duration
        for line, duration in zip(
            [line for line in lines if "loss" in line],
            [after - before for before, after in zip([0, *seconds], seconds, strict=False)],
            strict=True,
        )
    )
    assert tokens["packed"] * EPOCHS == pytest.approx(counted)
    assert tokens["padded"] > tokens["packed"]
    assert record["versions"]["torch"] == torch.__version__
    assert (plain_run / "training_curves.png").read_bytes()[:4] == b"\x89PNG"
    card = (plain_run / "README.md").read_text()
    assert f"{lines[-1]['eval_accuracy']:.4f}" in card


def test_rw_eval_repeats_the_last_evaluation(workspace, plain_run):
    report = workspace / "report"
    done = run_program(
        *("rw_eval.py", "--model_name_or_path", plain_run, "--batch_size", 3),
        *("--data_path", workspace / "eval.jsonl", "--output_dir", report),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((report / "report.json").read_text())["results"]["eval"]
    last = read_metrics(plain_run)[-1]
    for name in ("loss", "accuracy", "margin", "better_score", "worse_score", "pairs", "ties"):
        assert results[name] == pytest.approx(last[f"eval_{name}"], abs=1e-5)
    check_with_transformers_alone(workspace, plain_run, report)


TRANSFORMERS_ALONE = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, data = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
rows = [json.loads(line) for line in open(data)]
texts = [
    row["prompt"] + ("" if a.startswith(" ") else " ") + a + tokenizer.eos_token
    for row in rows for a in row["responses"]
]

def score(batch_size, side):
    scores = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        batch = tokenizer(part, padding=True, padding_side=side, return_tensors="pt")
        scores += model(**batch).logits[:, 0].tolist()
    return scores

assert not any(name.split(".")[0] in ("utils", "deepspeed") for name in sys.modules)
print(json.dumps([score(1, "right"), score(16, "right"), score(16, "left")]))
"""


def check_with_transformers_alone(workspace, model, report):
    lines = (report / "scores.jsonl").read_text().splitlines()
    expected = [score for line in lines for score in json.loads(line)["scores"]]
    done = run_command("python", "-c", TRANSFORMERS_ALONE, model, workspace / "eval.jsonl")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3
    for scores in found:
        assert scores == pytest.approx(expected, abs=1e-5)


def test_rw_eval_scores_the_built_in_and_given_prompts(workspace, plain_run):
    done = run_program("rw_eval.py", "--model_name_or_path", plain_run)
    assert done.returncode == 0, done.stderr
    assert "Microsoft" in done.stdout
    assert "6 year old" in done.stdout
    assert done.stdout.count("above the bad one") == 2
    row = json.loads((workspace / "eval.jsonl").read_text().splitlines()[0])
    answers = [word for response in row["responses"] for word in ("--response", response)]
    given = ("--model_name_or_path", plain_run, "--prompt", row["prompt"], *answers)
    done = run_program("rw_eval.py", *given)
    assert done.returncode == 0, done.stderr
    scores = json.loads((workspace / "report" / "scores.jsonl").read_text().splitlines()[0])
    for score in scores["scores"]:
        assert f"{score:.4f}" in done.stdout


LORA = (
    *("--lora_dim", 4, "--lora_alpha", 12, "--only_optimize_lora", "--lora_learning_rate", 0.01),
    *("--lora_module_name", "decoder.layers.", "--max_steps", 4),
)


@pytest.fixture(scope="module")
def lora_run(workspace):
    """One process, stage 2 with offload, LoRA."""
    extra = ("--zero_stage", 2, "--offload", "--monitor", "csv", "tensorboard")
    done = run_program("main.py", *flags(workspace, "lora", 8, 1), *LORA, *extra)
    assert done.returncode == 0, done.stderr
    return workspace / "lora"


def test_lora_trains_adapters_and_the_head_alone(workspace, plain_run, lora_run):
    before = load_weights(workspace / "model")
    after = load_weights(lora_run)
    assert after.keys() == load_weights(plain_run).keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if ".layers." in n and before[n].ndim == 2}
    losses = [line["eval_loss"] for line in read_metrics(lora_run) if "eval_loss" in line]
    assert losses[-1] < losses[0]


def test_monitors_get_every_line(lora_run):
    assert list((lora_run / "tensorboard").rglob("events.out.tfevents.*"))
    for name, key in (("train_loss", "loss"), ("eval_accuracy", "eval_accuracy")):
        rows = (lora_run / "csv" / f"{name}.csv").read_text().splitlines()[1:]
        lines = [line for line in read_metrics(lora_run) if key in line]
        assert [tuple(map(float, row.split(","))) for row in rows] == [
            (line["step"], pytest.approx(line[key])) for line in lines
        ]


def test_lora_in_stage_3_with_checkpointing(workspace, lora_run):
    words = (*flags(workspace, "lora3", 2, 2), *LORA, "--zero_stage", 3, "--gradient_checkpointing")
    done = run_program("main.py", *words, "--save_adapter", processes=2)
    assert done.returncode == 0, done.stderr
    folder = workspace / "lora3"
    check_metrics(folder, lora_run)
    adapter = load_weights(folder / "adapter", "adapter_model")
    trained = sum(weight.numel() for weight in adapter.values())
    total = sum(weight.numel() for weight in load_weights(folder).values()) + trained
    assert f"{trained:,} of {total - adapter['base_model.model.score.weight'].numel():,} " in (
        done.stdout
    )

    base = AutoModelForSequenceClassification.from_pretrained(
        workspace / "model", num_labels=1, dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    ids = torch.arange(10, 50).view(4, 10)
    torch.testing.assert_close(logits_of(folder), adapted(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def logits_of(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(torch.arange(10, 50).view(4, 10)).logits


def test_all_stages_save_the_same_model(workspace):
    """Without clipping, whose factor is rounded in another place in stage 0."""
    folders = [workspace / f"same{stage}" for stage in range(4)]
    for stage, folder in enumerate(folders):
        words = (*flags(workspace, folder.name, 8, 1), "--max_grad_norm", 0, "--max_steps", 4)
        done = run_program("main.py", *words, "--zero_stage", stage)
        assert done.returncode == 0, done.stderr
    first = load_weights(folders[0])
    for folder in folders[1:]:
        weights = load_weights(folder)
        assert weights.keys() == first.keys()
        for name in first:
            torch.testing.assert_close(weights[name], first[name], atol=1e-6, rtol=0)
    scores = [logits_of(folder) for folder in folders]
    assert max((other - scores[0]).abs().max() for other in scores) < 1e-6


def test_memory_is_estimated_without_training(workspace):
    words = flags(workspace, "estimate", 8, 1)
    done = run_program("main.py", *words, "--estimate_memory")
    assert done.returncode == 0, done.stderr
    total = sum(weight.numel() for weight in load_weights(workspace / "model").values())
    assert f"{total + 16:,} parameters" in done.stdout  # and the head
    assert not (workspace / "estimate").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_old_model(workspace, plain_run):
    before = (plain_run / "model.safetensors").read_bytes()
    words = flags(workspace, "plain", 8, 1)
    done = run_program(
        *("main.py", *words, "--overwrite_output_dir"),
        *("--learning_rate", "1e30", "--max_grad_norm", 0, "--lr_scheduler_type", "constant"),
    )
    assert done.returncode == 1
    assert "the loss or its gradient is not finite at step" in done.stderr
    assert "--learning_rate" in done.stderr
    assert (plain_run / "model.safetensors").read_bytes() == before
