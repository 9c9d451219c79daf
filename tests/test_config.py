"""Flags from a file, through the real command."""

import json

import yaml

from tests.conftest import flags, run_command, without_times


def test_the_arguments_of_a_run_give_the_same_run_again(workspace, tmp_path):
    words = [str(word) for word in flags(workspace, "unused", 4, 2)]
    values = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    values |= {"dropout": 0.1, "data_split": [0, 1, 0], "center_rewards_coefficient": 0.01}
    values |= {"num_warmup_steps": 90, "warmup_ratio": 0}
    values |= {"gradient_checkpointing": True, "output_dir": str(tmp_path / "first")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    for config, folder in (("run.yaml", "first"), ("first/training_args.json", "second")):
        place = ("--config", tmp_path / config, "--output_dir", tmp_path / folder)
        done = run_command("python", "main.py", *place)
        assert done.returncode == 0, done.stderr
        said = "--data_split 0,1,0 leaves 37 of 37 comparisons to this step"
        assert f"{workspace / 'train.jsonl'}: {said}" in done.stdout
        assert "!! --num_warmup_steps is 90, but the run has 10 steps" in done.stdout
    lines = without_times(tmp_path / "first")
    assert len(lines) > 9 and without_times(tmp_path / "second") == lines
    first, second = (
        json.loads((tmp_path / name / "training_args.json").read_text())
        for name in ("first", "second")
    )
    assert second["arguments"].pop("output_dir") != first["arguments"].pop("output_dir")
    assert (first["arguments"], first["data"]) == (second["arguments"], second["data"])
    assert first["arguments"]["dropout"] == 0.1 and first["arguments"]["data_split"] == [0, 1, 0]
