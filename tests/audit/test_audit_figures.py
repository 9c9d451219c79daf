from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.data.auditing import make_row, make_split, malformed, read
from utils.audit.findings import leaked_prompts
from utils.audit.results import GAP_EDGES, audit_results
from utils.audit.rows import CONTRADICTION, CUT, REPEATS
from utils.data.keys import comparison_keys, is_first
from utils.data.token_rows import Reason
from utils.data.tokenization import text_key

REASONS = ["tied", "empty answer", "identical answers", "identical after truncation"]


def random_rows(generator, number, prompts=3, texts=3, clean=False):
    """Rows whose prompts and answers come from so few that they meet again."""
    rows = []
    for i in range(number):
        count = int(generator.choice([2, 2, 2, 3, 4, 5]))
        if clean:
            answers = [f"{i} {j} " + "x" * int(generator.integers(9)) for j in range(count)]
        else:
            answers = ["x" * int(n) for n in generator.integers(1, texts + 1, count)]
        ranks = generator.integers(0, 3, count).tolist()
        row = make_row(f"prompt {i if clean else generator.integers(prompts)}", answers, ranks)
        if not clean and generator.random() < 0.2:
            row = make_row(row["prompt"], answers, ranks, kept=list(range(1, count)))
        if generator.random() < 0.2:
            row["dropped"] = str(generator.choice(REASONS))
        elif generator.random() < 0.1:
            row = malformed("no answers")
        row["cut"] = int(generator.integers(0, 30)) * (generator.random() < 0.3)
        row["source"] = str(generator.choice(["hh", "shp"]))
        rows.append(row)
    return rows


def random_splits(seed, names, **options):
    generator = np.random.default_rng(seed)
    return [
        make_split(
            random_rows(generator, int(generator.integers(1, 40)), **options),
            name,
            chunks=int(generator.integers(1, 4)),
            first=int(generator.integers(3)),
        )
        for name in names
    ]


def used_rows(splits, dropped=False):
    """(label, row number, row) of each that is used, in order; with `dropped` of all others, too,
    but for malformed ones."""
    for split in splits:
        numbers = split.table.data["index"].to_pylist()
        for number, row, used in zip(numbers, split.rows, split.used, strict=True):
            if used or dropped and row["dropped"] != "malformed":
                yield split.label, number + 1, row


def usable_rows(splits):
    """The same of each row that could be used."""
    return [one for one in used_rows(splits, dropped=True) if not one[2]["dropped"]]


def slow_pairs(row, answers=None):
    """(better, worse) texts of all ranked pairs of kept answers that differ."""
    return [
        (row["texts"][i], row["texts"][j])
        for i, j in permutations(row["answers"] if answers is None else answers, 2)
        if row["ranks"][i] < row["ranks"][j] and row["texts"][i] != row["texts"][j]
    ]


def slow_identity(row):
    """Equal for equal comparisons."""
    order = sorted(set(row["ranks"]))
    ranked = zip(row["ranks"], row["texts"], strict=True)
    return row["prompt"], tuple(sorted((order.index(rank), text) for rank, text in ranked))


def slow_repeats(splits, dropped):
    return {
        Reason.DUPLICATE: slow_duplicates(splits, dropped),
        CONTRADICTION: slow_contradictions(splits, dropped),
    }


def slow_duplicates(splits, dropped):
    firsts, found = {}, []
    for label, number, row in used_rows(splits, dropped):
        first = firsts.setdefault(slow_identity(row), (label, number))
        if first != (label, number):
            found.append(((label, number), first))
    return found


def slow_contradictions(splits, dropped):
    rows, found = list(used_rows(splits, dropped)), []
    pairs = [set(slow_pairs(row, range(len(row["texts"])))) for *_, row in rows]
    for (label, number, row), own in zip(rows, pairs, strict=True):
        opposite = {(worse, better) for better, worse in own}
        for (other_label, other_number, other), others in zip(rows, pairs, strict=True):
            if other["prompt"] == row["prompt"] and opposite & others:
                found.append(((label, number), (other_label, other_number)))
                break
    return found


def slow_leaks(train, evaluation):
    rows = list(used_rows(train))
    found = []
    for label, number, row in usable_rows(evaluation):
        same = [(a, b) for a, b, other in rows if other["prompt"] == row["prompt"]]
        found += [(label, number, *same[0])] if same else []
    return found


def named(data, defect, side):
    """(path, row, other path, other row) of what repeats on a side."""
    before, after = REPEATS[defect].format(other="row {}").split("row {}")
    found = data.defects[data.defects["defect"] == defect]
    rows = data.rows.loc[found["comparison"]]
    for split, row, detail in zip(rows["split"], rows["row"], found["detail"], strict=True):
        own_side, path = data.splits[split]
        detail = detail.removesuffix("; left out").removeprefix(before + "row ")
        other, _, other_path = detail.removesuffix(after).partition(" of ")
        if own_side == side:
            yield path, row, other_path, int(other)


def repeats_of(data, defect, side="training"):
    return list(named(data, defect, side))


@pytest.mark.parametrize("seed", range(8))
def test_repeats_are_those_of_slow_loops(seed):
    train = random_splits(seed, ["a", "b", "c"][: 1 + seed % 3])
    evaluation = random_splits(100 + seed, ["d", "e"][: seed % 3], prompts=8)
    data = read(train, evaluation)
    for side, splits in (("training", train), ("evaluation", evaluation)):
        # What trains repeats what trains; what is left out may repeat anything.
        both = slow_repeats(splits, dropped=False), slow_repeats(splits, dropped=True)
        for defect in (Reason.DUPLICATE, CONTRADICTION):
            left, every = (dict(rows[defect]) for rows in both)
            expected = {**every, **left}
            found = repeats_of(data, defect, side)
            assert {one[:2]: one[2:] for one in found} == expected
            assert len(found) == len(expected)
    leaks = slow_leaks(train, evaluation)
    assert repeats_of(data, Reason.LEAK, "evaluation") == leaks
    prompts = [{row["prompt"] for *_, row in usable_rows(side)} for side in (train, evaluation)]
    assert leaked_prompts(data) == len(prompts[0] & prompts[1])
    if seed == 2:  # the random rows do have what is looked for
        assert repeats_of(data, Reason.DUPLICATE) and repeats_of(data, CONTRADICTION) and leaks


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_invented_in_clean_rows(seed):
    train = random_splits(seed, ["a", "b"], clean=True)
    for number, split in enumerate(train):
        for row in split.rows:
            row["prompt_key"] = text_key(f"{number} {row['prompt']}")
    splits = [make_split(split.rows, split.label) for split in train]
    data = read(splits)
    assert not repeats_of(data, Reason.DUPLICATE) and not repeats_of(data, CONTRADICTION)
    assert not repeats_of(data, Reason.LEAK, "evaluation") and leaked_prompts(data) == 0


@pytest.mark.parametrize("seed", range(6))
def test_results_are_those_of_slow_loops(seed):
    train = random_splits(seed, ["a", "b"])
    data = read(train)
    for number, (split, results) in enumerate(zip(train, audit_results(data), strict=False)):
        rows = [row for *_, row in used_rows([split])]
        own = data.defects[data.rows.loc[data.defects["comparison"], "split"].to_numpy() == number]
        places = data.rows.loc[own["comparison"], "row"].to_numpy()
        numbers = [number + 1 for number in split.table.data["index"].to_pylist()]
        reasons = Counter(row["dropped"] for row in split.rows)
        del reasons[""]
        assert results["rows"] == len(split.rows) and results["comparisons"] == len(rows)
        assert results["dropped"] == reasons
        for reason in reasons:
            is_dropped = [row["dropped"] == reason for row in split.rows]
            expected = np.array(numbers)[is_dropped].tolist()
            assert places[own["defect"] == reason].tolist() == expected
            details = set(own["detail"][own["defect"] == reason])
            assert details == {"no answers" if reason == "malformed" else "left out"}
        assert results["sources"] == Counter(row["source"] for row in split.rows)
        cut = [row["cut"] for row in split.rows if row["cut"]]
        assert results["cut"] == {"rows": len(cut), "tokens": slow_spread(cut)}
        is_cut = [n for n, row in zip(numbers, split.rows, strict=True) if row["cut"]]
        assert places[own["defect"] == CUT].tolist() == is_cut
        pairs = [pair for row in rows for pair in slow_pairs(row)]
        assert results["pairs"] == len(pairs)
        sequences = [row["prompt_tokens"] + n for row in rows for n in row["answer_tokens"]]
        assert results["lengths"] == {
            "prompt": slow_spread([row["prompt_tokens"] for row in rows]),
            "better": slow_spread([len(better) for better, _ in pairs]),
            "worse": slow_spread([len(worse) for _, worse in pairs]),
            "sequence": slow_spread(sequences),
        }
        assert results["tokens"] == {
            "packed": sum(row["tokens"] for row in rows),
            "separate": sum(sequences),
        }


def slow_spread(values):
    if not values:
        return None
    median, p95 = np.percentile(values, [50, 95], method="inverted_cdf")
    return {
        "mean": pytest.approx(np.mean(values)),
        "median": median,
        "p95": p95,
        "max": max(values),
    }


@pytest.mark.parametrize("seed", range(6))
def test_how_often_the_longer_answer_is_better(seed):
    generator = np.random.default_rng(seed)
    rows = random_rows(generator, 60, texts=6)
    for row in rows:  # lengths that are often equal, and go far beyond the last bin
        row["answer_tokens"] = (generator.integers(1, 6, len(row["answers"])) ** 4).tolist()
    split = make_split(rows)
    result = audit_results(read([split]))[0]["longer_better"]
    gaps, unequal = [], 0
    for *_, row in used_rows([split]):
        tokens = dict(zip(row["answers"], row["answer_tokens"], strict=True))
        own = [
            tokens[i] - tokens[j]
            for i, j in permutations(row["answers"], 2)
            if row["ranks"][i] < row["ranks"][j]
            and row["texts"][i] != row["texts"][j]
            and tokens[i] != tokens[j]
        ]
        gaps, unequal = gaps + own, unequal + bool(own)
    share = sum(gap > 0 for gap in gaps) / len(gaps)
    assert result["pairs"] == len(gaps) and result["share"] == share
    low, high = binomtest(round(share * unequal), unequal).proportion_ci(method="wilson")
    assert (result["low"], result["high"]) == (min(low, share), max(high, share))
    edges = GAP_EDGES
    expected = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = [gap for gap in gaps if low < abs(gap) <= high]
        if inside:
            expected.append((low, len(inside), sum(gap > 0 for gap in inside) / len(inside)))
    found = [(gap["above"], gap["pairs"], gap["share"]) for gap in result["gaps"]]
    assert found == expected


def test_results_of_a_side_are_those_of_all_rows():
    train = random_splits(3, ["a", "b"])
    rows = [row for split in train for row in split.rows]
    total, whole = (audit_results(read(splits))[-1] for splits in (train, [make_split(rows)]))
    assert total | {"path": ""} == whole | {"path": ""}


def test_a_held_out_part_counts_no_dropped_rows_twice():
    rows = [make_row(f"p{i}") for i in range(4)] + [malformed("bad"), make_row("t", dropped="tied")]
    split = make_split(rows)
    split.leave_out(np.arange(6) >= 2, Reason.HELD_OUT)
    train, evaluation = audit_results(read([split]))
    assert evaluation["path"] == "a.jsonl (held out)"
    assert (train["rows"], train["dropped"]) == (6, {"malformed": 1, "tied": 1})
    assert (evaluation["rows"], evaluation["comparisons"], evaluation["dropped"]) == (2, 2, {})
    assert evaluation["pairs"] == 2


def test_ties_that_train_are_not_dropped():
    rows = [make_row(), make_row("q", ranks=(0, 0), dropped="tied")]
    results = audit_results(read([make_split(rows, ties=True)]))[0]
    assert (results["comparisons"], results["dropped"], results["pairs"]) == (2, {}, 1)


@pytest.mark.parametrize(
    "rows",
    [[], [malformed("bad")] * 3, [make_row()], [make_row(ranks=(0, 0), dropped="tied")]],
    ids=["empty", "all malformed", "one row", "one dropped"],
)
def test_degenerate_sources(rows):
    data = read([make_split(rows)], [make_split(rows, "e.jsonl")])
    usable = sum(row["dropped"] == "" for row in rows)
    for results in audit_results(data):
        assert (results["rows"], results["comparisons"]) == (len(rows), usable)
        assert results["longer_better"]["share"] is None  # "a" is as long as "b"
        assert results["pairs"] == (usable if results["side"] == "training" else 0)  # a leak
    assert len(repeats_of(data, Reason.LEAK, "evaluation")) == usable


def test_no_sources():
    data = read()
    assert len(data.defects) == 0 and audit_results(data) == []


def test_a_comparison_may_contradict_itself():
    row = make_row("p", ("a", "b", "a"), (0, 1, 2))
    data = read([make_split([make_row("q"), row])])
    assert repeats_of(data, CONTRADICTION) == [("a.jsonl", 2, "a.jsonl", 2)]


@pytest.mark.parametrize("seed", range(5))
def test_comparison_keys_are_equal_where_comparisons_are(seed):
    split = random_splits(seed, ["a"])[0]
    rows = [row for row in split.rows if row["dropped"] != "malformed"]
    keys = comparison_keys(make_split(rows).table.data)
    assert keys.dtype == np.uint64
    for i, j in combinations(range(len(rows)), 2):
        assert (keys[i] == keys[j]) == (slow_identity(rows[i]) == slow_identity(rows[j]))


def test_comparison_keys_know_ranks_and_not_their_numbers_or_order():
    rows = [
        make_row("p", "abc", (0, 1, 2)),
        make_row("p", "cab", (9, 3, 5)),
        make_row("p", "abc", (0, 1, 1)),
        make_row("p", "abc", (0, 0, 1)),
        make_row("q", "abc", (0, 1, 2)),
        make_row("p", "abc", (0, 1, 2), kept=[0, 1]),
        make_row("p", "aabc", (0, 0, 1, 2)),
    ]
    keys = comparison_keys(make_split(rows).table.data)
    assert keys[0] == keys[1] == keys[5]
    assert len(set(keys.tolist())) == 5


def test_is_first():
    assert is_first(np.array([], dtype=np.int64)).tolist() == []
    generator = np.random.default_rng(0)
    for kind in (np.int64, np.uint64):
        keys = generator.integers(0, 5, 40).astype(kind) + np.iinfo(kind).max - kind(9)
        seen: set = set()
        expected = [not (key in seen or seen.add(key)) for key in keys.tolist()]
        assert is_first(keys).tolist() == expected
