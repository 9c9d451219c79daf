import gzip
import json
import math

import pytest

from tests.conftest import ROOT
from utils.benchmarks.layouts import PUBLIC_BENCHMARKS
from utils.benchmarks.scores import LLMBAR
from utils.evaluation.settings import BENCHMARKS as NAMES

SHARED = ROOT.parent / "shared" / "data"


def read(name, rows, tmp_path, source="file"):
    """Rows through a file, as they are published, and through the benchmark's reader."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = file.read_text().splitlines()
    return [PUBLIC_BENCHMARKS[name].read(json.loads(line), source) for line in lines]


def record(comparison, scores, row_id=None):
    line = {"source": comparison.source, "ranks": list(comparison.ranks), "scores": scores}
    return line | ({"id": row_id} if row_id else {})


def sections(name, records):
    """Of an iterator, so that only one pass is possible; the result must be JSON."""
    result = PUBLIC_BENCHMARKS[name].score(iter(records))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["name"] == name
    return result


def user(text):
    return [{"role": "user", "content": text}]


def test_the_command_line_offers_these():
    assert tuple(PUBLIC_BENCHMARKS) == NAMES


# RewardBench


def rewardbench_row(subset, **changes):
    row = {"prompt": "Hi", "chosen": "good", "chosen_model": "m", "rejected": "bad"}
    return row | {"rejected_model": "n", "subset": subset, "id": 30} | changes


def test_rewardbench_reads_its_rows(tmp_path):
    (pair,) = read("rewardbench", [rewardbench_row("mt-bench-med")], tmp_path)
    assert pair.prompt == user("Hi") and pair.responses == ["good", "bad"]
    assert pair.ranks == [0, 1] and pair.source == "mt-bench-med"


def test_rewardbench_reads_a_prior_set_by_the_name_of_its_file(tmp_path):
    turns = [*user("Hi"), {"role": "assistant", "content": "Yes?"}, *user("Help")]
    row = rewardbench_row("harmless", prompt=turns)
    for source in ("data/anthropic_hhh-00000-of-00001", "anthropic_hhh"):
        (pair,) = read("rewardbench", [row], tmp_path, source)
        assert pair.source == "anthropic_hhh"
        assert pair.prompt == turns and pair.responses == ["good", "bad"]


# RewardBench 2


def rewardbench2_row(subset, row_id="12", chosen=("a",), rejected=("b", "c", "d")):
    row = {"id": row_id, "prompt": "Hi", "chosen": list(chosen), "rejected": list(rejected)}
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected)}
    return row | counts | {"total_completions": 4, "models": ["m"], "subset": subset}


def test_rewardbench2_takes_the_best_of_four_and_shares_ties(tmp_path):
    subsets = ["Factuality", "Factuality", "Precise IF", "Math", "Math", "Safety", "Focus"]
    four = [
        [2.0, 1.0, 0.0, 1.0],  # right
        [1.0, 1.0, 0.0, 1.0],  # one of three: a third
        [0.0, 0.5, 0.0, 0.0],  # wrong
        [3.0, 3.0, 2.0, 1.0],  # one of two: half
        [0.0, 0.0, 0.0, 0.0],  # one of four: a quarter
        [1.0, 0.0, 0.0, 0.0],
        [-1.0, -2.0, -3.0, -0.5],
    ]
    comparisons = read("rewardbench2", [rewardbench2_row(s) for s in subsets], tmp_path)
    assert comparisons[0].prompt == user("Hi") and comparisons[0].ranks == [0, 1, 1, 1]
    assert comparisons[0].responses == ["a", "b", "c", "d"]
    result = sections("rewardbench2", map(record, comparisons, four))
    expected = {"Factuality": (1 + 1 / 3) / 2, "Precise IF": 0, "Math": (1 / 2 + 1 / 4) / 2}
    expected |= {"Safety": 1, "Focus": 0, "Ties": None}
    assert result["sections"] == pytest.approx(expected)
    assert result["overall"] is None and result["incomplete"]["Ties"] == [0, 102]
    assert set(result["ties"].values()) == {None}


def test_rewardbench2_ties(tmp_path):
    rows = [
        rewardbench2_row("Ties", "tied:3", "abc", "xy"),
        rewardbench2_row("Ties", "ref:3", "a", "xyz"),
    ]
    comparisons = read("rewardbench2", rows, tmp_path)
    assert comparisons[0].ranks == [0, 0, 0, 1, 1]
    # The right answers are 1 apart and 2 above the wrong ones, the reference's is 3 above.
    scores = [[5.0, 4.0, 4.5, 2.0, 0.0], [3.0, 0.0, -1.0, -1.0]]
    ids = [row["id"] for row in rows]
    result = sections("rewardbench2", map(record, comparisons, scores, ids))
    expected = 0.3 * 1 + 0.3 * 1 + 0.2 * 1 + 0.2 * 1 + 0.01 * math.tanh(2 / 1 - 1)
    assert result["sections"]["Ties"] == pytest.approx(expected)


# RM-Bench


def rm_bench_row(domain, **changes):
    row = {"id": f"{domain}/0", "prompt": "Hi", "chosen": ["c", "cc", "**cc**"]}
    return row | {"rejected": ["r", "rr", "**rr**"], "domain": domain} | changes


def test_rm_bench_matrix(tmp_path):
    (comparison,) = read("rm-bench", [rm_bench_row("chat")], tmp_path)
    assert comparison.prompt == user("Hi") and comparison.ranks == [0, 0, 0, 1, 1, 1]
    assert comparison.responses == ["c", "cc", "**cc**", "r", "rr", "**rr**"]
    # A model that likes Markdown: every fancier answer wins, and equal style is a tie: no success.
    row = record(comparison, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    result = sections("rm-bench", [row])
    assert result["difficulties"]["Chat"] == {"easy": 1.0, "normal": 0.0, "hard": 0.0}
    # Only the plain right answer beats the fanciest wrong one: one of the three hard pairs.
    row = record(comparison, [3.0, 0.0, 0.0, 4.0, 4.0, 2.0])
    expected = {"easy": 0.0, "normal": 0.0, "hard": 1 / 3}
    assert sections("rm-bench", [row])["difficulties"]["Chat"] == pytest.approx(expected)


def test_rm_bench_reads_the_file_of_a_domain(tmp_path):
    row = rm_bench_row("math")
    del row["domain"]
    (comparison,) = read("rm-bench", [row], tmp_path, "data/safety-refuse_filtered")
    assert comparison.source == "safety-refuse"


# JudgeBench


def judgebench_row(source, label):
    row = {"pair_id": "81ec57f2", "original_id": "10646", "source": source, "question": "Why?"}
    return row | {"response_model": "m", "response_A": "A.", "response_B": "B.", "label": label}


def test_judgebench_sections_follow_the_source(tmp_path):
    rows = [
        judgebench_row("mmlu-pro-law", "A>B"),
        judgebench_row("mmlu-pro-computer science", "B>A"),
        judgebench_row("livebench-reasoning", "A>B"),
        judgebench_row("livebench-math", "B>A"),
        judgebench_row("livecodebench", "A>B"),
        judgebench_row("livecodebench", "A>B"),
    ]
    pairs = read("judgebench", rows, tmp_path)
    assert pairs[0].prompt == user("Why?") and pairs[0].responses == ["A.", "B."]
    assert pairs[1].responses == ["B.", "A."] and pairs[1].ranks == [0, 1]
    scores = [[1.0, 0.0], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    result = sections("judgebench", map(record, pairs, scores))
    expected = {"Knowledge": 1 / 2, "Reasoning": 0, "Math": 1, "Coding": 1 / 2}
    assert result["sections"] == expected
    assert result["overall"] == 3 / 6  # over all pairs
    assert result["incomplete"]["Knowledge"] == [2, 154]
    named = {"prompt": "Why?", "chosen": "B.", "rejected": "A.", "subset": "mmlu-pro-law"}
    (pair,) = read("judgebench", [named], tmp_path)
    assert (pair.prompt, pair.responses, pair.source) == (
        user("Why?"),
        ["B.", "A."],
        named["subset"],
    )


# LLMBar


def llmbar_row(label):
    return {"input": "Sort.", "output_1": "one", "output_2": "two", "label": label}


@pytest.mark.parametrize(
    ("source", "subset"),
    [
        ("Natural/dataset", "llmbar-natural"),
        ("Adversarial/Neighbor/dataset", "llmbar-adversarial-neighbor"),
        ("Dataset/LLMBar/Adversarial/GPTInst/dataset", "llmbar-adversarial-gptinst"),
        ("Adversarial_GPTOut", "llmbar-adversarial-gptout"),
        ("llmbar-adver-manual", "llmbar-adversarial-manual"),
        ("CaseStudy/Base_9/dataset", "CaseStudy/Base_9/dataset"),
    ],
)
def test_llmbar_subset_is_the_folder_or_a_column(source, subset, tmp_path):
    first, second = read("llmbar", [llmbar_row(1), llmbar_row(2)], tmp_path, source)
    assert first.prompt == user("Sort.") and first.source == subset
    assert first.responses == ["one", "two"] and second.responses == ["two", "one"]
    named = {"prompt": "Sort.", "chosen": "two", "rejected": "one", "subset": source}
    (pair,) = read("llmbar", [named], tmp_path, "anything")
    assert (pair.responses, pair.source) == (["two", "one"], subset)


# What is no row of a benchmark


BAD_ROWS = [
    ("rewardbench", rewardbench_row(None), "subset is None"),
    ("rewardbench", rewardbench_row("hep-go", chosen=None), "None"),
    ("rewardbench", rewardbench_row("hep-go", prompt=None), "prompt"),
    ("rewardbench2", rewardbench2_row("Math") | {"chosen": []}, "chosen is"),
    ("rewardbench2", rewardbench2_row("Math") | {"rejected": "b"}, "rejected is 'b'"),
    ("rewardbench2", rewardbench2_row("Ties", "12"), "ref:N or tied:N"),
    ("rewardbench2", rewardbench2_row("Ties", None), "id is None"),
    ("rm-bench", rm_bench_row("chat", chosen=["a", "b"]), "2 chosen, 3 rejected"),
    ("rm-bench", rm_bench_row("chat", rejected=["a", "b", None]), "None"),
    ("rm-bench", rm_bench_row(7), "domain is 7"),
    ("judgebench", judgebench_row("livecodebench", "A=B"), "A>B or B>A"),
    ("judgebench", judgebench_row(None, "A>B"), "source is None"),
    ("llmbar", llmbar_row(0), "label is 0"),
    ("llmbar", llmbar_row("1"), "label is '1'"),
    ("llmbar", llmbar_row(1) | {"output_2": None}, "None"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS)
def test_bad_rows_are_named(name, row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(name, [row], tmp_path)


def test_llmbar_leaves_the_answers_of_llms_alone(tmp_path):
    with pytest.raises(ValueError, match="evaluators"):
        read("llmbar", [llmbar_row(1)], tmp_path, "Natural/evaluators/GPT-4/CoT/result")


# Real rows


def real_rows(name):
    if not (SHARED / name).exists():
        pytest.skip(f"no {name}")
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        return [json.loads(row) for row in file]


def test_all_of_llmbar():
    read_row = PUBLIC_BENCHMARKS["llmbar"].read
    comparisons = [read_row(row, "llmbar") for row in real_rows("llmbar.jsonl.gz")]
    longer = [record(c, [float(len(text)) for text in c.responses]) for c in comparisons]
    result = sections("llmbar", longer)
    assert result["incomplete"] == {} and result["unknown"] == 0
    assert {s: row["comparisons"] for s, row in result["subsets"].items()} == LLMBAR
    accuracies = [row["accuracy"] for row in result["subsets"].values()]
    assert result["overall"] == pytest.approx(sum(accuracies) / 5)


def test_all_of_judgebench():
    rows = real_rows("judgebench_gpt4o.jsonl.gz")
    comparisons = [PUBLIC_BENCHMARKS["judgebench"].read(row, "judgebench") for row in rows]
    assert [c.responses for c in comparisons] == [[r["chosen"], r["rejected"]] for r in rows]
    longer = [record(c, [float(len(text)) for text in c.responses]) for c in comparisons]
    result = sections("judgebench", longer)
    assert result["incomplete"] == {} and result["unknown"] == 0
    wins = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert result["overall"] == pytest.approx(wins / 350)
