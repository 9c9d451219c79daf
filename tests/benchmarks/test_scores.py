import json
import math
import random

import pytest

from utils.benchmarks.layouts import PUBLIC_BENCHMARKS
from utils.benchmarks.scores import REWARDBENCH

SIX = (0, 0, 0, 1, 1, 1)


def line(source, *scores, ranks=(0, 1)):
    return {"source": source, "ranks": list(ranks), "scores": list(scores)}


def right(source, number=1):
    return [line(source, 1.0, 0.0)] * number


def wrong(source, number=1):
    return [line(source, 0.0, 1.0)] * number


def sections(name, records):
    """Of an iterator, so that only one pass is possible; the result must be JSON."""
    result = PUBLIC_BENCHMARKS[name].score(iter(records))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["name"] == name
    return result


@pytest.mark.parametrize("name", PUBLIC_BENCHMARKS)
def test_nothing_is_no_score(name):
    result = sections(name, [])
    assert result["overall"] is None and set(result["sections"].values()) == {None}
    assert result["subsets"] == {} and result["unknown"] == 0
    assert all(found == 0 and size for found, size in result["incomplete"].values())


def all_subsets_right():
    return [r for table in REWARDBENCH.values() for subset in table for r in right(subset)]


def test_rewardbench_weighs_subsets_by_their_prompts_and_math_like_code():
    records = [
        *right("alpacaeval-easy"),
        # Half of two: their code needs a strictly higher score.
        *right("alpacaeval-length"),
        line("alpacaeval-length", 2.5, 2.5),
        *wrong("alpacaeval-hard"),
        *right("mt-bench-easy"),
        *wrong("mt-bench-med"),
        *wrong("mt-bench-hard"),
        *right("llmbar-natural"),
        *right("llmbar-adver-neighbor", 3),
        *wrong("llmbar-adver-neighbor"),
        *wrong("llmbar-adver-GPTInst"),
        *right("llmbar-adver-GPTOut"),
        *right("llmbar-adver-manual"),
        *right("refusals-dangerous"),
        *right("refusals-offensive"),
        *wrong("xstest-should-refuse"),
        *right("xstest-should-respond"),
        *wrong("donotanswer"),
        *right("math-prm"),
        *wrong("hep-cpp"),
        *wrong("hep-go"),
        *wrong("hep-java"),
        *wrong("hep-js"),
        *wrong("hep-python"),
        *right("hep-rust"),
    ]
    random.Random(0).shuffle(records)
    result = sections("rewardbench", records)
    chat = (100 * 1 + 95 * 0.5 + 95 * 0 + 28 * 1 + 40 * 0) / (100 + 95 + 95 + 28 + 40)
    hard = (37 * 0 + 100 + 134 * 0.75 + 92 * 0 + 47 + 46) / (37 + 100 + 134 + 92 + 47 + 46)
    safety = (100 + 100 + 250 * 0 + 154 + 136 * 0) / (100 + 100 + 250 + 154 + 136)
    reasoning = (984 + 164) / (984 + 6 * 164)
    expected = {"Chat": chat, "Chat Hard": hard, "Safety": safety, "Reasoning": reasoning}
    assert result["sections"] == pytest.approx(expected)
    assert result["overall"] == pytest.approx((chat + hard + safety + reasoning) / 4)
    assert result["subsets"]["alpacaeval-length"]["accuracy"] == 0.5
    assert result["subsets"]["llmbar-adver-neighbor"]["comparisons"] == 4
    assert result["incomplete"]["math-prm"] == [1, 447]
    assert sum(size for _, size in result["incomplete"].values()) == 2985


def test_rewardbench_overall_is_that_of_the_leaderboard():
    """ArmoRM-Llama3-8B-v0.1, per mille, as its model card quotes the leaderboard."""
    published = {"Chat": 969, "Chat Hard": 768, "Safety": 922, "Reasoning": 973, "Prior Sets": 743}
    prior = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
    records = [
        row
        for section, hits in published.items()
        for subset in REWARDBENCH.get(section, prior)
        for row in right(subset, hits) + wrong(subset, 1000 - hits)
    ]
    result = sections("rewardbench", records)
    assert {name: round(1000 * s) for name, s in result["sections"].items()} == published
    assert round(1000 * result["overall"]) == 890


def test_rewardbench_prior_sets_count_half():
    prior = [*right("anthropic_helpful"), *wrong("anthropic_hhh"), *wrong("shp")]
    result = sections("rewardbench", all_subsets_right() + prior + right("summarize"))
    assert result["sections"]["Prior Sets"] == (1 + 0 + 0 + 1) / 4
    assert result["overall"] == pytest.approx((4 * 1 + 0.5 * 0.5) / 4.5)
    assert result["incomplete"]["summarize"] == [1, 9000]
    result = sections("rewardbench", all_subsets_right() + prior)
    assert result["sections"]["Prior Sets"] is None and result["overall"] is None
    assert result["sections"]["Chat"] == 1 and result["incomplete"]["summarize"] == [0, 9000]


def test_rewardbench_without_a_subset_has_no_section_and_no_overall_score():
    records = [r for r in all_subsets_right() if r["source"] != "mt-bench-hard"]
    result = sections("rewardbench", [*records, *right("mine"), *wrong("mine")])
    expected = {"Chat": 1, "Chat Hard": None, "Safety": 1, "Reasoning": 1}
    assert result["sections"] == expected and result["overall"] is None
    assert result["incomplete"]["mt-bench-hard"] == [0, 37]
    assert result["subsets"]["mine"] == {"accuracy": 0.5, "comparisons": 2, "unscored": 0}
    assert result["unknown"] == 2


def test_what_cannot_be_scored_is_left_out_and_counted():
    dropped = {"source": "donotanswer", "ranks": [0, 1], "scores": [], "dropped": "too long"}
    records = [*right("donotanswer"), line("donotanswer", None, 3.0), dropped]
    result = sections("rewardbench", records)
    expected = {"accuracy": 1.0, "comparisons": 1, "unscored": 2}
    assert result["subsets"] == {"donotanswer": expected}
    result = sections("rewardbench", [dropped])
    assert result["subsets"]["donotanswer"]["accuracy"] is None
    assert result["incomplete"]["donotanswer"] == [0, 136]


def test_a_whole_subset_is_not_incomplete():
    assert "hep-go" not in sections("rewardbench", right("hep-go", 164))["incomplete"]
    assert sections("rewardbench", right("hep-go", 165))["incomplete"]["hep-go"] == [165, 164]


def tie(row_id, chosen, scores):
    ranks = [0] * chosen + [1] * (len(scores) - chosen)
    return line("Ties", *scores, ranks=ranks) | {"id": row_id}


def test_rewardbench2_ties():
    records = [
        # Gap 3 - 1 = 2 over a spread of 4 - 3 = 1; the reference's gap is 1.5.
        tie("tied:0", 3, [4.0, 3.0, 3.5, 1.0, 0.0]),
        tie("ref:0", 1, [2.5, 1.0, -3.0]),
        # Gap 2 - 1 = 1, no more than the spread of 3 - 2; the reference is wrong by 2.
        tie("ref:7", 1, [0.0, 2.0]),
        tie("tied:7", 2, [3.0, 2.0, 1.0, 1.0]),
        # Gap 3 - 2.5 = 0.5 over no spread at all, but the reference's gap is 0.
        tie("tied:8", 2, [3.0, 3.0, 2.5]),
        tie("ref:8", 1, [1.0, 1.0]),
        # No reference: only for the accuracy, which a tie between right and wrong spoils.
        tie("tied:9", 2, [1.0, 0.0, 0.0]),
    ]
    result = sections("rewardbench2", records)
    # 0 / 0 counts nothing.
    margin = (math.tanh(1.5 / 1 - 1) + math.tanh(-2 / 1 - 1) + 0) / 3
    expected = {
        "tied_accuracy": 3 / 4,
        "reference_accuracy": 1 / 3,
        "gap_over_spread": 2 / 3,
        "both_gaps_over_spread": 1 / 3,
        "relative_gap": margin,
    }
    assert result["ties"] == pytest.approx(expected)
    score = 0.3 * 3 / 4 + 0.3 / 3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * margin
    assert result["sections"]["Ties"] == pytest.approx(score)
    # The subset itself: all right answers above all wrong ones.
    assert result["subsets"]["Ties"]["accuracy"] == pytest.approx(4 / 7)
    others = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    full = records + [line(subset, 1.0, 0.0, 0.0, 0.0, ranks=(0, 1, 1, 1)) for subset in others]
    assert sections("rewardbench2", full)["overall"] == pytest.approx((5 + score) / 6)


def test_rewardbench2_ties_without_any_spread():
    perfect = [tie("tied:1", 2, [1.0, 1.0, 0.0]), tie("ref:1", 1, [1.0, 0.0])]
    assert sections("rewardbench2", perfect)["sections"]["Ties"] == pytest.approx(1.01)
    constant = [tie("tied:1", 2, [1.0, 1.0, 1.0]), tie("ref:1", 1, [1.0, 1.0])]
    result = sections("rewardbench2", constant)
    assert set(result["ties"].values()) == {0.0} and result["sections"]["Ties"] == 0


def test_rewardbench2_ties_need_a_prompt_and_its_reference():
    alone = [tie("tied:1", 2, [2.0, 1.0, 0.0]), tie("ref:2", 1, [1.0, 0.0])]
    result = sections("rewardbench2", alone)
    assert result["sections"]["Ties"] is None
    assert result["subsets"]["Ties"] == {"accuracy": 1.0, "comparisons": 2, "unscored": 0}
    lost = [tie("tied:1", 2, [2.0, None, 0.0]), tie("ref:1", 1, [1.0, 0.0])]
    assert sections("rewardbench2", lost)["sections"]["Ties"] is None


def slow_ties(scored):
    """The rule of the benchmark's code, one prompt after another."""
    groups = {"tied": {}, "ref": {}}
    for row_id, chosen, scores in scored:
        kind, number = row_id.split(":")
        best, worst = max(scores[:chosen]), min(scores[:chosen])
        groups[kind][number] = (best - worst, worst - max(scores[chosen:]))
    correct = {kind: [gap > 0 for _, gap in group.values()] for kind, group in groups.items()}
    easy = hard = margin = 0.0
    both = [number for number in groups["ref"] if number in groups["tied"]]
    for number in both:
        (spread, gap), (_, reference) = groups["tied"][number], groups["ref"][number]
        easy += gap > spread
        hard += min(gap, reference) > spread
        margin += math.tanh(min(gap, reference) / spread - 1)
    accuracy = sum(sum(c) / len(c) for c in correct.values())
    return 0.3 * accuracy + (0.2 * easy + 0.2 * hard + 0.01 * margin) / len(both)


@pytest.mark.parametrize("seed", range(5))
def test_rewardbench2_ties_are_those_of_a_slow_loop(seed):
    random_ = random.Random(seed)
    scored = []
    for number in range(30):
        for kind, chosen in (("tied", random_.randint(2, 5)), ("ref", 1)):
            if random_.random() < 0.9:
                scores = [random_.gauss(4, 1) for _ in range(chosen)]
                scores += [random_.gauss(0, 1) for _ in range(random_.randint(1, 6))]
                scored.append((f"{kind}:{number}", chosen, scores))
    random_.shuffle(scored)
    result = sections("rewardbench2", [tie(*row) for row in scored])
    assert result["sections"]["Ties"] == pytest.approx(slow_ties(scored))


def test_rm_bench_sections():
    all_right, all_wrong = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    fancy = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    rows = [("chat", all_right), ("chat", fancy), ("code", all_wrong), ("math", all_right)]
    rows += [("safety-refuse", all_right), ("safety-response", fancy)]
    rows += [("safety-response", all_wrong)]
    result = sections("rm-bench", [line(domain, *scores, ranks=SIX) for domain, scores in rows])
    chat = {"easy": 1, "normal": 1 / 2, "hard": 1 / 2}
    safety = {"easy": 2 / 3, "normal": 1 / 3, "hard": 1 / 3}  # three rows, pooled
    assert result["difficulties"]["Chat"] == pytest.approx(chat)
    assert result["difficulties"]["Safety"] == pytest.approx(safety)
    expected = {"Chat": (1 + 0.5 + 0.5) / 3, "Code": 0, "Math": 1, "Safety": (2 + 1 + 1) / 3 / 3}
    assert result["sections"] == pytest.approx(expected)
    overall = {"easy": (1 + 0 + 1 + 2 / 3) / 4, "normal": (1 / 2 + 0 + 1 + 1 / 3) / 4}
    overall["hard"] = overall["normal"]
    assert result["difficulties"]["overall"] == pytest.approx(overall)
    assert result["overall"] == pytest.approx(sum(expected.values()) / 4)
    assert result["overall"] == pytest.approx(sum(overall.values()) / 3)
    assert result["subsets"]["safety-response"]["accuracy"] == pytest.approx(1 / 3 / 2)
    expected = {"Chat": [2, 129], "Code": [1, 228], "Math": [1, 529], "Safety": [3, 441]}
    assert result["incomplete"] == expected


def test_rm_bench_is_that_of_a_slow_loop():
    random_ = random.Random(1)
    records = [
        line(domain, *[float(random_.randint(0, 4)) for _ in SIX], ranks=SIX)
        for domain in ("chat", "code", "math", "safety-refuse", "safety-response")
        for _ in range(7)
    ]
    counts = {}
    for row in records:
        for i in range(3):
            for j in range(3):
                level = "easy" if i > j else "hard" if i < j else "normal"
                key = row["source"].split("-")[0].capitalize(), level
                success, number = counts.get(key, (0, 0))
                win = row["scores"][i] > row["scores"][3 + j]
                counts[key] = success + win, number + 1
    result = sections("rm-bench", records)
    for (domain, level), (success, number) in counts.items():
        assert result["difficulties"][domain][level] == pytest.approx(success / number)


def test_rm_bench_partial_and_unknown():
    rows = [line("safety-refuse", 1.0, 1.0, 1.0, 0.0, 0.0, None, ranks=SIX)]
    rows += [line("poems", 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, ranks=SIX)]
    result = sections("rm-bench", rows)
    assert result["sections"]["Safety"] is None and result["overall"] is None
    assert result["difficulties"]["Safety"] == {"easy": None, "normal": None, "hard": None}
    assert result["subsets"]["safety-refuse"]["unscored"] == 1
    assert result["unknown"] == 1 and result["subsets"]["poems"]["accuracy"] == 1


def test_judgebench_is_that_of_the_paper():
    """Table 3, Skywork-Reward-Gemma-2-27B: 59.74, 66.33, 83.93, 50.00 and 64.29 overall."""
    records = right("mmlu-pro-law", 50) + right("mmlu-pro-computer science", 42)
    records += [line("mmlu-pro-other", 0.5, 0.5)] * 62  # ties are no successes
    records += right("livebench-reasoning", 65) + wrong("livebench-reasoning", 33)
    records += right("livebench-math", 47) + wrong("livebench-math", 9)
    records += right("livecodebench", 21) + wrong("livecodebench", 21)
    result = sections("judgebench", records)
    percent = {name: round(100 * score, 2) for name, score in result["sections"].items()}
    assert percent == {"Knowledge": 59.74, "Reasoning": 66.33, "Math": 83.93, "Coding": 50.0}
    assert round(100 * result["overall"], 2) == 64.29
    assert result["incomplete"] == {} and result["unknown"] == 0
    assert sections("judgebench", records[1:])["incomplete"] == {"Knowledge": [153, 154]}
    result = sections("judgebench", [*records[:92], *right("trivia", 3)])
    assert result["overall"] is None and result["sections"]["Coding"] is None
    assert result["unknown"] == 3 and result["subsets"]["trivia"]["comparisons"] == 3


def test_judgebench_knows_the_pairs_of_claude():
    claude = right("mmlu-pro-law", 150) + right("livebench-reasoning", 60)
    claude += right("livebench-math", 30) + right("livecodebench", 30)
    assert sections("judgebench", claude)["incomplete"] == {}
    assert sections("judgebench", claude[1:])["incomplete"]["Coding"] == [30, 42]


def test_llmbar_averages_subsets_and_counts_ties_half():
    records = [
        *right("llmbar-natural", 3),
        *wrong("llmbar-natural"),
        line("llmbar-adversarial-neighbor", 1.0, 1.0),
        *right("llmbar-adversarial-neighbor", 3),
        *wrong("llmbar-adversarial-gptinst"),
        *right("llmbar-adversarial-gptout", 2),
        *right("llmbar-adversarial-manual"),
        *wrong("llmbar-adversarial-manual", 3),
        *wrong("CaseStudy/Normal"),
    ]
    result = sections("llmbar", records)
    adversarial = (3.5 / 4 + 0 + 1 + 1 / 4) / 4
    assert result["sections"] == pytest.approx({"Natural": 3 / 4, "Adversarial": adversarial})
    assert result["overall"] == pytest.approx((3 / 4 + 3.5 / 4 + 0 + 1 + 1 / 4) / 5)
    assert result["unknown"] == 1
    natural = sections("llmbar", records[:4])
    assert natural["sections"] == {"Natural": 3 / 4, "Adversarial": None}
    assert natural["overall"] is None and natural["incomplete"]["llmbar-natural"] == [4, 100]
