"""Who takes a saved model: each in a process of its own, against the scores of rw_eval.py."""

import importlib.util
import json
import math
import re
from functools import cache

import pytest
from huggingface_hub import ModelCard

from tests.conftest import flags, read_metrics, run_command, write_jsonl
from tests.forking import run_program

READ = """
import json, sys
from pathlib import Path
import torch
folder, data = sys.argv[1:3]
end = json.loads(Path(folder, "config.json").read_text())["reward_settings"]["end_token"]
rows = [json.loads(line) for line in open(data)]

def text(prompt, answer):
    return prompt + ("" if answer.startswith(" ") else " ") + answer

texts = [text(row["prompt"], answer) + end for row in rows for answer in row["responses"]]
"""


def train(workspace, name, *extra):
    done = run_program("main.py", *flags(workspace, name, 8, 1), "--max_steps", 6, *extra)
    assert done.returncode == 0, done.stderr
    return workspace / name, done.stdout


@pytest.fixture(scope="module")
def plain_run(workspace):
    return train(workspace, "consumed")


@pytest.fixture(scope="module")
def model(plain_run):
    return plain_run[0]


@pytest.fixture(scope="module")
def turns_run(workspace):
    """With text prompts as messages, of a tokenizer that has no chat template."""
    return train(workspace, "turns", "--apply_chat_template")


@pytest.fixture(scope="module")
def chat_run(workspace):
    """For DeepSpeed-Chat, with an end token that is not its padding."""
    return train(workspace, "dschat", "--save_format", "dschat", "--add_eot_token")


@cache
def rw_eval_scores(workspace, model, data="eval.jsonl"):
    report = workspace / f"{model.name}-{data}-report"
    words = ("--data_path", workspace / data, "--output_dir", report)
    done = run_program("rw_eval.py", "--model_name_or_path", model, *words)
    assert done.returncode == 0, done.stderr
    lines = (report / "scores.jsonl").read_text().splitlines()
    return [score for line in lines for score in json.loads(line)["scores"]]


@pytest.fixture(scope="module")
def scores(workspace, model):
    scores = rw_eval_scores(workspace, model)
    assert max(scores) - min(scores) > 0.1
    return scores


def run_script(script, *words):
    """The last line that a script prints, as JSON."""
    done = run_command("python", "-c", READ + script, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TRANSFORMERS = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
def score(texts):
    return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
print(json.dumps([score(texts), [score([one])[0] for one in texts]]))
"""

PIPELINE = """
from transformers import pipeline
score = pipeline("text-classification", model=folder, function_to_apply="none")
results = score(texts, batch_size=1) + score(texts, batch_size=8)
results += pipeline("text-classification", model=folder)(texts)  # not a sigmoid
assert {result["label"] for result in results} == {"reward"}
scores, n = [result["score"] for result in results], len(texts)
print(json.dumps([scores[:n], scores[n : 2 * n], scores[2 * n :]]))
"""


@pytest.mark.parametrize("script", [TRANSFORMERS, PIPELINE], ids=["AutoModel", "pipeline"])
def test_transformers(workspace, model, scores, script):
    for found in run_script(script, model, workspace / "eval.jsonl"):
        assert found == pytest.approx(scores, rel=1e-5, abs=1e-5)


TRAINER = """
import datasets
from trl import RewardConfig, RewardTrainer
pairs = [
    {"chosen": text(row["prompt"], a), "rejected": text(row["prompt"], b)}
    for row in rows
    for a, rank in zip(row["responses"], row["ranks"])
    for b, other in zip(row["responses"], row["ranks"])
    if rank < other
]
arguments = RewardConfig(
    sys.argv[3], per_device_eval_batch_size=4, report_to="none", use_cpu=True, bf16=False,
    max_length=None,
)
data = datasets.Dataset.from_list(pairs)
trainer = RewardTrainer(folder, args=arguments, train_dataset=data, eval_dataset=data)
print(json.dumps([len(pairs), trainer.evaluate()]))
"""

# One step of a policy, with the model as a folder and as the function that the card shows.
GRPO = """
import datasets
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
found = []

def reward(prompts, completions, **kwargs):
    texts = [text(prompt, answer) + end for prompt, answer in zip(prompts, completions)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits[:, 0].tolist()
    found.extend(zip(prompts, completions, scores))
    return scores

arguments = GRPOConfig(
    sys.argv[3], max_steps=1, per_device_train_batch_size=4, num_generations=4, report_to="none",
    max_completion_length=8, use_cpu=True, bf16=False, save_strategy="no",
)
policy = AutoModelForCausalLM.from_pretrained(sys.argv[4])
data = datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
policy_tokenizer = AutoTokenizer.from_pretrained(sys.argv[4])
functions, options = [folder, reward], {"processing_class": policy_tokenizer}
trainer = GRPOTrainer(policy, functions, args=arguments, train_dataset=data, **options)
given = trainer.reward_funcs[0]
trainer.train()
mean = trainer.state.log_history[0]["rewards/reward/mean"]
batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
with torch.no_grad():  # as GRPOTrainer asks a model that it was given as a folder
    scores = given(**batch).logits[:, 0].tolist()
print(json.dumps([mean, found, scores]))
"""

GET_REWARD = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.utils import get_reward
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
with torch.no_grad():
    _, scores, _ = get_reward(model, ids, tokenizer.pad_token_id, context_length=2)
print(json.dumps(scores.tolist()))
"""

needs_trl = pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="trl is not installed")


@needs_trl
def test_reward_trainer_of_trl(workspace, model, scores):
    count, result = run_script(TRAINER, model, workspace / "eval.jsonl", workspace / "trl")
    rows = [json.loads(line) for line in (workspace / "eval.jsonl").read_text().splitlines()]
    given, margins = iter(scores), []
    for row in rows:
        own = [next(given) for _ in row["responses"]]
        margins += [
            own[i] - own[j]
            for i, rank in enumerate(row["ranks"])
            for j, other in enumerate(row["ranks"])
            if rank < other
        ]
    assert count == len(margins)
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    assert result["eval_loss"] == pytest.approx(sum(losses) / count, abs=1e-5)
    # It averages accuracy and margin over batches of 4 pairs, the last of which may be smaller.
    batches = [margins[i : i + 4] for i in range(0, count, 4)]
    right = [sum(margin > 0 for margin in batch) / len(batch) for batch in batches]
    means = [sum(batch) / len(batch) for batch in batches]
    assert result["eval_accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-5)
    assert result["eval_margin"] == pytest.approx(sum(means) / len(means), abs=1e-5)


@needs_trl
def test_grpo_of_trl(workspace, model, scores):
    words = (workspace / "eval.jsonl", workspace / "grpo", workspace / "model")
    mean, found, given = run_script(GRPO, model, *words)
    assert given == pytest.approx(scores, rel=1e-5, abs=1e-5)
    prompts, answers, rewards = zip(*found, strict=True)
    assert len(found) == 4 and len(set(prompts)) == 1
    row = {"prompt": prompts[0], "responses": answers, "ranks": [0, 1, 2, 3]}
    write_jsonl(workspace / "grpo.jsonl", [row])
    assert rw_eval_scores(workspace, model, "grpo.jsonl") == pytest.approx(rewards, abs=1e-5)
    assert mean == pytest.approx(sum(rewards) / 4, abs=1e-5)


@needs_trl
def test_get_reward_of_trl(workspace, model, scores):
    found = run_script(GET_REWARD, model, workspace / "eval.jsonl")
    assert found == pytest.approx(scores, rel=1e-5, abs=1e-5)


STEP_3 = """
import math
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.pad_token = tokenizer.eos_token  # as DeepSpeed-Chat does
config = AutoConfig.from_pretrained(folder)
model = nn.Module()
model.rwtransformer = AutoModel.from_config(config).eval()
model.rwtransformer.resize_token_embeddings(8 * math.ceil(len(tokenizer) / 8))
model.v_head = nn.Linear(config.word_embed_proj_dim, 1, bias=False)
model.load_state_dict(torch.load(Path(folder, "pytorch_model.bin")), strict=True)
batch = tokenizer(texts, padding=True, return_tensors="pt")
values = model.v_head(model.rwtransformer(**batch).last_hidden_state)[:, :, 0]
scores = []
for ids, row in zip(batch.input_ids.tolist(), values.tolist()):
    padding = [i for i in range(2, len(ids)) if ids[i] == tokenizer.pad_token_id]
    scores.append(row[(padding or [len(ids)])[0] - 1])
print(json.dumps(scores))
"""


def test_deepspeed_chat(workspace, chat_run):
    folder, _ = chat_run
    assert not list(folder.glob("*.safetensors"))
    scores = run_script(STEP_3, folder, workspace / "eval.jsonl")
    assert max(scores) - min(scores) > 0.1
    assert rw_eval_scores(workspace, folder) == pytest.approx(scores, rel=1e-5, abs=1e-6)


def test_a_model_of_deepspeed_chat_trains_on(workspace, chat_run):
    folder, _ = chat_run
    settings = ("--add_eot_token", "--learning_rate", 0, "--weight_decay", 0)
    words = ("--model_name_or_path", folder, *settings)
    again, _ = train(workspace, "dschat-again", *words)
    before, after = (rw_eval_scores(workspace, model) for model in (folder, again))
    assert after == pytest.approx(before, rel=1e-5, abs=1e-6)


def card_scores(card, workspace, folder):
    """By the code that the card shows, of texts with and without white space at the seam."""
    rows = [json.loads(line) for line in (workspace / "eval.jsonl").read_text().splitlines()]
    pairs = [(row["prompt"], answer) for row in rows for answer in row["responses"]]
    assert {answer[0] == " " for _, answer in pairs} == {True, False}
    names: dict = {}
    code = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec("".join(code).replace("FOLDER", str(folder)), names)
    return names["reward"](*zip(*pairs, strict=True))


@pytest.mark.parametrize("run", ["plain_run", "turns_run", "chat_run"])
def test_the_model_card(request, workspace, run):
    folder, output = request.getfixturevalue(run)
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == (None if run == "chat_run" else "transformers")
    assert "$" not in card.text
    assert ("save_format dschat" in card.text) is (run != "chat_run")
    assert ("critic_model_name_or_path" in card.text) is (run == "chat_run")
    for name in ("train", "eval"):
        assert str(workspace / f"{name}.jsonl") in card.text
    last = read_metrics(folder)[-1]
    assert f"| {last['eval_accuracy']:.4f} |" in card.text
    assert "![Loss, accuracy, margin and learning rate](training_curves.png)" in card.text
    assert (folder / "training_curves.png").is_file()
    written = json.loads((folder / "checks.json").read_text())
    checks = [line.split(": ", 2)[1:] for line in output.splitlines() if "check: " in line]
    assert [name for name, _ in checks] == ["reload", "layout", "batch"]
    assert [[check["name"], f"{check['finding']}: ok"] for check in written] == checks
    assert all(check["passed"] for check in written)
    for name, finding in checks:
        assert finding.endswith(": ok")
        assert f"| {name} | {finding.removesuffix(': ok')} | ok |" in card.text
    if run != "chat_run":
        assert card_scores(card, workspace, folder) == pytest.approx(
            rw_eval_scores(workspace, folder), rel=1e-5, abs=1e-6
        )
    statistics = json.loads((folder / "config.json").read_text())["score_statistics"]
    assert statistics == {"mean": last["eval_score_mean"], "std": last["eval_score_std"]}


FAULTY = """
import torch
from utils.training import checks
checks.TOLERANCES[torch.float32] = -1  # no two scores are equal enough
"""


def test_a_model_that_fails_its_checks_is_saved_and_the_run_fails(workspace):
    words = (*flags(workspace, "faulty", 8, 1), "--max_steps", 2)
    done = run_program("main.py", *words, code=FAULTY)
    assert done.returncode == 1
    assert "do not trust it; reload: scores of saved and trained model differ by at" in done.stderr
    folder = workspace / "faulty"
    for name in ("model.safetensors", "training_curves.png", "config.json"):
        assert (folder / name).is_file()
    card = (folder / "README.md").read_text()
    assert card.count("| FAILED |") == 3
