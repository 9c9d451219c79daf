import copy
import json
import os
import re

import numpy as np
import pytest

from utils.evaluation.metrics import Tallies
from utils.evaluation.report import (
    benchmark_table,
    find_warnings,
    print_results,
    print_scores,
    write_evaluation,
)
from utils.output.tables import print_table, shorten_names


def make_results(sources, k=2, rows=120, votes=False):
    """Metrics of random comparisons; the scores are centred, calibrated and know no length."""
    generator = np.random.default_rng(0)
    tallies = Tallies("soft" if votes else "hard")
    for number, source in enumerate(sources):
        records = []
        for row in range(rows):
            quality = generator.normal(size=k)
            # The difference of two Gumbel variables is logistic, as Bradley-Terry has it.
            order = (-quality - generator.gumbel(size=k)).argsort().argsort().tolist()
            record = {
                "index": number * rows + row,
                "source": source,
                "prompt": int(generator.integers(2**60)),
                "ranks": order,
                "scores": quality.tolist(),
                "lengths": generator.integers(1, 300, k).tolist(),
            }
            records.append(record | ({"votes": [1.0] * k} if votes else {}))
        tallies.add(records)
    return tallies.results()


def make_report(results, **changes):
    report = {
        "model": "output/`a`|b",
        "data": ["data/a|b.jsonl", "c.jsonl"],
        "settings": {"max_seq_len": 512},
        "label": "hard",
        "rows": {"read": 100, "scored": 95, "dropped": {"empty answer": 5}},
        "results": results,
        "benchmark": None,
    }
    return report | changes


BENCHMARK = {
    "name": "rm-bench",
    "sections": {"Chat": 0.75, "Code": None},
    "overall": None,
    "difficulties": {
        "Chat": {"easy": 0.9, "normal": 0.7, "hard": 0.65},
        "Code": dict.fromkeys(("easy", "normal", "hard")),
        "overall": dict.fromkeys(("easy", "normal", "hard")),
    },
    "incomplete": {"mt-bench-easy": [10, 28], "code": [0, None]},
    "unknown": 7,
}
TITLES = ["Accuracy", "Calibration", "Length of the answers", "Scores"]


@pytest.mark.parametrize(
    "sources",
    [
        ["hh"],
        ["a", "[bold]b[/bold] | c", "d" * 90],
        [f"an-organisation/a-data-set/part-{i}/with-a-long-end" for i in range(30)],
    ],
)
@pytest.mark.parametrize("k", [2, 5])
def test_results_fit_80_columns(capsys, monkeypatch, sources, k):
    monkeypatch.setenv("COLUMNS", "80")
    results = make_results(sources, k=k, rows=20)
    list(results.values())[-1].update(pairs=12_345_678, margin=-1234.5)
    print_results(results)
    printed = capsys.readouterr().out
    printed.encode("ascii")
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in printed
    expected = [*TITLES[:1], *["Ranking of more than two answers"] * (k > 2), *TITLES[1:]]
    assert [line for line in lines if line in expected] == expected
    # Every row of each table is there, with its last figure whole.
    for metrics in results.values():
        assert any(line.endswith(f" {metrics['loss']:.3f}") for line in lines)
        assert any(line.endswith(f"{metrics['score_percentiles']['95']:.3f}") for line in lines)


def test_figures_in_the_table_are_those_of_the_metrics(capsys):
    results = make_results(["one", "two"], votes=True)
    print_results(results)
    printed = capsys.readouterr().out
    for name, one in results.items():
        rows = [line.split()[1:] for line in printed.splitlines() if line.split()[:1] == [name]]
        length, percentiles = one["length"], one["score_percentiles"]
        interval = f"{one['accuracy_low']:.3f}-{one['accuracy_high']:.3f}"
        assert rows[0][:4] == [f"{one['pairs']}", f"{one['accuracy']:.3f}", interval, "0"]
        assert rows[1] == [
            *(f"{one[key]:.3f}" for key in ("brier", "ece")),
            f"{one['temperature']:.3g}",
            f"{one['soft_loss']:.3f}",
        ]
        keys = ("longer_accuracy", "shorter_accuracy", "prefers_longer", "correlation")
        assert rows[2][:4] == [f"{length[key]:.3f}" for key in keys]
        assert rows[3][0] == f"{one['score_mean']:.3f}"
        assert rows[3][2:] == [f"{percentiles[key]:.3f}" for key in ("5", "50", "95")]


def test_of_unranked_answers_only_the_scores_are_printed(capsys):
    results = make_results(["s"])
    unranked = Tallies()
    record = {"index": 0, "source": "s", "prompt": 1, "ranks": [0, 0], "scores": [1.0, 2.5]}
    unranked.add([record | {"lengths": [3, 4]}])
    print_results(unranked.results())
    printed = capsys.readouterr().out
    assert "Accuracy" not in printed and "1.750" in printed
    print_results(results | unranked.results() | {"all": results["s"]})
    assert "Accuracy" in capsys.readouterr().out


def test_print_benchmark(capsys):
    print_table(benchmark_table(BENCHMARK))
    printed = capsys.readouterr().out
    assert re.search(r"Chat +0.750 +0.900 +0.700 +0.650", printed)
    assert re.search(r"overall +- +- +- +-", printed)
    assert "not all of it: 2 subsets" in printed
    print_table(
        benchmark_table({"name": "x", "sections": {"A": 1.0}, "overall": 0.5, "incomplete": {}})
    )
    printed = capsys.readouterr().out
    assert re.search(r"A +1.000\n", printed) and re.search(r"overall +0.500\n", printed)
    assert "not all" not in printed


def test_print_scores_keeps_every_letter(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    answers = [
        "[bold]markup[/bold] [red]",
        "z" * 300,
        "氷河は氷の塊である。" * 15,
        "line one\nline two",
        *(f"answer {i}" for i in range(12)),
    ]
    labelled = [(f"[{i}]", answer, i / 3 - 1000) for i, answer in enumerate(answers)]
    print_scores("A [green]prompt[/green]\nof two lines", labelled)
    printed = capsys.readouterr().out
    squeezed = re.sub(r"\s", "", printed)
    # Folded lines of the first ones follow each other: nothing stands between.
    assert "A[green]prompt[/green]oftwolines" in squeezed
    assert printed.count("z") == 300
    for letter in "氷河塊":
        assert printed.count(letter) == answers[2].count(letter)
    for label, answer, score in labelled:
        assert label in printed and f"{score:.4f}" in printed
        if len(answer) < 30:
            assert all(line in printed for line in answer.splitlines())
    wide = sum(printed.count(letter) for letter in set(answers[2]))
    assert wide == len(answers[2])
    assert all(
        len(line) + sum(ord(letter) > 0x2E80 for letter in line) <= 80
        for line in printed.splitlines()
    )


@pytest.fixture(scope="module")
def sound_metrics():
    return make_results(["a"], rows=3000)["a"]


def test_sound_results_raise_no_warning(sound_metrics):
    assert find_warnings({"a": sound_metrics}) == []


WARNINGS = [
    # A figure on the side that is sound, one that is not, what the warning says.
    ({"pairs": 100}, {"pairs": 99}, "Fewer than 100 pairs"),
    (
        {"accuracy_low": 0.501, "accuracy_high": 0.6},
        {"accuracy_low": 0.5, "accuracy_high": 0.6},
        "includes 0.5",
    ),
    (
        {"accuracy_low": 0.6, "accuracy_high": 0.7},
        {"accuracy_low": 0.4, "accuracy_high": 0.49},
        "wrong way round",
    ),
    ({"pairs": 1000, "ties": 50}, {"pairs": 1000, "ties": 51}, "More than 5 %"),
    ({"temperature": 2.0}, {"temperature": 2.01}, "temperature is outside"),
    ({"temperature": None}, {"temperature": 0.49}, "temperature is outside"),
    ({"score_mean": 0, "score_std": 0.01}, {"score_std": 0.0099}, "constant or saturated"),
    (
        {"score_percentiles": {"25": 1.0, "75": 1.1}},
        {"score_percentiles": {"25": 1.0, "75": 1.0}},
        "constant or saturated",
    ),
    ({"score_mean": 1.0, "score_std": 0.1}, {"score_mean": -1.1, "score_std": 0.5}, "not centred"),
    ({"score_mean": 4.0, "score_std": 2.0}, {"score_mean": 4.0, "score_std": 1.9}, "not centred"),
    (
        {"length": {"prefers_longer": 0.7, "shorter_accuracy": 0.4}},
        {"length": {"prefers_longer": 0.71, "shorter_accuracy": 0.49}},
        "the longer answer scores higher",
    ),
    (
        {"length": {"prefers_longer": 0.71, "shorter_accuracy": 0.5}},
        {"length": {"prefers_longer": 0.29, "longer_accuracy": 0.49}},
        "the shorter answer scores higher",
    ),
    (
        {"length": {"longer_pairs": 60, "shorter_pairs": 40, "longer_accuracy": 0.9}},
        {"length": {"longer_pairs": 90, "shorter_pairs": 10, "longer_accuracy": 0.9}},
        "hardly better than the rule",
    ),
]


@pytest.mark.parametrize(("sound", "suspicious", "text"), WARNINGS)
def test_warnings_stand_at_their_thresholds(sound_metrics, sound, suspicious, text):
    def change(metrics, changes):
        for name, value in changes.items():
            if isinstance(value, dict):
                metrics[name].update(value)
            else:
                metrics[name] = value

    results = {name: copy.deepcopy(sound_metrics) for name in ("good", "bad", "all")}
    change(results["good"], sound)
    change(results["bad"], suspicious)
    found = [warning for warning in find_warnings(results) if text in warning]
    assert len(found) == 1
    assert "bad (" in found[0]
    assert "good (" not in found[0] and "all (" not in found[0]


def test_warnings_name_all_first_and_only_some():
    results = make_results([f"s{i}" for i in range(6)], rows=10)
    (warning,) = (w for w in find_warnings(results, most=3) if w.startswith("Fewer than 100"))
    assert warning.endswith(": all (60), s0 (10), s1 (10) and 4 more")


def test_report(tmp_path):
    report = make_report(make_results(["a", "b|c"], k=3), benchmark=BENCHMARK)
    report["rows"]["dropped"]["too long"] = 6
    written = write_evaluation(tmp_path / "new" / "folder", report)
    folder = tmp_path / "new" / "folder"
    assert sorted(written) == sorted(folder.iterdir())
    assert json.loads((folder / "report.json").read_text()) == report
    text = (folder / "report.md").read_text()
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert links == ["scores.png", "calibration.png", "length.png", "sources.png"]
    assert all((folder / link).is_file() for link in links)
    for part in (
        "`output/'a'\\|b`",
        "`data/a\\|b.jsonl`, `c.jsonl`",
        "100 read, 95 scored, 5 dropped (empty answer), 6 dropped (too long)",
        "More than 10 % of the rows were dropped: 11 of 100",
        "`mt-bench-easy` has 10 scored comparisons instead of 28",
        "`code` has 0 scored comparisons\n",
        "7 comparisons are in no subset",
        "| `Chat` | 0.750 | 0.900 | 0.700 | 0.650 |",
        '"max_seq_len": 512',
    ):
        assert part in text
    # In each table all rows have as many cells as the header.
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
        if table.startswith("| source"):
            assert table.count("\n") == 2 + len(report["results"])


def test_report_without_pairs_has_no_pictures(tmp_path):
    tallies = Tallies()
    record = {"index": 0, "source": "s", "prompt": 1, "ranks": [0, 0], "scores": [1.0, 2.5]}
    tallies.add([record | {"lengths": [3, 4]}])
    write_evaluation(tmp_path, make_report(tallies.results()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "png" not in (tmp_path / "report.md").read_text()


def test_a_cut_report_leaves_whole_files(tmp_path, monkeypatch):
    old = make_report(make_results(["old"]))
    write_evaluation(tmp_path, old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = make_report(make_results(["new"], k=3))
    replace = os.replace

    class Kill(BaseException):
        pass

    for moment in (0, 4, 5):  # before the first picture, report.json, report.md
        calls = iter(range(moment))

        def cut(source, target, calls=calls):
            if next(calls, None) is None:
                raise Kill
            replace(source, target)

        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(Kill):
            write_evaluation(tmp_path, new)
        changed = [
            name for name, content in before.items() if (tmp_path / name).read_bytes() != content
        ]
        assert len(changed) == moment
        assert json.loads((tmp_path / "report.json").read_text()) in (old, new)
    monkeypatch.setattr(os, "replace", replace)
    write_evaluation(tmp_path, new)
    assert not list(tmp_path.glob("*.partial"))


def test_json_has_no_nan(tmp_path):
    report = copy.deepcopy(make_report(make_results(["a"])))
    report["results"]["a"]["margin"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(tmp_path, report)
    assert not (tmp_path / "report.json").exists()


def test_shortened_names_stay_different():
    names = ["a" * 50, "a" * 25 + "b" + "a" * 24, "short", "x/" + "y" * 40]
    short = shorten_names(names, 20)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert short["short"] == "short"
    assert len(short[names[3]]) == 20
    assert short[names[3]].startswith("x/") and "..." in short[names[3]]
