"""A file of each public layout, through main.py and rw_eval.py; and into equal batches."""

import dataclasses
import json

import pytest
import torch

from tests.conftest import read_metrics, train_opt_tokenizer, write_jsonl
from tests.data.formats.test_readers import SAME, SAME_TEXT
from tests.data.loading import load, make_encoder
from tests.forking import run_program
from utils.data.batch import LossInputs
from utils.data.packing import make_collator

LAYOUTS = {**SAME, "nectar": SAME_TEXT["nectar"]}
ROWS = 6


def fill(value, texts):
    """A row of the readers' tests with longer texts."""
    if isinstance(value, dict):
        return {key: fill(part, texts) for key, part in value.items()}
    if isinstance(value, list):
        return [fill(part, texts) for part in value]
    if not isinstance(value, str):
        return value
    if "Q" in value:
        return value.replace("Q", texts["Q"])
    bare = value.strip(' []"')
    return value.replace(bare, texts[bare]) if bare in texts else value


def write_layout(folder, name, row, tag=""):
    """A file with some comparisons in a layout; the tag makes its prompts its own."""
    texts = [
        {
            "Q": f"What is {number} plus {number}{tag}?",
            "a": f"It is {2 * number}.",
            "b": "I'm not sure." + " Really." * (number % 3),
        }
        for number in range(ROWS)
    ]
    return write_jsonl(folder / f"{name}.jsonl", [fill(row, words) for words in texts])


def make_batches(path, tmp_path):
    encoder = make_encoder(train_opt_tokenizer())
    rows = load(path, encoder, tmp_path)["train"]
    inputs = LossInputs(margins=True, votes=True, ties=True, sample_weights=True)
    for layout in ("packed", "padded"):
        yield dataclasses.asdict(make_collator(encoder, layout, inputs=inputs)(rows, [1.0] * ROWS))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.mark.parametrize("name", [name for name in SAME if name != "pairs"])
def test_equal_comparisons_of_two_layouts_are_equal_batches(tmp_path, name):
    paths = [write_layout(tmp_path, layout, SAME[layout]) for layout in (name, "pairs")]
    for one, other in zip(*(make_batches(path, tmp_path) for path in paths), strict=True):
        assert len(one["pairs"]) == ROWS and one["margin"].tolist() == [1.0] * ROWS
        assert_equal(one, other)


def test_nectar_is_the_batch_of_the_same_texts_ranked(tmp_path):
    paths = [write_layout(tmp_path, name, SAME_TEXT[name]) for name in ("nectar", "ranked")]
    for one, other in zip(*(make_batches(path, tmp_path) for path in paths), strict=True):
        assert_equal(one, other)


def test_every_layout_trains_and_is_scored(workspace, tmp_path):
    paths = [write_layout(tmp_path, n, row, tag=f" in {n}") for n, row in LAYOUTS.items()]
    data = ["--data_path", *paths, "--format", "ranked"]
    words = ["--model_name_or_path", workspace / "model", "--max_seq_len", 128, "--max_steps", 1]
    words += ["--data_output_path", tmp_path / "cache", "--eval_fraction", 0.3]
    done = run_program("main.py", *words, *data, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "--format ranked needs the columns" in done.stderr
    data = data[:-2]
    done = run_program("main.py", *words, *data, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if ": layout " in line]
    assert len(notes) == len(LAYOUTS)
    for path, name, note in zip(paths, LAYOUTS, notes, strict=True):
        assert note.startswith(f"{path}: layout {name}; read: ")
    counts = json.loads((tmp_path / "out" / "training_args.json").read_text())["data"]
    assert [count["kept"] for count in counts["train"].values()] == [ROWS] * len(LAYOUTS)
    evaluated = read_metrics(tmp_path / "out")[-1]["eval_sources"]
    assert set(evaluated) <= set(LAYOUTS) and len(evaluated) > 5
    words = ["--model_name_or_path", tmp_path / "out", *data, "--output_dir", tmp_path / "report"]
    done = run_program("rw_eval.py", *words)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if ": layout " in line] == notes
    lines = [json.loads(line) for line in (tmp_path / "report" / "scores.jsonl").open()]
    assert [line["source"] for line in lines] == [name for name in LAYOUTS for _ in range(ROWS)]
    assert all(len(line["scores"]) == 2 and None not in line["scores"] for line in lines)
