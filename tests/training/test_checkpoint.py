import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.killing import is_killed
from utils.settings import InputError
from utils.training.checkpoint import (
    NO_MODEL,
    Progress,
    find_checkpoint,
    remove_foreign_states,
    save_checkpoint,
)
from utils.training.folders import refuse_used_folder
from utils.training.resume import Resume, RunIdentity
from utils.training.settings import parse_training_arguments

CPU = torch.device("cpu")
RUN = {"--seed": 1234, "training comparisons": 10}


class Engine:
    """Writes two files with a number in them, in folders as DeepSpeed does."""

    device = torch.device("cpu")

    def __init__(self, number):
        self.number = number

    def save_checkpoint(self, root, tag, save_latest):
        assert not save_latest
        for name in ("weights.pt", "ranks/optimizer.pt"):
            content = io.BytesIO()
            torch.save({"number": torch.full((16,), self.number)}, content)
            path = Path(root) / tag / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())


@pytest.fixture
def arguments(tmp_path):
    def parse(*words):
        common = ["--model_name_or_path", "m", "--output_dir", str(tmp_path / "out")]
        return parse_training_arguments([*common, *map(str, words)])

    return parse


def save(args, step, **more):
    others = {"log": {"lines": [{"step": step}]}, "run": RUN, "batch": 4, **more}
    return save_checkpoint(Engine(step), args, Progress(step, step // 3, step % 3), **others)


def numbers(folder):
    """What the files of a state hold."""
    return {float(torch.load(path)["number"][-1]) for path in folder.rglob("*.pt")}


def steps(args):
    names = [path.name for path in (Path(args.output_dir) / "checkpoints").glob("step_*")]
    return sorted(int(name.removeprefix("step_")) for name in names if "." not in name)


def test_progress_counts_steps_and_passes():
    progress, seen = Progress(), []
    for comparisons in (4, 5, 1, 5, 5, 10, 3):
        progress.advance(comparisons, 10)
        seen.append((progress.step, progress.epoch, progress.seen))
    assert seen == [(1, 0, 4), (2, 0, 9), (3, 1, 0), (4, 1, 5), (5, 2, 0), (6, 3, 0), (7, 3, 3)]


def test_a_saved_state_is_found_again(arguments, tmp_path):
    args = arguments("--resume_from_checkpoint", "latest")
    folder = save(args, 7)
    assert folder == tmp_path / "out" / "checkpoints" / "step_7"
    assert (folder.parent / "latest").read_text() == "step_7"
    elsewhere = ("--output_dir", tmp_path / "other", "--resume_from_checkpoint", folder)
    for found in (find_checkpoint(args, CPU), find_checkpoint(arguments(*elsewhere), CPU)):
        assert found.folder == folder
        assert found.progress == Progress(step=7, epoch=2, seen=1)
        assert (found.log, found.run) == ({"lines": [{"step": 7}]}, RUN)
        assert (found.batch, found.world_size) == (4, 1)
    assert find_checkpoint(arguments(), CPU) is None  # without the flag


def test_a_run_begins_at_its_state_or_at_step_0(arguments, capsys):
    """Without a state each part of Resume does nothing; with one it is what was saved."""
    identity = RunIdentity(RUN, 4, {})
    new = Resume(arguments("--save_best"), CPU)
    config: dict = {}
    new.check(identity)
    new.prepare(config)
    new.load(None)
    assert (new.progress, new.log, new.template_date, config) == (Progress(), None, None, {})
    assert new.best_model() == NO_MODEL

    for run, date in ((RUN, None), (RUN | {"--chat_template_date": "2001-02-03"}, "2001-02-03")):
        folder = save(arguments(), 7 + bool(date), run=run)
        old = Resume(arguments("--resume_from_checkpoint", folder), CPU)
        assert f"going on from {folder}" in capsys.readouterr().out
        assert old.progress == old.checkpoint.progress and old.progress.step == 7 + bool(date)
        assert (old.log, old.template_date) == (old.checkpoint.log, date)
        old.check(identity)
        with pytest.raises(InputError, match="but this run has"):
            old.check(replace(identity, run=dict.fromkeys(RUN, "other")))


@pytest.mark.parametrize("left", [[], ["step_4.partial"], ["universal.partial/step_9"]])
def test_latest_begins_anew_where_nothing_was_saved(arguments, tmp_path, capsys, left):
    for name in left:
        (tmp_path / "out" / "checkpoints" / name).mkdir(parents=True)
    assert find_checkpoint(arguments("--resume_from_checkpoint", "latest"), CPU) is None
    assert "nothing was saved yet" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "kept"), [(0, [2, 4, 9, 10]), (1, [10]), (3, [4, 9, 10])])
def test_the_newest_states_are_kept(arguments, limit, kept):
    args = arguments("--save_total_limit", limit)
    for step in (2, 4, 9, 10):
        save(args, step)
    assert steps(args) == kept
    assert (Path(args.output_dir) / "checkpoints" / "latest").read_text() == "step_10"


@pytest.mark.parametrize("limit", [0, 1, 2])
@pytest.mark.parametrize("broken", [False, True])
def test_a_kill_while_saving_leaves_the_old_state_or_the_new_one(
    arguments, tmp_path, monkeypatch, limit, broken
):
    args = arguments("--resume_from_checkpoint", "latest", "--save_total_limit", limit)
    for step in (2, 4):
        save(arguments(), step)
    if broken:  # what was found there is passed over and replaced
        missing(save(arguments(), 5))
    root = tmp_path / "out" / "checkpoints"
    shutil.copytree(root, tmp_path / "before")
    outcomes = []
    for number in itertools.count(1):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "before", root)
        if not is_killed(monkeypatch, number, lambda: save(args, 5)):
            break
        found = find_checkpoint(args, CPU)
        assert numbers(found.folder) == {found.progress.step}
        outcomes.append(found.progress.step)
        if not broken:  # nothing has the name of a state that is none
            folders = [root / f"step_{step}" for step in steps(args)]
            for folder in folders:
                find_checkpoint(arguments("--resume_from_checkpoint", folder), CPU)
            assert root / (root / "latest").read_text() in folders
        save(args, 6)
        assert find_checkpoint(args, CPU).progress.step == 6
        assert not list(root.glob("*.partial"))
        assert len(steps(args)) <= (limit or 4)
    assert outcomes == sorted(outcomes) and set(outcomes) == {4, 5}
    assert outcomes.count(4) >= 4  # folders, three files, the rename
    assert find_checkpoint(args, CPU).progress.step == 5


def missing(folder):
    (folder / "weights.pt").unlink()
    return "weights.pt: found nothing"


def truncated(folder):
    path = folder / "ranks" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])
    return "ranks/optimizer.pt: found"


def not_json(folder):
    path = folder / "state.json"
    path.write_text(path.read_text()[:-10])
    return "state.json"


def another_json(folder):
    (folder / "state.json").write_text("{}")
    return "state.json"


def without_state(folder):
    (folder / "state.json").unlink()
    return "state.json"


@pytest.mark.parametrize("damage", [missing, truncated, not_json, another_json, without_state])
def test_a_broken_state_is_passed_over(arguments, damage, capsys):
    latest = arguments("--resume_from_checkpoint", "latest")
    for step in (4, 6, 8):
        folder = save(latest, step)
    fault = damage(folder)
    found = find_checkpoint(latest, CPU)
    assert found.progress.step == 6 and numbers(found.folder) == {6}
    [line] = [ln for ln in capsys.readouterr().out.splitlines() if "passed over" in ln]
    with pytest.raises(InputError, match=f"{folder}: not a whole training state: {fault}") as error:
        find_checkpoint(arguments("--resume_from_checkpoint", folder), CPU)
    assert str(folder) in line and str(error.value).split("state: ")[1].split(". Give")[0] in line
    for step in (4, 6):
        missing(folder.parent / f"step_{step}")
    with pytest.raises(InputError, match="no training state under .*checkpoints is whole"):
        find_checkpoint(latest, CPU)


def test_a_state_of_another_run_is_refused(arguments, capsys):
    args = arguments("--resume_from_checkpoint", "latest")
    save(args, 3)
    resume = Resume(args, CPU)
    capsys.readouterr()
    resume.check(RunIdentity(RUN, 4, {}))
    assert capsys.readouterr().out == ""
    resume.check(RunIdentity(RUN, 8, {}))
    assert "a step had 4 comparisons" in capsys.readouterr().out
    for name, value in (("--seed", 7), ("training comparisons", 11)):
        with pytest.raises(InputError, match=f"step_3 .*with {name} {RUN[name]}, .* has {value}:"):
            resume.check(RunIdentity({**RUN, name: value}, 4, {}))


def test_the_models_own_dropout_of_an_earlier_version_is_not_dropped(arguments):
    folder = save(arguments(), 3, run={**RUN, "--dropout": None})
    resume = Resume(arguments("--resume_from_checkpoint", folder), CPU)
    resume.check(RunIdentity({**RUN, "--dropout": "model"}, 4, {}))
    with pytest.raises(InputError, match="with --dropout model, but this run has 0.0"):
        resume.check(RunIdentity({**RUN, "--dropout": 0.0}, 4, {}))


def test_what_trains_otherwise_from_here_on_is_said(arguments, capsys):
    args = arguments("--resume_from_checkpoint", "latest")
    folder = save(args, 3, flags={"--max_steps": 100, "--max_seq_len": 64})
    resume = Resume(args, CPU)
    capsys.readouterr()
    same = {"--max_steps": (100, "longer"), "--max_seq_len": (64, "other tokens")}
    resume.check(RunIdentity(RUN, 4, same))
    assert capsys.readouterr().out == ""
    resume.check(RunIdentity(RUN, 4, same | {"--max_steps": (200, "the rate follows")}))
    assert capsys.readouterr().out == "--max_steps was 100 and is 200: the rate follows\n"
    # A state of an earlier version, without some entries: it goes on, and says what it cannot know.
    unknown = {**same, "--format": (None, "data")}
    resume.check(RunIdentity({**RUN, "--dropout": 0.1}, 4, unknown))
    said = capsys.readouterr().out
    assert f"{folder} is older than this version and does not say --dropout, --format:" in said


def test_every_class_of_flags_reaches_the_check(arguments, capsys):
    """The values that a run is saved with, against those of another command line."""
    common = ("--eval_data_path", "e", "--max_steps", 9, "--dtype", "fp32")
    folder = save(arguments(), 3, **RunIdentity.of(arguments(*common)).as_dict())
    resume = Resume(arguments("--resume_from_checkpoint", folder), CPU)
    for words in (
        ("--lr_scheduler_type", "linear"),
        ("--num_warmup_steps", 2),
        ("--warmup_ratio", 0.1),
        ("--max_grad_norm", 3.0),
        ("--dropout", 0.1),
    ):
        with pytest.raises(InputError, match=f"with {words[0]} .*, but this run has {words[1]}"):
            resume.check(RunIdentity.of(arguments(*common, *words)))
    for words, said in (
        (("--max_steps", 20), "--max_steps was 9 and is 20: the learning rate follows"),
        (("--num_train_epochs", 2), "--num_train_epochs was 1 and is 2: the learning rate follows"),
        (("--gradient_accumulation_steps", 2), "a step had 16 comparisons and has 32 now"),
        (("--per_device_eval_batch_size", 7), "^$"),
    ):
        capsys.readouterr()
        resume.check(RunIdentity.of(arguments(*common, *words)))
        assert re.match(said, capsys.readouterr().out)


MODEL = ["config.json", "model.safetensors"]
STATES = ["checkpoints/step_2/state.json", "checkpoints/step_10/state.json"]
LATEST = ["--resume_from_checkpoint", "latest"]
ELSEWHERE = ["--resume_from_checkpoint", "{root}/other/checkpoints/step_2"]


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ([], [], None),
        (["metrics.jsonl", "checkpoints/step_2.partial/state.json"], [], None),
        (["config.json"], [], "already holds a model"),
        (["model-00001-of-00002.safetensors"], [], "already holds a model"),
        (MODEL, ["--overwrite_output_dir"], None),
        (STATES, [], "training states: give --resume_from_checkpoint latest, another"),
        (STATES, ["--overwrite_output_dir"], None),
        (MODEL + STATES, ["--overwrite_output_dir"], None),
        ([], LATEST, None),
        (STATES, LATEST, None),
        (MODEL + STATES, LATEST, None),  # --save_best has written the model
        (MODEL, LATEST, "already holds a model"),
        (MODEL, [*LATEST, "--overwrite_output_dir"], None),
        (STATES, ["--resume_from_checkpoint", "{root}/out/checkpoints/step_10"], None),
        (MODEL + STATES, ["--resume_from_checkpoint", "{root}/out/checkpoints/step_10/"], None),
        (STATES, ["--resume_from_checkpoint", "{root}/out/checkpoints/step_2"], "holds step_10 t"),
        (STATES, ["--resume_from_checkpoint", "out/../out/checkpoints/step_2"], "holds step_10 t"),
        ([], ELSEWHERE, None),
        (MODEL, ELSEWHERE, "already holds a model"),
        (STATES, ELSEWHERE, "already holds training states"),
        (MODEL + STATES, [*ELSEWHERE, "--overwrite_output_dir"], None),
    ],
)
def test_an_output_folder_in_use_is_refused(
    arguments, tmp_path, monkeypatch, files, words, message
):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    args = arguments(*(word.format(root=tmp_path) for word in words))
    if message is None:
        refuse_used_folder(args)
        return
    with pytest.raises(InputError, match=message) as error:
        refuse_used_folder(args)
    assert str(tmp_path / "out") in str(error.value)


def test_an_output_folder_that_is_a_file_is_refused(arguments, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        refuse_used_folder(arguments("--overwrite_output_dir"))


def test_a_link_to_a_state_with_later_ones_is_refused(arguments, tmp_path):
    save(arguments(), 2)
    save(arguments(), 4)
    (tmp_path / "link").symlink_to(tmp_path / "out" / "checkpoints" / "step_2")
    with pytest.raises(InputError, match="holds step_4 too"):
        refuse_used_folder(arguments("--resume_from_checkpoint", tmp_path / "link"))


@pytest.mark.parametrize(
    ("rank", "goes_on_from", "kept"),
    [(0, None, []), (0, "other", []), (0, "out", [2, 4]), (1, None, [2, 4])],
)
def test_states_of_another_run_are_removed(
    arguments, tmp_path, monkeypatch, rank, goes_on_from, kept
):
    args = arguments()
    for step in (2, 4):
        save(args, step)
    checkpoint = None
    if goes_on_from:
        checkpoint = find_checkpoint(arguments(*LATEST), CPU)
        folder = tmp_path / goes_on_from / "checkpoints" / "step_4"
        checkpoint = replace(checkpoint, folder=folder)
    monkeypatch.setenv("RANK", str(rank))
    remove_foreign_states(args, checkpoint)
    assert steps(args) == kept


def test_a_state_of_as_many_ranks_is_loaded_as_it_stands(arguments):
    folder = save(arguments(), 4)
    resume = Resume(arguments(*LATEST), CPU)
    found = resume.checkpoint
    for stage, written_by in ((0, 1), (2, 1), (0, 4)):  # in stage 0 nothing is in pieces
        config = {"zero_optimization": {"stage": stage}}
        before = json.dumps(config)
        resume.checkpoint = replace(found, world_size=written_by)
        resume.prepare(config)
        assert resume.load_folder == folder
        assert json.dumps(config) == before

    nodes = Resume(arguments(*LATEST, "--use_node_local_storage"), CPU)
    nodes.checkpoint = replace(found, world_size=4)
    with pytest.raises(InputError, match="written by 4 .* this run has 1: the number must st"):
        nodes.prepare({"zero_optimization": {"stage": 3}})

    nvme = {"stage": 3, "offload_optimizer": {"device": "nvme"}}
    with pytest.raises(InputError, match="cannot go on with optimiser states in files"):
        Resume(arguments(*LATEST), CPU).prepare({"zero_optimization": nvme})
