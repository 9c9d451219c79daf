"""The benchmarks run; what they measure is for people to read."""

import json

import pytest

from benchmarks.accuracy_over_time import accuracy_at, tabulate
from tests.conftest import run_command


def test_throughput_runs_the_layouts_on_the_same_comparisons(tmp_path):
    output = tmp_path / "figures.json"
    shape = ("--hidden_size", 64, "--num_layers", 1, "--batch_size", 3, "--max_seq_len", 256)
    done = run_command(
        *("python", "benchmarks/throughput.py", *shape, "--rounds", 2, "--output", output)
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    for number, results in enumerate(figures["rounds"]):
        maximum, longest, kept, packed = results.values()
        assert {result["comparisons"] for result in results.values()} == {3}
        assert maximum["tokens"] == 2 * 3 * 256
        assert maximum["tokens"] > longest["tokens"] > packed["tokens"] > 0, number
        assert kept["tokens"] == longest["tokens"]
        assert maximum["model_flops"] > packed["model_flops"] > 0
    for name, line in figures["summary"].items():
        assert f"| {name} | {line['seconds_per_step']:.2f} |" in done.stdout
        assert line["peak_gib"] > line["step_gib"] > 0
    packed = figures["summary"]["packed"]
    assert packed["packed_is_faster_by"] == 1
    seconds = [results["packed"]["seconds"] for results in figures["rounds"]]
    assert packed["seconds_per_step"] == pytest.approx(sum(seconds) / 2)
    assert all(share > 0 for share in figures["packed"].values())


def test_accuracy_at_a_time_is_that_of_the_evaluation_before():
    curve = [{"seconds": 0.0, "accuracy": 0.5}, {"seconds": 2.0, "accuracy": 0.6}]
    assert [accuracy_at(curve, seconds) for seconds in (0, 1.9, 2, 99)] == [0.5, 0.5, 0.6, 0.6]


def test_table_of_accuracies_has_means_and_intervals():
    results = [
        {"trainer": trainer, "seed": seed, "step": i, "seconds": seconds * i, "accuracy": accuracy}
        for trainer, seconds, last in (("packed", 10.0, 0.8), ("TRL", 90.0, 0.7))
        for seed in (1, 2, 3)
        for i, accuracy in enumerate((0.5, last + seed / 100))
    ]
    lines = tabulate(results).splitlines()
    # Seeds at 0.81, 0.82, 0.83: mean 0.82, half an interval 4.30 * 0.01 / sqrt(3).
    end = "| packed, after one epoch | 10 | 0.8200 ± 0.0248 | 0.8100, 0.8200, 0.8300 |"
    assert lines[2] == end
    assert lines[3].startswith("| TRL, after one epoch | 90 | 0.7200 ± 0.0248 |")
    assert "| TRL, after 100% of packed's time | 10 | 0.5000 ± 0.0000 |" in tabulate(results)
    assert lines[-1] == "TRL's best evaluation, mean of the seeds: 0.7200"
