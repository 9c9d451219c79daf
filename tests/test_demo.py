import json

import pytest

from tests.conftest import ROOT, run_command
from utils.demo import write_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder, seed=3)
    return folder


def read(folder, name):
    return [
        json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()
    ]


def test_the_same_seed_gives_the_same_bytes(demo, tmp_path):
    write_demo(tmp_path / "again", seed=3)
    files = [path.relative_to(demo) for path in demo.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for file in files:
        assert (demo / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize("split", ["train", "test"])
def test_length_alone_does_not_decide(demo, split):
    rows = read(demo, split)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert 0.4 < longer < 0.65


def test_no_prompt_is_seen_twice_nor_a_topic_of_the_built_in_prompts(demo):
    train, test = ({row["prompt"] for row in read(demo, name)} for name in ("train", "test"))
    assert len(train) == 3000
    assert len(test) == 400
    assert not train & test
    text = (ROOT / "utils" / "demo_facts.tsv").read_text().lower()
    text += "".join(map(json.dumps, read(demo, "train"))).lower()
    for word in ("microsoft", "software", "bill gates", "moon", "astronaut", "nasa", "apollo"):
        assert word not in text, word


def test_script_trains_and_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMO", str(tmp_path / "demo"))
    script = ROOT / "training_scripts" / "opt" / "cpu" / "run_tiny.sh"
    done = run_command("bash", script, tmp_path / "out", "0", "--max_steps", "2", "--eval_iters", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("above the bad one") == 2
    for name in ("model.safetensors", "training_curves.png", "evaluation/report.json"):
        assert (tmp_path / "out" / name).exists()
        assert name.split("/")[0] in done.stdout or name == "model.safetensors"
