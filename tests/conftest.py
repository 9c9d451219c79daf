"""Tiny tokenizers and models with random weights, and a way to run the commands."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it: nothing may ask the hub

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)

if release := os.environ.get("EMULATED_GPU"):  # for these tests and for what they start
    from tests.emulation.emulated_gpu import emulate
    from utils.model import shared_prefix

    emulate(shared_prefix, release)
    folders = [str(ROOT / "tests" / "emulation"), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))

TEXTS = [
    "Human: What does a lighthouse do? Assistant: It shows ships where the coast is.",
    "I'm not sure. I don't know. The quick brown fox jumps over the lazy dog 0123456789.",
    "Bread is baked from flour, water, salt and yeast; it rises before it goes into the oven.",
]


def train_tokenizer(specials: list[str], **tokens) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens; `leading` names a token put before every text."""
    leading = tokens.pop("leading", None)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if leading:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{leading} $A", special_tokens=[(leading, tokenizer.token_to_id(leading))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def train_opt_tokenizer() -> PreTrainedTokenizerFast:
    """OPT's conventions: `</s>` before every text and at its end, a padding token of its own."""
    return train_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"],
        leading="</s>",
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


@pytest.fixture
def opt_tokenizer():
    """A fresh one for each test, since tests may change it."""
    return train_opt_tokenizer()


@pytest.fixture
def gpt2_tokenizer():
    """GPT-2's conventions: nothing before a text, no padding token."""
    return train_tokenizer(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture
def llama_tokenizer():
    """Llama's conventions: `<s>` before every text, `</s>` at its end, no padding token."""
    return train_tokenizer(
        ["<unk>", "<s>", "</s>"],
        leading="<s>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


SIZES = {
    # As in OPT-350m, the embeddings are narrower than the layers.
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "max_position_embeddings": 256,
        "do_layer_norm_before": False,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
}


def save_language_model(folder: Path, tokenizer, family: str = "opt", **changes) -> Path:
    """Write a tiny language model with random weights and its tokenizer."""
    set_seed(0)
    config = CONFIG_MAPPING[family](
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**SIZES.get(family, {}), **changes},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def opt_model(tmp_path, opt_tokenizer) -> Path:
    """Folder of a tiny OPT."""
    return save_language_model(tmp_path / "opt", opt_tokenizer)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text: str) -> dict:
    """A message of the user."""
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def make_pairs(number: int) -> list[dict]:
    """Comparisons of varying length, each with a prompt of its own."""
    return [
        {
            "prompt": f"Human: What is {i} plus {i % 5}? Assistant:",
            "chosen": f" It is {i + i % 5}." + " It really is." * (i % 4),
            "rejected": " I'm not sure." * (1 + i % 3),
        }
        for i in range(number)
    ]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def start_command(*words) -> subprocess.Popen:
    """Start a command of the project in a session of its own."""
    environment = {**os.environ, **ENVIRONMENT}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Where the tests are a job in the background, it is ignored, and bash could not catch it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# Names by which a test starts processes, and files of tests that take many seconds without that.
STARTERS = {"run_command", "run_program", "start_command", "subprocess"}
SLOW = {
    *("test_audit_figures", "test_audit_report", "test_families", "test_fuzzing"),
    *("test_fuzzing_files", "test_hub_files", "test_loop", "test_pictures", "test_positions"),
    *("test_pretrained", "test_checkpoint_files", "test_report", "test_reward_model"),
    *("test_shared_prefix", "test_tally", "test_foreign_models", "test_cache"),
    *("test_script_memory", "test_gpu_branch", "test_compile"),
}


def pytest_collection_modifyitems(items) -> None:
    """Mark the tests of a file that starts processes `launch`, and those of a slow one `slow`."""
    for item in items:
        if STARTERS & vars(item.module).keys():
            item.add_marker("launch")
        if item.module.__name__.rsplit(".", 1)[-1] in SLOW:
            item.add_marker("slow")


# Seconds that nothing takes, however busy the machine is: what is not done by then hangs.
TOO_LONG = 1800


def finish(process: subprocess.Popen, timeout: int = TOO_LONG) -> subprocess.CompletedProcess:
    """Wait for a command; nothing of it outlives the call."""
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_command(*words, timeout: int = TOO_LONG) -> subprocess.CompletedProcess:
    """Run a command of the project to its end."""
    return finish(start_command(*words), timeout)


BATCH, RATE, DECAY, CLIP, EPOCHS = 8, 3e-3, 0.1, 0.5, 2


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A tiny OPT, 37 comparisons to train (some with four answers) and 11 to evaluate."""
    folder = tmp_path_factory.mktemp("training")
    tokenizer = train_opt_tokenizer()
    save_language_model(folder / "model", tokenizer, dropout=0.1)
    ranked = [
        {
            "prompt": pair["prompt"],
            "responses": [pair["rejected"], pair["chosen"], *TEXTS[:2]][: 2 + i % 3],
            "ranks": [3, 1, 2, 2][: 2 + i % 3],
        }
        for i, pair in enumerate(make_pairs(48))
    ]
    write_jsonl(folder / "train.jsonl", ranked[:37])
    write_jsonl(folder / "eval.jsonl", ranked[37:])
    return folder


def flags(workspace, name, micro_batch, accumulation):
    """main.py's, for a run into a folder of the workspace."""
    return [
        *("--model_name_or_path", workspace / "model"),
        *("--data_path", workspace / "train.jsonl"),
        *("--eval_data_path", workspace / "eval.jsonl"),
        *("--data_output_path", workspace / "cache"),
        *("--output_dir", workspace / name),
        *("--per_device_train_batch_size", micro_batch),
        *("--gradient_accumulation_steps", accumulation),
        *("--per_device_eval_batch_size", 4),
        *("--num_train_epochs", EPOCHS),
        *("--learning_rate", RATE),
        *("--weight_decay", DECAY),
        *("--max_grad_norm", CLIP),
        *("--warmup_ratio", 0.2),
        *("--eval_interval", 3),
        *("--dropout", 0),
        *("--max_seq_len", 256),
    ]


def read_metrics(folder) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder) -> list[dict]:
    """Metrics but those that depend on how fast the machine is."""
    timed = ("seconds", "comparisons_per_second", "tokens_per_second", "peak_memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(folder)]


def slow_prefix(sequences):
    """Length of what all sequences begin with, counted one position at a time."""
    count = 0
    while sequences:
        column = {tuple(ids[count : count + 1]) for ids in sequences}
        if len(column) > 1 or column == {()}:
            break
        count += 1
    return count
