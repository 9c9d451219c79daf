"""What a run tells."""

import json
import math
import warnings
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from utils import distributed
from utils.training.log import RunLog, draw_curves, source_table, write_arguments
from utils.training.settings import TrainingSettings

RESULT = {
    "loss": 0.5,
    "accuracy": 0.75,
    "margin": 0.25,
    "score_mean": 1.0,
    "score_std": 0.5,
    "better_score": 1.5,
    "worse_score": 1.25,
    "comparisons": 40,
    "pairs": 1200,
    "ties": 3,
}


def make_sources(number):
    """The more a source has, the later its name stands."""
    names = ("comparisons", "pairs", "accuracy", "loss", "margin")
    return {
        f"s{i:02}": dict(zip(names, (1 + i, 1000 * (1 + i), i / 100, 0.5 + i, -i / 8), strict=True))
        for i in range(number)
    }


@pytest.fixture
def make_log(tmp_path):
    """A log, and the events that its monitor gets."""

    def make(before=None):
        events = []
        monitor = SimpleNamespace(write_events=events.extend, comet_monitor=None)
        args = SimpleNamespace(output_dir=tmp_path, logging_steps=1)
        return RunLog(args, 10, monitor, None, before=before), events

    return make


def read_text(log):
    return log.file.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [0, 2, 25])
def test_an_evaluation_goes_to_file_monitor_and_screen(make_log, capsys, number):
    log, events = make_log()
    sources = {"sources": make_sources(number)} if number else {}
    log.evaluation(3, 0.5, {**RESULT, **sources})
    (line,) = map(json.loads, read_text(log).splitlines())
    expected = {f"eval_{name}": value for name, value in {**RESULT, **sources}.items()}
    assert line == {"step": 3, "epoch": 0.5, **expected}
    assert log.accuracies() == [0.75]
    scalars = {f"eval/{name}": value for name, value in RESULT.items()}
    scalars |= {f"eval/s{i:02}/accuracy": i / 100 for i in range(number)}
    assert sorted(events) == sorted((name, value, 3) for name, value in scalars.items())
    first, *table = capsys.readouterr().out.splitlines()
    assert first.startswith("step 3, epoch 0.50: evaluation loss 0.5000, accuracy 0.7500 of 1,200")
    if not number:
        assert table == []
        return
    cells = [line.split() for line in table]
    assert cells[1] == ["source", "comparisons", "pairs", "accuracy", "loss", "margin"]
    shown = [[f"s{i:02}", str(1 + i), f"{1 + i},000"] for i in reversed(range(number))][:20]
    assert [row[:3] for row in cells[3 : 3 + len(shown)]] == shown
    largest = {2: ["0.0100", "1.5000", "-0.1250"], 25: ["0.2400", "24.5000", "-3.0000"]}
    assert cells[3][3:] == largest[number]
    rest = [" ".join(row) for row in cells[3 + len(shown) :] if row]
    assert rest == (["and 5 more in metrics.jsonl"] if number == 25 else [])


def test_other_ranks_print_no_table(make_log, monkeypatch, capsys):
    log, _ = make_log()
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    log.evaluation(3, 0.5, {**RESULT, "sources": make_sources(3)})
    assert capsys.readouterr().out == ""
    assert len(log.lines) == 1  # which a training state saves on any rank


def test_a_log_goes_on_with_the_sources_of_its_lines(make_log):
    log, _ = make_log()
    log.evaluation(3, 0.5, {**RESULT, "sources": make_sources(3)})
    text = read_text(log)
    state = json.loads(json.dumps(log.state()))
    again, _ = make_log(state)
    assert read_text(again) == text
    assert again.lines == log.lines


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(make_log, value):
    log, _ = make_log()
    sources = make_sources(2)
    sources["s01"]["loss"] = value
    log.evaluation(1, 0.5, {**RESULT, "margin": value, "sources": sources})
    line = json.loads(read_text(log), parse_constant=pytest.fail)
    assert line["eval_margin"] is None and line["eval_sources"]["s01"]["loss"] is None
    assert line["eval_sources"]["s00"]["loss"] == 0.5


def test_the_build_of_torch_is_told(tmp_path, monkeypatch):
    """Where pip brings the build for CUDA, the version of the package does not say so."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    write_arguments(TrainingSettings(model_name_or_path="m", output_dir=str(tmp_path)), {}, {}, 8)
    versions = json.loads((tmp_path / "training_args.json").read_text())["versions"]
    assert versions["torch"] == "2.13.0+cu130" and versions["deepspeed"]


def test_only_the_largest_sources_are_shown():
    assert len(source_table(make_sources(20)).rows) == 20
    rows = source_table(make_sources(21)).rows
    assert len(rows) == 21 and rows[-1][0] == "and 1 more in metrics.jsonl"
    assert [row[0] for row in rows[:2]] == ["s20", "s19"]


def smoothed(values):
    """Each value weighs 0.9 of the next one."""
    means = []
    for number in range(1, len(values) + 1):
        weights = 0.9 ** np.arange(number)[::-1]
        means.append(float(weights @ values[:number] / weights.sum()))
    return means


@pytest.mark.parametrize(("trained", "evaluated"), [(40, 4), (1, 1), (0, 1), (3, 0), (0, 0)])
def test_curves_are_the_lines_of_the_metrics(tmp_path, monkeypatch, trained, evaluated):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k))
    )
    generator = np.random.default_rng(0)
    names = ("loss", "accuracy", "margin")
    lines = [
        {"step": 1 + i, "lr": 1e-5 * i, **dict(zip(names, generator.random(3), strict=True))}
        for i in range(trained)
    ]
    evaluations = [
        {"step": 10 * i, **{f"eval_{name}": generator.random() for name in names}}
        for i in range(evaluated)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(lines + evaluations, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "curves.png"]
    assert min(matplotlib.image.imread(tmp_path / "curves.png").shape[:2]) > 700
    (figure,) = figures
    for axes, name in zip(figure.axes, (*names, "lr"), strict=True):
        expected = []
        if trained:
            steps, values = zip(*((line["step"], line[name]) for line in lines), strict=True)
            shown = [values] if name == "lr" else [values, smoothed(values)]
            expected += [(steps, numbers) for numbers in shown]
        if evaluated and name != "lr":
            steps, values = zip(*((e["step"], e[f"eval_{name}"]) for e in evaluations), strict=True)
            expected.append((steps, values))
        for line, (steps, values) in zip(axes.lines, expected, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), steps)
            np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-12)
