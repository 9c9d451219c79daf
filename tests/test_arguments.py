import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import yaml

from tests.conftest import ROOT
from utils.evaluation.settings import parse_evaluation_arguments
from utils.settings import FREE, REFUSED, SIZE, InputError
from utils.training import settings
from utils.training.resume import RunIdentity
from utils.training.settings import SCHEDULERS, parse_training_arguments

# Every flag of DeepSpeed-Chat's step 2, as its users type them.
DEEPSPEED_CHAT = """--data_path Dahoas/rm-static Dahoas/full-hh-rlhf --data_split 2,4,4
    --data_output_path /tmp/data_files/ --model_name_or_path facebook/opt-350m
    --num_padding_at_beginning 1 --per_device_train_batch_size 4 --per_device_eval_batch_size 8
    --max_seq_len 256 --learning_rate 5e-5 --weight_decay 0.1 --num_train_epochs 2
    --gradient_accumulation_steps 3 --lr_scheduler_type linear --num_warmup_steps 7
    --output_dir out --seed 99 --local_rank 1 --gradient_checkpointing --dropout 0.0 --offload
    --dtype bf16 --zero_stage 2 --lora_dim 128 --lora_module_name decoder.layers.
    --only_optimize_lora --lora_learning_rate 1e-3 --eval_interval 5 --eval_iters 100
    --compute_fp32_loss --enable_tensorboard --tensorboard_path tb --add_eot_token --deepspeed
    --deepspeed_config ds.json"""


RANKING, TOKENS = ["--loss", "plackett_luce"], ["--loss", "token_pairwise"]


def test_a_deepspeed_chat_command_line_keeps_its_meaning():
    args = vars(parse_training_arguments(DEEPSPEED_CHAT.split()))
    flags = [part.split() for part in ("\n" + DEEPSPEED_CHAT).split("--")[1:]]
    assert len(flags) == 34
    for name, *values in flags:
        value = args[name]
        if not values:
            assert value in (True, "cpu"), name
        elif isinstance(value, list) and name == "data_split":
            assert value == [2, 4, 4]
        elif isinstance(value, list):
            assert value == values
        else:
            assert type(value)(values[0]) == value, name


def test_without_flags_everything_trains_once():
    args = parse_training_arguments(["--model_name_or_path", "m"])
    assert args.data_path == ["Dahoas/rm-static"]
    assert args.data_split is None
    assert (args.num_train_epochs, args.max_steps, args.zero_stage) == (1, 0, 0)
    assert args.lr_scheduler_type == "cosine" and "cosine" in SCHEDULERS


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ([], "offload", None),
        (["--zero_stage", "1", "--offload"], "offload", "cpu"),
        (["--offload", "--zero_stage", "2"], "offload", "cpu"),
        (["--zero_stage", "3", "--offload", "cpu"], "offload", "cpu"),
        ([], "dropout", 0),
        (["--dropout", "model"], "dropout", "model"),
        (["--disable_dropout"], "dropout", 0),
        ([], "monitor", []),
        (["--enable_tensorboard"], "monitor", ["tensorboard"]),
        (["--monitor", "csv", "tensorboard"], "monitor", ["csv", "tensorboard"]),
        (["--monitor", "csv", "--enable_tensorboard"], "monitor", ["csv", "tensorboard"]),
        (["--monitor", "tensorboard", "--enable_tensorboard"], "monitor", ["tensorboard"]),
        (["--lora_dim", "8"], "lora_alpha", 16),
        (["--lora_dim", "8", "--lora_alpha", "3"], "lora_alpha", 3),
        (["--lora_dim", "8", "--only_optimize_lora", "--save_adapter"], "save_adapter", True),
    ],
)
def test_what_flags_mean_together(words, name, value):
    for _ in range(2):  # the defaults stay as they are
        args = parse_training_arguments(["--model_name_or_path", "m", *words])
        assert getattr(args, name) == value


@pytest.mark.parametrize("parse", [parse_training_arguments, parse_evaluation_arguments])
def test_every_flag_is_explained(parse, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    names = set(vars(parse(["--model_name_or_path", "m"])))
    for name in names:
        block = text.split(f"  --{name}", 1)[1].split("\n  --")[0]
        assert len(block.split()) > 3, name
    assert "(default: None)" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a"], "--prompt and --response go together"),
        (["--prompt", "a", "--response", "b", "--data_path", "c"], "exclude each other"),
        (["--output_dir", "x"], "--output_dir goes with --data_path"),
        (["--batch_size", "0", "--data_path", "c"], "--batch_size is 0"),
        (["--batch_size", "many", "--data_path", "c"], "argument --batch_size: invalid"),
        (["--interactive", "--benchmark", "llmbar"], "--interactive and --benchmark exclude"),
        (["--compare", "a", "b", "--data_path", "c"], "--data_path and --compare exclude"),
        (["--benchmark", "llmbar", "--data_path", "a", "b"], "takes one file or folder"),
        (["--as_pairs"], "--as_pairs goes with --data_path or --benchmark"),
        (["--as_pairs", "--best_of_n", "--data_path", "c"], "not allowed with argument"),
        (["--max_queue", "5", "--data_path", "c"], "--max_queue goes with --serve"),
        (["--format", "pairs"], "--format goes with --data_path"),
        (["--format", "pairs", "--benchmark", "llmbar", "--data_path", "c"], "has its own layout"),
        (["--resume", "--data_path", "c"], "--resume needs the --output_dir"),
        (["--resume", "--data_path", "-", "--output_dir", "x"], "cannot go back in standard input"),
        (["--data_path", "-", "-"], "names standard input (-) more than once"),
        (
            ["--resume", "--overwrite_output_dir", "--output_dir", "x", "--data_path", "c"],
            "--resume and --overwrite_output_dir exclude each other",
        ),
    ],
)
def test_flags_of_rw_eval_that_contradict(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_evaluation_arguments(["--model_name_or_path", "m", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_rw_eval_needs_a_model_but_to_compare(capsys):
    assert parse_evaluation_arguments(["--compare", "a", "b"]).model_name_or_path is None
    with pytest.raises(SystemExit):
        parse_evaluation_arguments(["--prompt", "a", "--response", "b"])
    assert "--model_name_or_path is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_warmup_steps", "3", "--warmup_ratio", "0.1"], "exclude each other"),
        (["--only_optimize_lora"], "--only_optimize_lora needs --lora_dim"),
        (["--save_adapter"], "--save_adapter needs --only_optimize_lora"),
        (["--save_adapter", "--lora_dim", "4"], "--save_adapter needs --only_optimize_lora"),
        (["--offload"], "--offload needs --zero_stage 1, 2 or 3"),
        (["--offload", "nvme", "--zero_stage", "3"], "--offload nvme is no longer there: give"),
        (["--offload=nvme"], "--offload nvme is no longer there: give --offload cpu, or"),
        (["--nvme_path", "x"], "--nvme_path is no longer there: name the device nvme"),
        (["--pad_to_multiple_of", "8"], "--pad_to_multiple_of is no longer there: leave it out"),
        (["--offload", "disk", "--zero_stage", "3"], "invalid choice: 'disk'"),
        (["--monitor", "mlflow"], "invalid choice: 'mlflow'"),
        (["--save_interval", "-1"], "--save_interval is -1; it must be at least 0"),
        (["--save_total_limit", "-1"], "--save_total_limit is -1; it must be at least 0"),
        (["--early_stopping_patience", "-1"], "--early_stopping_patience is -1"),
        (["--dropout", "1.5"], "--dropout is 1.5"),
        (["--dropout", "-1"], "--dropout is -1"),
        (["--dropout", "none"], "--dropout: 'none'; expected a probability or model"),
        (["--data_split", "a,b"], "--data_split is 'a,b'"),
        (["--data_split", "nan,1"], "--data_split is 'nan,1'"),
        (["--max_grad_norm", "-1"], "--max_grad_norm is -1.0; it must be at least 0"),
        (["--max_bad_rows", "2"], "--max_bad_rows is 2.0; it must be from 0 to 1"),
        (["--format", "what"], "invalid choice: 'what'"),
        (["--data_path", "a:0.5", "b"], "a has a weight, but b has none"),
        (["--eval_data_path", "a:0.5"], "--eval_data_path: a has a weight"),
        (["--streaming"], "--streaming is no longer there: leave it out; tokenised rows are"),
        (["--loss", "cubic"], "invalid choice: 'cubic'"),
        (["--label_smoothing", "0.5"], "--label_smoothing is 0.5; it must be below 0.5"),
        (["--label_smoothing", "-0.1"], "--label_smoothing is -0.1; it must be at least 0"),
        (["--tie_threshold", "nan"], "--tie_threshold is nan; it must be at least 0"),
        (["--center_rewards_coefficient", "-1"], "--center_rewards_coefficient is -1.0"),
        (["--margin", "--label", "soft"], "--margin and --label soft exclude each other"),
        (["--margin", "--tie_threshold", "1"], "--margin and --tie_threshold exclude each other"),
        (["--tie_threshold", "1", "--label", "soft"], "--label soft and --tie_threshold exclude"),
        ([*RANKING, "--margin"], "--margin needs --loss pairwise, not --loss plackett_luce"),
        ([*RANKING, "--label", "soft"], "--label soft needs --loss pairwise, not"),
        ([*RANKING, "--label_smoothing", "0.1"], "--label_smoothing needs --loss pairwise, not"),
        ([*TOKENS, "--tie_threshold", "1"], "--tie_threshold needs --loss pairwise, not"),
        ([*TOKENS, "--score_position", "mean"], "--loss token_pairwise needs --score_position end"),
    ],
)
def test_flags_of_main_that_contradict(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_training_arguments(["--model_name_or_path", "m", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("comet", "comet_ml")])
@pytest.mark.parametrize("installed", [False, True])
def test_a_monitor_needs_its_package(monkeypatch, capsys, name, package, installed):
    found = object() if installed else None
    monkeypatch.setattr(settings, "find_spec", lambda asked: found if asked == package else None)
    words = ["--model_name_or_path", "m", "--monitor", "csv", name]
    if installed:
        assert parse_training_arguments(words).monitor == ["csv", name]
        return
    with pytest.raises(SystemExit):
        parse_training_arguments(words)
    assert f"--monitor {name} needs a package: pip install {package}" in capsys.readouterr().err


@pytest.mark.parametrize("parse", [parse_training_arguments, parse_evaluation_arguments])
def test_each_group_of_the_help_fits_a_screen(parse, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = [i for i, line in enumerate(lines) if line.endswith(":") and line[0] != " "]
    assert len(starts) > 5
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        assert end - start <= 24, lines[start]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--max_length", "9"], "--max_seq_len"),
        (["--learning-rate=1e-3"], "--learning_rate"),
        (["--learning_rat", "1e-3"], "--learning_rate"),
        (["--focal_gamma", "2"], None),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(words, nearest, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_training_arguments(["--model_name_or_path", "m", *words])
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    hint = f" (the nearest is {nearest})" if nearest else ""
    assert message == f"main.py: error: unrecognized arguments: {' '.join(words)}{hint}"


def test_a_run_and_its_model_card_name_every_flag_of_the_loss():
    """So that no run goes on with another loss than its training state's."""
    args = parse_training_arguments(["--model_name_or_path", "m"])
    names = {entry.name for entry in fields(settings.LossSettings)}
    assert {"loss", "margin"} < names
    assert {f"--{name}" for name in names} <= set(RunIdentity.of(args).run)
    assert names <= set(args.flags(REFUSED, SIZE, settings.LENGTH))


def test_every_flag_has_one_meaning_for_a_run_that_goes_on():
    """Refused, said, compared as a size, or free: no flag changes what trains in silence."""
    args = parse_training_arguments(["--model_name_or_path", "m"])
    meanings = {entry.name: entry.metadata["resume"] for entry in fields(args)}
    assert list(args.flags()) != [] and set(args.flags()) == set(meanings)
    for name, meaning in meanings.items():
        assert meaning in (REFUSED, SIZE, FREE) or len(meaning.split()) > 3, name


def test_a_text_may_name_a_flag_that_was_removed():
    text = "What was --pad_to_multiple_of 8 for?"
    words = ["--model_name_or_path", "m", "--prompt", text, "--response", "a"]
    assert parse_evaluation_arguments(words).prompt == text


def test_nothing_changes_settings():
    args = parse_training_arguments(["--model_name_or_path", "m"])
    with pytest.raises(FrozenInstanceError):
        args.dtype = "bf16"
    with pytest.raises(InputError, match="--seed is -1; it must be at least 0"):
        replace(args, seed=-1)


def write_config(folder, values, name="config.yaml"):
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return ["--config", str(path)]


COMMAND_LINES = [
    ["--model_name_or_path", "m"],
    DEEPSPEED_CHAT.split(),
    [
        "--model_name_or_path",
        "m",
        "--monitor",
        "csv",
        "--dropout",
        "0",
        "--margin",
    ],
    ["--model_name_or_path", "m: #1", "--lora_dim", "8", "--data_path", "a:0.25", "b c:0.75"],
    ["--model_name_or_path", "m", "--zero_stage", "3", "--offload", "--learning_rate", "1e-05"],
    ["--model_name_or_path", "m", "--disable_dropout"],
]


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
@pytest.mark.parametrize("words", COMMAND_LINES)
def test_what_was_parsed_can_be_read_back(tmp_path, words, write):
    args = parse_training_arguments(words)
    record = {"arguments": vars(args), "world_size": 1, "data": {"train": 7}}
    for values in (record, vars(args)):
        assert parse_training_arguments(write_config(tmp_path, write(values))) == args


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    values = {"model_name_or_path": "m", "max_seq_len": 128, "data_path": ["a", "b"], "seed": 5}
    config = write_config(tmp_path, {**values, "offload": True, "zero_stage": 2, "margin": False})
    for words in (
        [*config, "--data_path", "c", "--seed", "6"],
        ["--data_path=c", "--seed=6", *config],
    ):
        args = parse_training_arguments(words)
        assert (args.model_name_or_path, args.max_seq_len, args.data_path) == ("m", 128, ["c"])
        assert (args.seed, args.offload, args.margin) == (6, "cpu", False)
        assert args.learning_rate == 5e-5 and not hasattr(args, "config")


def test_rw_eval_reads_a_file_too(tmp_path):
    values = {"model_name_or_path": "m", "prompt": "Why?", "response": ["a, b", "c"]}
    words = write_config(tmp_path, {**values, "apply_chat_template": False, "normalize": True})
    args = parse_evaluation_arguments(words)
    assert (args.prompt, args.response) == ("Why?", ["a, b", "c"])
    assert (args.apply_chat_template, args.normalize) == (False, True)
    assert parse_evaluation_arguments([*words, "--apply_chat_template"]).apply_chat_template


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"max_length": 9, "bf16": True},
            "there is no flag bf16, no flag max_length (the nearest is max_seq_len)",
        ),
        ({"config": "other.yaml"}, "there is no flag config"),
        ({"help": True}, "there is no flag help"),
        ({3: 4}, "there is no flag 3"),
        ({"margin": 1}, "margin is 1; it must be true or false"),
        ({"seed": {"a": 1}}, "seed is {'a': 1}; it must be a value or a list of values"),
        ({"seed": "one"}, "argument --seed: invalid int value: 'one'"),
        ({"max_steps": True}, "argument --max_steps: expected one argument"),
        ({"loss": "cubic"}, "argument --loss: invalid choice: 'cubic'"),
        ({"max_seq_len": 4}, "--max_seq_len is 4; it must be at least 8"),
        ("- a\n- b\n", "must have a line `flag: value` for each flag"),
        ("", "must have a line `flag: value` for each flag"),
        ("a: [", "cannot be read: while parsing"),
        ("\0", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, capsys, values, message):
    with pytest.raises(SystemExit) as caught:
        parse_training_arguments(["--model_name_or_path", "m", *write_config(tmp_path, values)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_training_arguments(["--config", str(tmp_path / "none.yaml")])
    assert "none.yaml cannot be read: [Errno 2]" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["main.py", "rw_eval.py"])
def test_without_the_environment_one_sentence_says_how_to_get_it(program):
    done = subprocess.run(
        [sys.executable, "-S", program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: No module named '\w+': run `source .*`, or `pip .*`\n", done.stderr
    )
