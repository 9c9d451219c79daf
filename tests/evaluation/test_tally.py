"""All metrics of an evaluation: metrics.Tallies, out of records of scores.jsonl."""

import itertools
import json
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import scipy
import sklearn.metrics

from utils.data.comparison import ranked_pairs
from utils.evaluation import score_tables
from utils.evaluation.metrics import Tallies


def make_records(seed, number, source="a", voted=True):
    """Records with ties, answers without score, copies, votes and prompts that come again."""
    draw = random.Random(seed)
    records = []
    for index in range(number):
        k = draw.randint(2, 7)
        copies = [draw.randrange(i) if i and draw.random() < 0.1 else i for i in range(k)]
        copies = [copies[copy] for copy in copies]
        ranks = [draw.randint(0, 2) for _ in range(k)]
        noise = [draw.randint(-4, 4) / 2 if index % 2 else draw.gauss(-3, 1) for _ in range(k)]
        scores = [one - rank / 2 for one, rank in zip(noise, ranks, strict=True)]
        lengths = [draw.choice((3, 20, 23, 50, 120, 500)) + draw.randint(0, 1) for _ in range(k)]
        for answer in range(k):
            if draw.random() < 0.1:
                scores[answer] = lengths[answer] = None
            scores[answer], lengths[answer] = scores[copies[answer]], lengths[copies[answer]]
        record = {
            "index": index,
            "source": source,
            "prompt": draw.randrange(number // 2) * 2**58 + 7,
            "ranks": ranks,
            "scores": scores,
            "lengths": lengths,
        }
        if copies != list(range(k)):
            record["copies"] = copies
        if voted and index % 3:
            record["votes"] = [draw.randint(0, 3) for _ in range(k)]
        records.append(record)
    return records


def make_record(scores, ranks=None, **changes):
    """A record of answers that get shorter; the ranks are their order."""
    lengths = [9 - i for i in range(len(scores))]
    ranks = list(range(len(scores))) if ranks is None else ranks
    record = {"index": 0, "source": "a", "prompt": 1, "ranks": ranks, "lengths": lengths}
    return {**record, "scores": scores, **changes}


def tally(records, label="hard"):
    tallies = Tallies(label)
    tallies.add(records)
    (result,) = tallies.results().values()
    return result


def slow_pairs(record):
    """Better and worse answer: scores, lengths and the share of the votes (None: no votes)."""
    copies = record.get("copies", range(len(record["ranks"])))
    for i, j in ranked_pairs(record["ranks"], [[copy] for copy in copies]).tolist():
        scores = record["scores"][i], record["scores"][j]
        if None not in scores:
            votes = record.get("votes", [0] * len(record["ranks"]))
            share = votes[i] / (votes[i] + votes[j]) if votes[i] + votes[j] else None
            yield *scores, record["lengths"][i] - record["lengths"][j], share


def slow_ranking(record):
    """tau, hit rate, hit rate of chance and reciprocal rank, over all orders of equal scores."""
    ranks, scores = zip(
        *((r, s) for r, s in zip(record["ranks"], record["scores"], strict=True) if s is not None),
        strict=True,
    )
    tau = scipy.stats.kendalltau(scores, [-rank for rank in ranks]).statistic
    places = []
    for order in itertools.permutations(range(len(ranks))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            places.append([ranks[answer] == min(ranks) for answer in order].index(True) + 1)
    chance = sum(rank == min(ranks) for rank in ranks) / len(ranks)
    return tau, np.mean([place == 1 for place in places]), chance, np.mean(1 / np.array(places))


def slow_interval(clusters):
    """Sandwich variance of a ratio; a cluster is its right pairs and its pairs."""
    accuracy = sum(right for right, _ in clusters) / sum(pairs for _, pairs in clusters)
    meat = sum((right - accuracy * pairs) ** 2 for right, pairs in clusters)
    degrees = len(clusters) - 1
    variance = meat * len(clusters) / degrees / sum(pairs for _, pairs in clusters) ** 2
    reach = scipy.stats.t(degrees).ppf(0.975) * math.sqrt(variance)
    return max(accuracy - reach, 0), min(accuracy + reach, 1)


def slow_temperature(margins):
    """Minimum over log T."""
    return math.exp(
        scipy.optimize.minimize_scalar(
            lambda log: np.logaddexp(0, -np.array(margins) / math.exp(log)).mean(),
            bounds=(-5, 9),
            method="bounded",
            options={"xatol": 1e-9},
        ).x
    )


def slow_calibration(margins):
    bins = []
    for low in np.linspace(0.5, 0.95, 10):
        high = 1.01 if low > 0.94 else low + 0.05
        own = [m for m in margins if low - 1e-12 <= 1 / (1 + math.exp(-abs(m))) < high - 1e-12]
        if own:
            confidence = np.mean([1 / (1 + math.exp(-abs(m))) for m in own])
            accuracy = np.mean([1 if m > 0 else 0.5 if m == 0 else 0 for m in own])
            bins.append({"confidence": confidence, "accuracy": accuracy, "pairs": len(own)})
    return bins


def slow_gaps(pairs):
    """Bins by length; of the edges, the one nearer to 0 is outside."""
    groups = defaultdict(list)
    for better, worse, gap, _ in pairs:
        edges = [0, 20, 50, 100, 200, None]
        for near, far in itertools.pairwise(edges):
            if near < abs(gap) and (far is None or abs(gap) <= far):
                minus = None if far is None else -far
                key = (near, far) if gap > 0 else (minus, -near)
        groups[key if gap else (0, 0)].append(np.sign(better - worse) / 2 + 0.5)
    return {key: (np.mean(right), len(right)) for key, right in groups.items()}


def slow_tally(records, label):
    """Loops, scikit-learn and SciPy."""
    per_record = [(record, list(slow_pairs(record))) for record in records]
    counted = [(record, pairs) for record, pairs in per_record if pairs]
    pairs = [pair for _, own in counted for pair in own]
    margins = [better - worse for better, worse, *_ in pairs]
    right = {margin: 1 if margin > 0 else 0.5 if margin == 0 else 0 for margin in margins}
    clusters = defaultdict(list)
    for record, own in counted:
        clusters[record["prompt"]] += [right[better - worse] for better, worse, *_ in own]
    low, high = slow_interval([(sum(own), len(own)) for own in clusters.values()])
    ranking = np.array([slow_ranking(record) for record, _ in counted])
    chances = 1 / (1 + np.exp(-np.array(margins)))
    shares = [share if label == "soft" else None for *_, share in pairs]
    voted = [(p, share) for p, share in zip(chances, shares, strict=True) if share is not None]
    targets = [1 if share is None else share for share in shares]
    answers = [
        (score, length)
        for record in records
        for score, length in zip(record["scores"], record["lengths"], strict=True)
        if score is not None
    ]
    scores = [score for score, _ in answers]
    longer = [right[b - w] for b, w, gap, _ in pairs if gap > 0]
    shorter = [right[b - w] for b, w, gap, _ in pairs if gap < 0]
    bins = slow_calibration(margins)
    return {
        "comparisons": len(counted),
        "prompts": len(clusters),
        "pairs": len(pairs),
        "answers": max(len(record["ranks"]) for record in records),
        "accuracy": np.mean([right[margin] for margin in margins]),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": margins.count(0),
        "loss": np.mean([np.mean([np.log1p(np.exp(w - b)) for b, w, *_ in p]) for _, p in counted]),
        "margin": np.mean(margins),
        "better_score": np.mean([better for better, *_ in pairs]),
        "worse_score": np.mean([worse for _, worse, *_ in pairs]),
        "kendall_tau": np.nanmean(ranking[:, 0]),
        "best_of_k": ranking[:, 1].mean(),
        "best_of_k_chance": ranking[:, 2].mean(),
        "mrr": ranking[:, 3].mean(),
        "brier": np.mean((chances - targets) ** 2),
        "ece": sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(pairs),
        "temperature": slow_temperature(margins),
        "soft_loss": sklearn.metrics.log_loss(
            [1] * len(voted) + [0] * len(voted),
            [p for p, _ in voted] * 2,
            sample_weight=[share for _, share in voted] + [1 - share for _, share in voted],
        )
        if voted
        else None,
        "score_mean": np.mean(scores),
        "score_std": np.std(scores),
        "score_percentiles": {str(p): np.percentile(scores, p) for p in (5, 25, 50, 75, 95)},
        "length": {
            "longer_pairs": len(longer),
            "longer_accuracy": np.mean(longer),
            "shorter_pairs": len(shorter),
            "shorter_accuracy": np.mean(shorter),
            "equal_pairs": len(pairs) - len(longer) - len(shorter),
            "prefers_longer": np.mean(longer + [1 - one for one in shorter]),
            "correlation": scipy.stats.pearsonr(*zip(*answers, strict=True)).statistic,
            "pair_correlation": scipy.stats.pearsonr(margins, [gap for *_, gap, _ in pairs])[0],
        },
    }


def flat_approx(value, rel=1e-8):
    """Nested results up to rounding, such as that of sums in another order."""
    if isinstance(value, dict):
        return {name: flat_approx(one, rel) for name, one in value.items()}
    if isinstance(value, list):
        return [flat_approx(one, rel) for one in value]
    return pytest.approx(value, rel=rel) if isinstance(value, float) else value


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("label", ["hard", "soft"])
def test_an_evaluation_is_that_of_slow_loops(seed, label):
    records = make_records(seed, 60, voted=seed < 5)
    result = json.loads(json.dumps(tally(records, label), allow_nan=False))
    bins, gaps = result.pop("calibration_bins"), result.pop("length_gap_bins")
    histogram = result.pop("histogram")
    expected = slow_tally(records, label)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        close = 1e-5 if name == "temperature" else 1e-8  # a minimum is flat
        assert result[name] == flat_approx(value, close), name
    pairs = [pair for record in records for pair in slow_pairs(record)]
    slow_bins = slow_calibration([better - worse for better, worse, *_ in pairs])
    assert [pytest.approx(one) for one in slow_bins] == bins
    found = {(gap["low"], gap["high"]): (gap["accuracy"], gap["pairs"]) for gap in gaps}
    assert found == {key: pytest.approx(value) for key, value in slow_gaps(pairs).items()}
    for counts, place in ((histogram["better"], 0), (histogram["worse"], 1)):
        edges = histogram["edges"]
        assert counts == np.histogram([pair[place] for pair in pairs], edges)[0].tolist()
        assert sum(counts) == len(pairs)


def test_pairs_are_as_scikit_learn_sees_a_classifier():
    """Accuracy, loss and Brier score of K = 2, with the better answer first or second at random."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(200, 2)) + (0.5, 0)
    result = tally([make_record(pair, index=i) for i, pair in enumerate(scores.tolist())])
    first = draw.integers(0, 2, 200)
    margins = scores[:, 0] - scores[:, 1]
    chance = 1 / (1 + np.exp(np.where(first, -margins, margins)))
    assert result["accuracy"] == sklearn.metrics.accuracy_score(first, chance > 0.5)
    assert result["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(first, chance))
    assert result["loss"] == pytest.approx(sklearn.metrics.log_loss(first, chance))
    assert result["kendall_tau"] == pytest.approx(np.sign(margins).mean())
    assert result["mrr"] == pytest.approx((1 + result["accuracy"]) / 2)
    assert result["best_of_k"] == pytest.approx(result["accuracy"])


def test_sources_stand_in_order_and_all_comes_last():
    ours, theirs = make_records(1, 20, "b"), make_records(2, 30, "a")
    for record in ours:
        record["index"] += 30
    dropped = {"index": 50, "source": "c", "ranks": [0, 1], "scores": [], "dropped": "too long"}
    tallies = Tallies()
    tallies.add([*theirs, dropped, *ours])
    results = tallies.results()
    assert list(results) == ["a", "b", "all"]
    assert results == {"a": tally(theirs), "b": tally(ours), "all": results["all"]}
    alone = [{**record, "source": "c"} for record in theirs + ours]
    assert results["all"] == flat_approx(tally(alone))


def test_a_source_called_all_does_not_hide_the_total():
    tallies, names = Tallies(), ("all", "all (source)", "b")
    for number, name in enumerate(names):
        tallies.add(make_records(number, 5 + number, name))
    results = tallies.results()
    assert list(results) == ["all (source) (source)", "all (source)", "b", "all"]
    *numbers, total = [result["comparisons"] for result in results.values()]
    assert sum(numbers) == total and all(numbers)


def test_comparisons_of_any_size_fit_into_memory(monkeypatch):
    records = make_records(4, 50)
    whole = tally(records)
    monkeypatch.setattr(score_tables, "PAIRS_AT_ONCE", 100)
    parts = list(score_tables.portions(records))
    assert sum(parts, []) == records
    sizes = [sum(len(record["ranks"]) ** 2 for record in part) for part in parts]
    assert max(sizes) < 100 + 7**2
    assert len(parts) < sum(sizes) / 100 + 2
    assert tally(records) == flat_approx(whole)


def test_nothing_to_compare_leaves_only_scores():
    """Answers that nobody ranked, one scored answer alone, and copies."""
    records = [
        make_record([1.0, 4.0], ranks=[0, 0]),
        make_record([2.0, None]),
        make_record([3.0, 3.0], copies=[0, 0]),
        make_record([5.0]),
    ]
    result = tally(records)
    json.dumps(result, allow_nan=False)
    assert result["score_mean"] == pytest.approx(np.mean([1, 4, 2, 3, 3, 5]))
    assert result["score_percentiles"]["50"] == 3
    counts = ("comparisons", "prompts", "pairs", "ties")
    assert [result[name] for name in counts] == [0] * 4
    assert result["answers"] == 2
    assert (result["calibration_bins"], result["length_gap_bins"]) == ([], [])
    known = {"answers", "calibration_bins", "length_gap_bins", "length", *counts}
    for name in set(result) - known - {"score_mean", "score_std", "score_percentiles"}:
        assert result[name] is None, name
    assert result["length"].pop("correlation") is not None
    assert set(result["length"].values()) == {0, None}


def test_nothing_at_all():
    assert Tallies().results() == {}
    tallies = Tallies()
    tallies.add([make_record([None, None])])
    (result,) = tallies.results().values()
    json.dumps(result, allow_nan=False)
    assert result["score_mean"] is result["score_std"] is result["score_percentiles"]["5"] is None


def test_one_pair():
    result = tally([make_record([1.5, 0.5])])
    assert (result["accuracy"], result["margin"], result["pairs"]) == (1, 1, 1)
    assert result["accuracy_low"] is result["accuracy_high"] is None
    assert result["temperature"] is None
    assert result["length"]["longer_accuracy"] == result["length"]["prefers_longer"] == 1
    assert result["length"]["pair_correlation"] is None


def test_equal_scores_are_worth_a_coin():
    records = [make_record([0.1] * k, index=k, prompt=k) for k in range(2, 7)]
    result = tally(records)
    assert result["accuracy"] == 0.5
    assert result["best_of_k"] == pytest.approx(result["best_of_k_chance"])
    assert result["mrr"] == pytest.approx(
        np.mean([np.mean(1 / np.arange(1, k + 1)) for k in range(2, 7)])
    )
    assert result["kendall_tau"] is result["temperature"] is None
    assert (result["score_std"], result["length"]["correlation"]) == (0, None)
    assert result["ties"] == result["pairs"]
    assert result["ece"] == 0
    assert 0 < result["accuracy_low"] < 0.5 < result["accuracy_high"] < 1


@pytest.mark.parametrize("sign", [1, -1])
def test_all_right_and_all_wrong_still_have_an_interval(sign):
    records = [make_record([sign, 0, -sign], index=i, prompt=i) for i in range(12)]
    result = tally(records)
    right = 12 if sign > 0 else 0
    expected = scipy.stats.binomtest(right, 12).proportion_ci(0.95, "exact")
    assert result["accuracy"] == right / 12
    assert (result["accuracy_low"], result["accuracy_high"]) == pytest.approx(tuple(expected))
    assert result["kendall_tau"] == sign


def test_votes_count_with_soft_labels_alone():
    records = [make_record([1.0, 0.0], votes=[3, 1]), make_record([2.0, 0.0], index=1)]
    p, sure = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    soft, hard = tally(records, "soft"), tally(records, "hard")
    assert soft["soft_loss"] == pytest.approx(-0.75 * math.log(p) - 0.25 * math.log(1 - p))
    assert soft["brier"] == pytest.approx(((p - 0.75) ** 2 + (1 - sure) ** 2) / 2)
    assert hard["soft_loss"] is None
    assert hard["brier"] == pytest.approx(((1 - p) ** 2 + (1 - sure) ** 2) / 2)


def test_one_prompt_in_many_rows_widens_the_interval():
    def width(prompt):
        result = tally(
            [make_record([s, 0], index=i, prompt=prompt(i)) for i, s in enumerate(scores)]
        )
        return result["accuracy_high"] - result["accuracy_low"]

    scores = [1.0 if i // 10 % 3 else -1.0 for i in range(600)]  # rows of a prompt agree
    assert width(lambda i: i // 10) == pytest.approx(math.sqrt(10) * width(lambda i: i), rel=0.03)
