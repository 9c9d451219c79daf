"""Whole commands with names of the hub, served on the loopback address to the real clients."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.conftest import (
    ROOT,
    free_port,
    make_pairs,
    read_metrics,
    run_command,
    save_language_model,
    train_opt_tokenizer,
)
from tests.hub_server import Hub, write_rm_static

COMING_FROM = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
PAIRS = make_pairs(40)


def write_opt_350m(folder: Path) -> Path:
    """A tiny model with the files of facebook/opt-350m: .bin in fp16, no tokenizer.json."""
    tokenizer = train_opt_tokenizer()
    made = save_language_model(folder.parent / "made", tokenizer, max_position_embeddings=512)
    weights = load_file(made / "model.safetensors")
    halves = {name.removeprefix("model."): weight.half() for name, weight in weights.items()}
    torch.save(halves, folder / "pytorch_model.bin")
    config = json.loads((made / "config.json").read_text()) | {"dtype": "float16"}
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    kind = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"}
    for name, content in {
        "config.json": config,
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**kind, **special},
    }.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    shutil.rmtree(made)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """facebook/opt-350m, tiny, and Dahoas/rm-static, short; copies of both that fail."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    model = write_opt_350m(hub.folder("models", "facebook/opt-350m"))
    reward = hub.folder("models", "some/reward")
    save_language_model(reward, train_opt_tokenizer(), max_position_embeddings=512)
    scorer = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1)
    scorer.save_pretrained(reward)
    data = write_rm_static(hub, PAIRS[:32], PAIRS[32:])
    for fault in ("gated", "down", "cut"):
        hub.faults[f"some/{fault}"] = fault
        for kind, folder in {"models": model, "datasets": data}.items():
            shutil.copytree(folder, hub.folder(kind, f"some/{fault}"), dirs_exist_ok=True)
    return hub


def run(hub, home, *words, offline=False):
    """Run a command of the project as somebody who has this hub; its requests begin anew."""
    hub.requests.clear()
    variables = [f"{name}={value}" for name, value in hub.environment(home, offline).items()]
    return run_command("env", *variables, *words)


def deepspeed_chat(folder) -> list[str]:
    """The documents' command line of DeepSpeed-Chat, with its files in a folder of the test."""
    (command,) = re.findall(
        r"^deepspeed --num_gpus 1 (main\.py --data_path D.*?)^```", COMING_FROM, re.S | re.M
    )
    command = command.replace("\\\n", " ")
    for place in ("/tmp/data_files", "output/step2_tensorboard", "output/step2"):
        command = command.replace(f" {place} ", f" {folder}/{place.split('/')[-1]} ")
    return command.split()


def test_the_command_line_of_deepspeed_chat_with_the_names_of_the_hub(hub, tmp_path):
    """In one process and in two; then without network, with nothing but what was fetched."""
    done = run(hub, tmp_path / "another home", "python", *deepspeed_chat(tmp_path / "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(hub.downloads().values()) == {1} and len(hub.downloads()) == 3

    home = tmp_path / "home"
    launcher = ("deepspeed", "--num_gpus", 2, "--master_port", free_port())
    done = run(hub, home, *launcher, *deepspeed_chat(tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(hub.downloads().values()) == {1} and len(hub.downloads()) == 3
    contents = {path: n for (method, path), n in hub.requests.items() if method == "GET"}
    assert {n for path, n in contents.items() if "/resolve/" in path} == {1}
    assert not any("/commits/" in path or "/discussions" in path for _, path in hub.requests)
    counts = json.loads((tmp_path / "two/step2/training_args.json").read_text())["data"]
    assert counts["train"]["Dahoas/rm-static"]["comparisons"] == 32
    assert counts["eval"]["Dahoas/rm-static (test)"]["comparisons"] == 8

    done = run(hub, home, "python", *deepspeed_chat(tmp_path / "one"), offline=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not hub.requests
    first, two, one = (read_metrics(tmp_path / n / "step2") for n in ("first", "two", "one"))
    assert one[0]["eval_loss"] == first[0]["eval_loss"]
    assert one[0]["eval_loss"] == pytest.approx(two[0]["eval_loss"], abs=1e-5)

    # What training has fetched is also there to be scored.
    model = ("--model_name_or_path", tmp_path / "one/step2", "--data_path", "Dahoas/rm-static")
    out = tmp_path / "scores"
    done = run(hub, home, "python", "rw_eval.py", *model, "--output_dir", out, offline=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((out / "scores.jsonl").read_text().splitlines()) == 8 and not hub.requests


TOKENS = """
import sys
from huggingface_hub import snapshot_download
from utils.model.pretrained import load_tokenizer
for place in sys.argv[1], snapshot_download(sys.argv[1]):
    print(load_tokenizer(place)("a b").input_ids)
"""


def test_a_tokenizer_in_parts_is_the_same_by_name_and_in_a_folder(hub, tmp_path):
    """Old OPTs have no tokenizer_config.json to say that `</s>` begins every text."""
    folder = hub.folder("models", "some/old-opt")
    write_opt_350m(folder)
    (folder / "tokenizer_config.json").unlink()
    place = f"PYTHONPATH={ROOT}"
    done = run(hub, tmp_path, "env", place, "python", "-c", TOKENS, "some/old-opt")
    by_name, in_folder = done.stdout.splitlines()[-2:]
    assert by_name == in_folder == str(train_opt_tokenizer()("a b").input_ids), done.stderr


# Runs main() of both programs with one wrong name after another and prints what they say.
FAULTY = """
import sys, time
from main import main as train
from rw_eval import main as score
from utils.settings import InputError
from utils.evaluation.settings import parse_evaluation_arguments
from utils.training.settings import parse_training_arguments

time.sleep = lambda seconds: None  # between tries
folder, *names = sys.argv[1:]
programs = (
    (train, parse_training_arguments, "facebook/opt-350m"),
    (score, parse_evaluation_arguments, "some/reward"),
)
for name in names:
    for is_data in (False, True):
        for program, parse, good in programs:
            model, data = (good, name) if is_data else (name, "Dahoas/rm-static")
            words = ["--model_name_or_path", model, "--data_path", data, "--output_dir", folder]
            try:
                program(parse(words))
            except InputError as error:
                print(f"{program.__module__} {model} {data}: {error}")
"""
REASONS = {
    "no/such": "there is none of this name, or it is private and needs HF_TOKEN",
    "some/gated": "access is restricted: ask for it on its page, and give HF_TOKEN",
    "some/down": "500 Internal Server Error",
    "some/cut": "peer closed connection without sending complete message body",
}


def test_a_name_that_the_hub_does_not_give_is_one_line(hub, tmp_path):
    done = run(
        hub,
        tmp_path,
        "env",
        f"PYTHONPATH={ROOT}",
        "python",
        "-c",
        FAULTY,
        tmp_path / "out",
        *REASONS,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("main ", "rw_eval "))]
    wrong = [
        (name, data) for name in REASONS for data in (False, True) for _ in ("main", "rw_eval")
    ]
    assert len(said) == len(wrong)
    for (name, is_data), line in zip(wrong, said, strict=True):
        assert REASONS[name] in line, line
        kind = (
            "neither a local path nor, on the hub," if is_data else "neither a folder nor a model"
        )
        assert f": {name}: {kind}" in line
    assert "Trying to resume" not in done.stderr


def test_two_processes_end_where_the_hub_refuses(hub, tmp_path):
    names = ("--model_name_or_path", "facebook/opt-350m", "--data_path", "some/gated")
    launcher = ("deepspeed", "--num_gpus", 2, "--master_port", free_port())
    done = run(hub, tmp_path, *launcher, "main.py", *names, "--output_dir", tmp_path / "out")
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "some/gated: " in line]
    assert line.startswith("error: some/gated: neither a local path nor, on the hub, the data set")
    assert sum(n for (_, path), n in hub.requests.items() if "some/gated" in path) == 1
