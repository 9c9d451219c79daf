"""What cannot be used gets exit code 2 and a line that names it and the remedy."""

import re

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.conftest import free_port, make_pairs, run_command, save_language_model, write_jsonl
from tests.forking import run_program


@pytest.fixture(scope="module")
def good_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_jsonl(folder / "pairs.jsonl", make_pairs(12))


def refuse(tmp_path, data, model, *more, program="main.py"):
    """Run a program on bad input; returns what it said after checking how it ended."""
    output = tmp_path / "output"
    words = ["--model_name_or_path", model]
    if program == "main.py":
        words += ["--output_dir", output, "--max_seq_len", 64]
        words += ["--data_output_path", tmp_path / "cache"]
    words += ["--data_path", data] if data else []
    existed = {path: path.read_bytes() for path in output.glob("*")} if output.exists() else None
    done = run_program(program, *words, *more)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    left = {path: path.read_bytes() for path in output.glob("*")} if output.exists() else None
    assert left == existed
    return done.stderr


PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'

BAD_DATA = {
    "missing": (None, r"data\.jsonl: no such file or folder \(--data_path"),
    "unreadable line": (
        PAIR + '{"prompt": "a"',
        r"1 of 2 rows malformed.*row 2: .*one JSON object a line.*--max_bad_rows",
    ),
    "columns": (
        '{"text": "a", "label": 1}\n',
        r"columns label, text\. Known layouts: .*prompt\+chos",
    ),
    "identical": (PAIR.replace('"b"', '"c"'), r"no usable .*1 dropped \(identical answers\)"),
    "malformed": (PAIR.replace('"c"', "null"), r"1 of 1 rows malformed.*row 1: answer 2 is None"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_data(tmp_path, opt_model, name):
    content, message = BAD_DATA[name]
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    assert re.search(message, refuse(tmp_path, data, opt_model), re.DOTALL)


def test_data_that_only_the_hub_has(tmp_path, opt_model):
    said = refuse(tmp_path, "nobody/nothing", opt_model)
    assert re.search("nobody/nothing: neither a local path nor.*Without network", said, re.DOTALL)


def test_model_that_only_the_hub_has(tmp_path, good_data):
    said = refuse(tmp_path, good_data, "nobody/nothing")
    assert re.search("nobody/nothing: neither a folder nor.*Without network", said, re.DOTALL)


def test_a_folder_that_is_not_a_model(tmp_path, good_data):
    said = refuse(tmp_path, good_data, tmp_path)
    assert re.search(f"{tmp_path}: not a model.*config.json", said, re.DOTALL)


def test_a_folder_that_is_not_there(tmp_path, good_data):
    model = tmp_path / "models" / "opt"
    said = refuse(tmp_path, good_data, model)
    assert said == f"error: {model}: no such folder (--model_name_or_path)\n"


@pytest.mark.parametrize("program", ["main.py", "rw_eval.py"])
def test_damaged_weights_show_before_the_data_are_read(tmp_path, opt_model, program):
    weights = opt_model / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n")
    said = refuse(tmp_path, tmp_path / "none.jsonl", opt_model, program=program)
    assert said.startswith(f"error: {weights}: a pointer of Git LFS")
    assert said.count("\n") == 1


def test_layers_that_lora_does_not_find_show_before_the_data_are_read(tmp_path, opt_model):
    words = ("--lora_dim", 4, "--lora_module_name", "nothing.", "--dry_run")
    said = refuse(tmp_path, "nobody/nothing", opt_model, *words)
    assert "--lora_module_name is 'nothing.', but no linear layer's name contains it" in said


def test_wrong_padding_at_the_beginning(tmp_path, good_data, opt_model):
    said = refuse(tmp_path, good_data, opt_model, "--num_padding_at_beginning", 0)
    assert re.search("--num_padding_at_beginning is 0, but .* puts 1 .*give 1", said)


def test_more_tokens_than_the_model_has_positions(tmp_path, good_data, opt_model):
    said = refuse(tmp_path, good_data, opt_model, "--max_seq_len", 512)
    assert re.search("--max_seq_len is 512, but .* has 256 positions", said)


def test_micro_batches_that_no_comparison_fits_into(tmp_path, good_data, opt_model):
    said = refuse(tmp_path, good_data, opt_model, "--max_tokens_per_micro_batch", 20)
    assert re.search(r"batch is 20, but a comparison has \d+ tokens: give at least that", said)


def test_micro_batches_by_tokens_that_are_padded(tmp_path, good_data, opt_model):
    words = ("--max_tokens_per_micro_batch", 900, "--batch_layout", "padded")
    said = refuse(tmp_path, good_data, opt_model, *words)
    assert "batches are padded: give --max_tokens_per_micro_batch 0" in said


def test_a_family_that_cannot_be_packed(tmp_path, good_data, gpt2_tokenizer):
    sizes = {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    model = save_language_model(tmp_path / "bloom", gpt2_tokenizer, "bloom", **sizes)
    said = refuse(tmp_path, good_data, model, "--batch_layout", "packed")
    assert re.search("packed: bloom does not let its attention.*give --batch_layout padded", said)


def test_an_output_folder_that_holds_a_model(tmp_path, good_data, opt_model):
    output = tmp_path / "output"
    output.mkdir()
    (output / "config.json").write_text("{}")
    (output / "training_args.json").write_text("precious")
    said = refuse(tmp_path, good_data, opt_model)
    assert re.search(f"{output} already holds a model.*--overwrite_output_dir", said)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--per_device_train_batch_size", 0),
        ("--per_device_eval_batch_size", -1),
        ("--gradient_accumulation_steps", 0),
        ("--max_tokens_per_micro_batch", -1),
        ("--batch_layout", "sorted"),
        ("--learning_rate", "nan"),
        ("--data_split", "2,0,8"),
        ("--eval_fraction", 1.5),
        ("--offload", None),
        ("--no_such_flag", 1),
    ],
)
def test_flags(tmp_path, good_data, opt_model, flag, value):
    words = [flag] if value is None else [flag, value]
    assert flag.removeprefix("--") in refuse(tmp_path, good_data, opt_model, *words)


def test_a_language_model_cannot_score(tmp_path, opt_model):
    said = refuse(tmp_path, None, opt_model, program="rw_eval.py")
    assert re.search(r"score\.weight is missing.*Train it with main\.py", said)


def test_an_empty_answer_cannot_be_scored(tmp_path, opt_model):
    config = AutoConfig.from_pretrained(opt_model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(opt_model)
    said = refuse(
        tmp_path, None, opt_model, "--prompt", "a", "--response", " ", program="rw_eval.py"
    )
    assert "' ' is empty" in said


def test_two_processes_end_together(tmp_path, opt_model):
    """The launcher passes the exit code on, and nobody waits for a rank that has left."""
    words = ("--model_name_or_path", opt_model, "--data_path", tmp_path / "no.jsonl")
    done = run_command(
        *("deepspeed", "--num_gpus", 2, "--master_port", free_port(), "main.py", *words),
        *("--max_seq_len", 64),
    )
    assert done.returncode == 2
    assert done.stderr.count("no.jsonl: no such file") == 1


def test_a_model_without_padding_token_gets_one(tmp_path, good_data, llama_tokenizer):
    """Not an error: the model gets a padding token that is not the end token, and says so."""
    model = save_language_model(tmp_path / "llama", llama_tokenizer, "llama")
    words = ("--model_name_or_path", model, "--data_path", good_data, "--max_seq_len", 64)
    cache = ("--data_output_path", tmp_path / "cache", "--output_dir", tmp_path / "out")
    done = run_program("main.py", *words, *cache, "--max_steps", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"no padding token: padding is \d+ \(<pad>\)", done.stdout)
    assert (tmp_path / "out" / "model.safetensors").exists()
