import json
import math

import numpy as np
import pytest
from scipy import stats

from tests.conftest import write_jsonl
from utils.evaluation.compare import (
    compare_evaluations,
    print_comparison,
    verdict,
    write_comparison,
)
from utils.settings import InputError


def make_records(seed, number=60, skill=1.0):
    """Rows that are the same for every seed, scores that are not."""
    rows, scores = np.random.default_rng(0), np.random.default_rng(seed)
    records = []
    for index in range(number):
        k = int(rows.integers(2, 5))
        ranks = rows.integers(0, 3, k).tolist()
        source = "ab"[index % 2]
        if rows.random() < 0.1:
            records.append(
                {"index": index, "source": source, "ranks": [], "scores": [], "dropped": "empty"}
            )
            continue
        values = (scores.integers(-3, 4, k) / 2 - skill * np.array(ranks)).tolist()
        if scores.random() < 0.2:
            values[int(scores.integers(k))] = None
        record = {
            "index": index,
            "source": source,
            # Of 64 bits, and prompts come back.
            "prompt": 2**64 - 1 - int(rows.integers(number // 3)),
            "ranks": ranks,
            "scores": values,
            "lengths": [None if value is None else 5 for value in values],
        }
        if scores.random() < 0.1:
            record["copies"] = [0, 0, *range(2, k)]
        records.append(record)
    return records


def write(folder, records):
    folder.mkdir()
    write_jsonl(folder / "scores.jsonl", records)
    return folder


def slow_pairs(record):
    """Pairs by position, those of identical answers left out."""
    if "dropped" in record:
        return []
    copies = record.get("copies", list(range(len(record["ranks"]))))
    k = range(len(copies))
    ranks = record["ranks"]
    return [(i, j) for i in k for j in k if ranks[i] < ranks[j] and copies[i] != copies[j]]


def slow_binomial(successes, trials):
    """The two-sided exact test at 1/2: all outcomes at most as likely as the one seen."""
    chance = [math.comb(trials, i) for i in range(trials + 1)]
    return sum(c for c in chance if c <= chance[successes]) / 2**trials


def slow_summary(records_a, records_b):
    cells = {(x, y): 0 for x in (True, False) for y in (True, False)}
    right = {"a": 0.0, "b": 0.0}
    agreed, left_out = 0, 0
    by_prompt = {}
    for a, b in zip(records_a, records_b, strict=True):
        wanted = set(slow_pairs(a)) | set(slow_pairs(b))
        for i, j in wanted:
            values = [r["scores"][n] if r["scores"] else None for r in (a, b) for n in (i, j)]
            if None in values or (i, j) not in slow_pairs(a) or (i, j) not in slow_pairs(b):
                left_out += 1
                continue
            points = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in (values[:2], values[2:])]
            right["a"] += points[0]
            right["b"] += points[1]
            cells[points[0] == 1, points[1] == 1] += 1
            agreed += points[0] == points[1]
            by_prompt.setdefault(a["prompt"], []).append(points[1] - points[0])
    pairs = sum(cells.values())
    mean = (right["b"] - right["a"]) / pairs
    count = len(by_prompt)
    variance = sum(sum(gain - mean for gain in gains) ** 2 for gains in by_prompt.values())
    deviation = math.sqrt(variance * count / (count - 1)) / pairs
    discordant = cells[True, False] + cells[False, True]
    return {
        "prompts": count,
        "pairs": pairs,
        "left_out": left_out,
        "accuracy_a": right["a"] / pairs,
        "accuracy_b": right["b"] / pairs,
        "difference": mean,
        "deviation": deviation,
        "both_right": cells[True, True],
        "only_a": cells[True, False],
        "only_b": cells[False, True],
        "neither_right": cells[False, False],
        "mcnemar_p": slow_binomial(cells[True, False], discordant),
        "agreement": agreed / pairs,
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_slow_loop(tmp_path, seed):
    records_a, records_b = make_records(2 * seed + 1), make_records(2 * seed + 2, skill=0.3)
    result = compare_evaluations(write(tmp_path / "a", records_a), write(tmp_path / "b", records_b))
    assert list(result["results"]) == ["a", "b", "all"]
    for group, found in result["results"].items():
        expected = slow_summary(
            *(
                [r for r in records if group in ("all", r["source"])]
                for records in (records_a, records_b)
            )
        )
        deviation = expected.pop("deviation")
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        reach = stats.t.ppf(0.975, expected["prompts"] - 1) * deviation
        assert found["difference_high"] - found["difference_low"] == pytest.approx(2 * reach)
        middle = (found["difference_high"] + found["difference_low"]) / 2
        assert middle == pytest.approx(found["difference"])
    assert result["dropped"] == sum("dropped" in record for record in records_a) > 0
    json.dumps(result, allow_nan=False)


def test_identical_models_do_not_differ(tmp_path):
    records = make_records(1)
    result = compare_evaluations(write(tmp_path / "a", records), write(tmp_path / "b", records))
    for one in result["results"].values():
        assert one["difference"] == one["difference_low"] == one["difference_high"] == 0
        assert one["mcnemar_p"] == one["agreement"] == 1
        assert one["accuracy_a"] == one["accuracy_b"]
        assert one["only_a"] == one["only_b"] == 0
    assert verdict(result).startswith("No difference that these data can show")


def test_swapping_the_models_turns_the_difference_round(tmp_path):
    a, b = write(tmp_path / "a", make_records(1)), write(tmp_path / "b", make_records(2, skill=0))
    there, back = (
        compare_evaluations(a, b)["results"]["all"],
        compare_evaluations(b, a)["results"]["all"],
    )
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["difference_low"] == pytest.approx(-back["difference_high"])
    assert (there["only_a"], there["mcnemar_p"]) == (back["only_b"], back["mcnemar_p"])


def pairs_with(outcomes, prompts=None):
    """A record a pair; True: the better answer scores higher."""
    prompts = prompts or range(len(outcomes))
    return [
        {"index": i, "source": "s", "prompt": p, "ranks": [0, 1], "scores": [float(right), 0.5]}
        for i, (right, p) in enumerate(zip(outcomes, prompts, strict=True))
    ]


def test_the_interval_knows_of_repeated_prompts(tmp_path):
    outcomes = np.random.default_rng(0).random((2, 50)) < [[0.5], [0.7]]
    one = [pairs_with(row.tolist()) for row in outcomes]
    four = [pairs_with(row.tolist() * 4, [*range(50)] * 4) for row in outcomes]
    names = iter("abcd")
    once, repeated = (
        compare_evaluations(*(write(tmp_path / next(names), records) for records in both))[
            "results"
        ]["s"]
        for both in (one, four)
    )
    assert repeated["difference_low"] == pytest.approx(once["difference_low"])
    assert repeated["mcnemar_p"] < once["mcnemar_p"]


@pytest.mark.parametrize(
    ("right_a", "right_b", "begins"),
    [
        ([False] * 40 + [True] * 60, [True] * 95 + [False] * 5, "B is better: B - A = +0.350 ["),
        ([True] * 95 + [False] * 5, [False] * 40 + [True] * 60, "A is better: B - A = -0.350 ["),
        ([False] * 3, [True] * 3, "No difference that these data can show: B - A = +1.000 ["),
        ([False] * 50, [True] * 50, "B is better: B - A = +1.000 [+1.000, +1.000]"),
        ([True], [False], "No difference that these data can show: B - A = -1.000, McNemar p = 1"),
    ],
)
def test_verdict(tmp_path, right_a, right_b, begins):
    folders = write(tmp_path / "a", pairs_with(right_a)), write(tmp_path / "b", pairs_with(right_b))
    assert verdict(compare_evaluations(*folders)).startswith(begins)


def test_no_common_pair(tmp_path):
    a, b = pairs_with([True]), pairs_with([True])
    a[0]["scores"][0] = None
    result = compare_evaluations(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert result["results"]["s"]["left_out"] == 1
    assert result["results"]["s"]["accuracy_a"] is None
    assert verdict(result) == "No pair was judged by both models."
    print_comparison(result)
    write_comparison(tmp_path / "out", result)


def test_a_row_that_one_model_dropped_is_left_out(tmp_path):
    a, b = pairs_with([True, True]), pairs_with([True, False])
    a[1] = {"index": 1, "source": "s", "ranks": [], "scores": [], "dropped": "too long"}
    result = compare_evaluations(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert result["dropped"] == 1
    assert (result["results"]["s"]["pairs"], result["results"]["s"]["left_out"]) == (1, 1)


@pytest.mark.parametrize(("name", "value"), [("index", 7), ("source", "other"), ("ranks", [1, 0])])
def test_different_rows_are_an_error(tmp_path, name, value):
    a, b = pairs_with([True] * 3), pairs_with([True] * 3)
    b[1][name] = value
    folders = write(tmp_path / "a", a), write(tmp_path / "b", b)
    with pytest.raises(InputError, match=f"line 2 of scores.jsonl: {name} is .*same --data_path"):
        compare_evaluations(*folders)


def test_files_that_cannot_be_compared(tmp_path):
    whole = write(tmp_path / "whole", pairs_with([True] * 3))
    short = write(tmp_path / "short", pairs_with([True] * 2))
    for folders in ((whole, short), (short, whole)):
        with pytest.raises(InputError, match=r"short: scores.jsonl ends after 2 lines.*--resume"):
            compare_evaluations(*folders)
    with pytest.raises(InputError, match=r"nowhere.scores.jsonl is missing: .*--output_dir"):
        compare_evaluations(whole, tmp_path / "nowhere")
    with (short / "scores.jsonl").open("a") as file:
        file.write('{"index": 2, "sou')
    with pytest.raises(InputError, match="a line is not JSON"):
        compare_evaluations(whole, short)
    empty = write(tmp_path / "empty", [])
    with pytest.raises(InputError, match="has no line"):
        compare_evaluations(empty, empty)


def test_what_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    records_a, records_b = make_records(1), make_records(2, skill=0.3)
    for record in (*records_a, *records_b):
        record["source"] = f"a long [bold]name[/bold] of a source | {record['source']}" * 2
    result = compare_evaluations(write(tmp_path / "a", records_a), write(tmp_path / "b", records_b))
    print_comparison(result)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    printed.encode("ascii")
    assert " ".join(verdict(result).split()) in " ".join(printed.split())
    assert "McNemar's p does not" in " ".join(printed.split())
    write_comparison(tmp_path / "out", result)
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    text = (tmp_path / "out" / "compare.md").read_text()
    assert verdict(result) in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {8}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.json",
        "compare.md",
    ]
