import gzip
import json

import numpy as np
import pytest

from tests.conftest import make_pairs, write_jsonl
from tests.data.loading import load, make_encoder
from utils.data.cache import load_source
from utils.data.row_selection import Split, choose_rows, count_rows, join_rows, split_by_prompt
from utils.data.sources.names import parse_sources
from utils.data.token_rows import UNUSABLE, Reason
from utils.settings import InputError
from utils.training.loss import loss_inputs
from utils.training.settings import parse_training_arguments


@pytest.fixture
def encoder(opt_tokenizer):
    return make_encoder(opt_tokenizer)


def parse(tmp_path, *words):
    words = ["--model_name_or_path", "m", "--data_output_path", tmp_path / "cache", *words]
    return parse_training_arguments([str(word) for word in words])


def join(args, encoder):
    """What main.py makes of its data."""
    inputs = loss_inputs(args)
    return join_rows(args, choose_rows(args, encoder, inputs, args.seed), inputs)


def load_training(tmp_path, encoder, *words):
    data = join(parse(tmp_path, *words), encoder)
    return data.train, data.evaluation, data.counts


def same_prompts(number, of):
    """Comparisons of `of` prompts, several for each."""
    return [{"prompt": f"Q{i % of}", "chosen": f"a{i}", "rejected": "b"} for i in range(number)]


def test_source_column_names_the_source(tmp_path, encoder):
    rows = [{**row, "source": name} for row, name in zip(make_pairs(2), ("x", None), strict=True)]
    splits = load(write_jsonl(tmp_path / "file.jsonl", rows), encoder, tmp_path)
    assert [row["source"] for row in splits["train"]] == ["x", "file"]


def test_every_reason_is_counted_and_the_first_malformed_row_named(tmp_path, encoder):
    def row(*responses, scores=(2, 1), prompt="Q"):
        return {"prompt": prompt, "responses": responses, "scores": scores}

    long = " it is" * 600
    rows = [
        row("a", "b"),
        row("a", "b", scores=[1, 1]),
        row("a", "a"),
        row("a", ""),
        row("a", "b", ""),
        row("a", "b", scores=[1]),
        row("a", None),
        row("a", long),
        row("a", "b", long, scores=[1, 2, 3]),
        row("a", "b", prompt=long),
        row("a", "b", prompt=None),
    ]
    rows[4]["scores"] = [3, 2, 1]
    (source,) = parse_sources([str(write_jsonl(tmp_path / "rows.jsonl", rows))], "--data_path")
    (table,) = load_source(source, encoder, str(tmp_path / "cache"))
    assert count_rows(Split("rows", table, trains=True)) == {
        "comparisons": len(rows),
        "kept": 4,
        "dropped": {
            "tied": 1,
            "identical answers": 1,
            "empty answer": 1,
            "longer than max_seq_len": 1,
            "malformed, first: row 6: 2 answers but 1 ranks or scores": 3,
        },
        "dropped_answers": {"empty answer": 1, "longer than max_seq_len": 1},
        "truncated": sum(row["cut"] > 0 for row in table if not row["dropped"]),
        "unrendered": {},
    }


@pytest.mark.parametrize("shares", [[1, 1], [2, 4, 4], [0.9, 0.1], [0, 1, 3], [1]])
@pytest.mark.parametrize("prompts", [1, 7, 100])
def test_split_by_prompt_keeps_prompts_and_shares(prompts, shares):
    keys = np.random.default_rng(0).integers(-(2**60), 2**60, prompts)
    keys = np.random.default_rng(1).permutation(np.concatenate([keys, keys, keys[: prompts // 2]]))
    parts = split_by_prompt(keys, shares, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(len(keys)))
    found = [set(keys[part]) for part in parts]
    assert sum(map(len, found)) == prompts  # none on two sides
    for share, part in zip(shares, found, strict=True):
        assert abs(len(part) - share / sum(shares) * prompts) <= 1
    again = split_by_prompt(keys, shares, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = split_by_prompt(keys, shares, seed=4)
    same = all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    assert not same or prompts < 10 or len(shares) == 1


def test_held_out_prompts_never_train(tmp_path, encoder):
    comparisons = same_prompts(90, of=30)
    path = write_jsonl(tmp_path / "rows.jsonl", comparisons)
    train, held_out, counts = load_training(
        tmp_path, encoder, "--data_path", path, "--eval_fraction", "0.2"
    )
    prompts = [{comparisons[i]["prompt"] for i in rows["index"]} for rows in (train, held_out)]
    assert not prompts[0] & prompts[1]
    assert [len(side) for side in prompts] == [24, 6]
    assert sorted([*train["index"], *held_out["index"]]) == list(range(90))
    assert counts["train"][str(path)]["kept"] == 90
    assert (counts["train_comparisons"], counts["eval_comparisons"]) == (72, 18)


def test_held_out_prompts_never_train_where_two_sources_share_them(tmp_path, encoder):
    one = write_jsonl(tmp_path / "one.jsonl", same_prompts(40, of=40))
    two = write_jsonl(tmp_path / "two.jsonl", same_prompts(80, of=60))
    train, held_out, _ = load_training(tmp_path, encoder, "--data_path", one, two)
    assert len(train) + len(held_out) == 120
    assert not set(train["prompt_key"]) & set(held_out["prompt_key"])


def test_data_split_takes_the_second_share(tmp_path, encoder):
    path = write_jsonl(tmp_path / "rows.jsonl", same_prompts(150, of=50))
    whole = load(path, encoder, tmp_path)["train"]
    keys = np.array([row["prompt_key"] for row in whole])
    taken = {}
    for split in ("2,4,4", "4,4,2", "2,4,4", "1", None):
        words = ["--data_split", split] if split else []
        train, held_out, _ = load_training(tmp_path, encoder, "--data_path", path, *words)
        taken[split] = sorted([*train["index"], *held_out["index"]])
    for split in ("2,4,4", "4,4,2"):
        shares = split_by_prompt(keys, [float(share) for share in split.split(",")], seed=1234)
        assert taken[split] == shares[1].tolist()
        assert abs(len(set(keys[taken[split]])) - 0.4 * 50) <= 1
    assert taken["1"] == taken[None] == list(range(150))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluation_set_is_the_test_split_unless_one_is_given(tmp_path, encoder, split):
    (tmp_path / "folder").mkdir()
    rows = make_pairs(20)
    write_jsonl(tmp_path / "folder" / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "folder" / f"{split}.jsonl", rows[12:17])
    other = write_jsonl(tmp_path / "other.jsonl", rows[17:])
    words = ["--data_path", tmp_path / "folder"]
    train, evaluation, counts = load_training(tmp_path, encoder, *words)
    assert (len(train), len(evaluation)) == (12, 5)
    assert sum(count["kept"] for count in counts["eval"].values()) == 5
    train, evaluation, counts = load_training(tmp_path, encoder, *words, "--eval_data_path", other)
    assert (len(train), len(evaluation)) == (12, 3)
    assert set(evaluation["source"]) == {"other"} and list(counts["eval"]) == [str(other)]


def test_counts_add_up(tmp_path, encoder):
    unusable = [
        {"prompt": "Q", "chosen": "a", "rejected": rejected} for rejected in ("a", "", None)
    ]
    one = write_jsonl(tmp_path / "one.jsonl", make_pairs(20) + unusable)
    two = write_jsonl(tmp_path / "two.jsonl", unusable + same_prompts(10, of=5))
    words = ("--data_path", one, two, "--max_bad_rows", 0.1)
    train, evaluation, counts = load_training(tmp_path, encoder, *words)
    for path, number in ((one, 23), (two, 13)):
        count = counts["train"][str(path)]
        assert count["comparisons"] == number
        assert count["kept"] + sum(count["dropped"].values()) == number
    kept = sum(count["kept"] for count in counts["train"].values())
    assert kept == 30 == counts["train_comparisons"] + counts["eval_comparisons"]
    assert [len(train), len(evaluation)] == [
        counts["train_comparisons"],
        counts["eval_comparisons"],
    ]
    assert sorted([*train["index"], *evaluation["index"]]) == sorted([*range(20), *range(3, 13)])


GOOD = [json.dumps(row) for row in make_pairs(4)]
UNUSABLE_FILES = {
    "missing file": ("none.jsonl", None),
    "missing folder": ("none/at/all", None),
    "empty": ("rows.jsonl", b""),
    "empty array": ("rows.json", b"[]"),
    "empty CSV": ("rows.csv", b""),
    "not gzip": ("rows.jsonl.gz", b"hello"),
    "gzip cut off": ("rows.jsonl.gz", gzip.compress("\n".join(GOOD).encode())[:-20]),
    "gzip damaged": ("rows.jsonl.gz", gzip.compress("\n".join(GOOD).encode())[:40] + b"\0" * 60),
    "not Parquet": ("rows.parquet", b"hello"),
    "CSV with a long line": ("rows.csv", b"prompt,chosen,rejected\na,b,c\na,b,c,d,e\n"),
    "unknown ending": ("rows.txt", b"a"),
    "unknown columns": ("rows.csv", b"text,label\na,b\n"),
    "header alone": ("rows.csv", b"prompt,chosen,rejected\n"),
    "nothing usable": ("rows.csv", b"prompt,chosen,rejected\na,b,b\n"),
    "one prompt": ("rows.csv", b"prompt,chosen,rejected\na,b,c\na,d,e\n"),
}


@pytest.mark.parametrize(("name", "content"), UNUSABLE_FILES.values(), ids=UNUSABLE_FILES)
def test_unusable_file_is_an_input_error_that_names_it(tmp_path, encoder, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_training(tmp_path, encoder, "--data_path", tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


NOTHING_HELD_OUT = {
    "one comparison": ([{}], "there is one comparison, and both training and evaluation need one"),
    "one prompt": ([{}] * 40, "all 40 comparisons share one prompt"),
    "empty prompts": ([{"prompt": ""}] * 40, "all 40 comparisons have an empty prompt"),
    "two prompts": ([{}, {"prompt": "R"}], "the 2 comparisons have 2 prompts, of which "),
}


@pytest.mark.parametrize("name", NOTHING_HELD_OUT)
def test_the_error_says_why_nothing_is_held_out(tmp_path, encoder, name):
    changes, reason = NOTHING_HELD_OUT[name]
    pairs = enumerate(changes)
    rows = [{"prompt": "Q", "chosen": f"a{i}", "rejected": "b", **change} for i, change in pairs]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=f"is left to evaluate: {reason}.*give --eval_data_path"):
        load_training(tmp_path, encoder, "--data_path", path)
    other = write_jsonl(tmp_path / "other.jsonl", make_pairs(2))
    words = ("--data_path", path, "--eval_data_path", other)
    assert len(load_training(tmp_path, encoder, *words)[0]) == len(rows)


def test_rows_that_are_all_dropped_for_one_reason_name_it(tmp_path, encoder):
    users = [{"role": "user", "content": "Q"}, {"role": "user", "content": "a"}]
    for row, reason in (
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, r"2 dropped \(identical answers\)"),
        ({"chosen": users, "rejected": users}, "row 1: answer 1 ends with a message of the role"),
    ):
        path = write_jsonl(tmp_path / "rows.jsonl", [row, row])
        with pytest.raises(InputError, match=reason):
            load_training(tmp_path, encoder, "--data_path", path)


def test_no_source_is_tokenised_before_the_columns_of_all_are_known(tmp_path, encoder):
    good = write_jsonl(tmp_path / "good.jsonl", make_pairs(20))
    rows = [{**row, "context": "The house on the hill."} for row in make_pairs(2)]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    for words in ((good, bad), (good, "--eval_data_path", bad)):
        with pytest.raises(InputError, match="bad.jsonl: context: not read"):
            load_training(tmp_path, encoder, "--data_path", *words)
    assert not list((tmp_path / "cache").glob("*"))


GIVEN = {
    "--margin": {"margin": 1.5},
    "--label soft": {"votes": [3, 1]},
    "--sample_weights": {"weight": 0.5},
}


def test_rows_carry_what_columns_say_about_answers(tmp_path, encoder):
    rows = [*same_prompts(2, of=2), {"prompt": "R", "chosen": "c", "rejected": None}]
    for columns in GIVEN.values():
        rows[1].update(columns)
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", rows), encoder, tmp_path)["train"]
    found = [(row["grades"], row["votes"], row["weight"]) for row in loaded]
    assert found == [([], [], None), ([1.5, 0], [3, 1], 0.5), ([], [], None)]


@pytest.mark.parametrize("flag", GIVEN)
def test_a_column_that_a_flag_needs(tmp_path, encoder, capsys, flag):
    rows = same_prompts(20, of=20)
    words = ["--data_path", write_jsonl(tmp_path / "none.jsonl", rows), *flag.split()]
    with pytest.raises(
        InputError, match=f"no comparison has the column that {flag} needs: .*"
    ) as e:
        load_training(tmp_path, encoder, *words)
    assert next(iter(GIVEN[flag])) in str(e.value) and f"leave {flag} out" in str(e.value)
    for row in rows[::2]:
        row.update(GIVEN[flag])
    words[1] = write_jsonl(tmp_path / "some.jsonl", rows)
    train, _, _ = load_training(tmp_path, encoder, *words)
    missing = sum(number % 2 for number in train["index"])
    said = f"{missing} of {len(train)} training comparisons train as without {flag}"
    assert 0 < missing < len(train) and said in capsys.readouterr().out
    for row in rows:
        row.update(GIVEN[flag])
    words[1] = write_jsonl(tmp_path / "all.jsonl", rows)
    load_training(tmp_path, encoder, *words)
    assert "as without" not in capsys.readouterr().out


@pytest.mark.parametrize("held_out", [True, False])
def test_tied_comparisons_train_with_a_threshold_but_are_never_evaluated(
    tmp_path, encoder, held_out
):
    rows = [
        {"prompt": f"Q{i}", "responses": [f"a{i}", "b"], "ranks": [0, i % 2]} for i in range(40)
    ]
    rows.append({"prompt": "R", "responses": ["a", "a"], "ranks": [1, 1]})  # nothing to learn
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    others = [{**row, "prompt": f"other {row['prompt']}"} for row in rows]
    other = write_jsonl(tmp_path / "other.jsonl", others)
    words = ["--data_path", path, *([] if held_out else ["--eval_data_path", other])]
    for threshold, kept in (("0", 20), ("0.5", 40)):
        flags = ("--tie_threshold", threshold)
        train, evaluation, counts = load_training(tmp_path, encoder, *words, *flags)
        count = counts["train"][str(path)]
        assert count["kept"] == kept and count["dropped"].get("tied", 0) == 40 - kept
        assert count["dropped"]["identical answers"] == 1
        assert len(train) == (kept if not held_out else kept - kept // 10)
        tied = {i for i in range(40) if i % 2 == 0}
        assert bool(tied & set(train["index"])) == (threshold != "0")
        assert not tied & set(evaluation["index"])


def test_malformed_rows_beyond_the_limit_are_named(tmp_path, encoder):
    rows = make_pairs(40)
    for number in (4, 7):
        rows[number]["rejected"] = None
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = "2 of 40 rows malformed.*row 5: answer 2 is None.*row 8: .*--max_bad_rows"
    with pytest.raises(InputError, match=said):
        load_training(tmp_path, encoder, "--data_path", path, "--max_bad_rows", 0.049)
    train, held_out, _ = load_training(
        tmp_path, encoder, "--data_path", path, "--max_bad_rows", 0.05
    )
    assert len(train) + len(held_out) == 38


def test_prompts_that_train_are_removed_from_the_evaluation(tmp_path, encoder, capsys):
    train = write_jsonl(tmp_path / "train.jsonl", same_prompts(60, of=30))
    other = write_jsonl(tmp_path / "other.jsonl", same_prompts(80, of=40))
    words = ("--data_path", train, "--eval_data_path", other)
    rows, evaluation, counts = load_training(tmp_path, encoder, *words)
    assert len(rows) == 60 and counts["leaks_removed"] == 60
    assert sorted(evaluation["index"]) == [i for i in range(80) if i % 40 >= 30]
    assert "60 comparisons removed from the evaluation" in capsys.readouterr().out
    with pytest.raises(InputError, match="left to evaluate: 60 were removed"):
        load_training(tmp_path, encoder, "--data_path", train, "--eval_data_path", train)


def test_deduplication_keeps_the_first(tmp_path, encoder):
    rows = [
        {"prompt": "Q", "responses": ["a", "b"], "scores": [2, 1]},
        {"prompt": "Q", "responses": ["b", "a"], "scores": [5, 9]},  # the same, written otherwise
        {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]},  # contradicts it
        {"prompt": "Q", "responses": ["a", "c"], "scores": [2, 1]},
        {"prompt": "R", "responses": ["a", "a"], "scores": [2, 1]},  # drops out
        {"prompt": "R", "responses": ["a", "b"], "scores": [2, 1]},
    ]
    one = write_jsonl(tmp_path / "one.jsonl", rows)
    two = write_jsonl(tmp_path / "two.jsonl", rows[::-1] + [{**rows[0], "prompt": "S"}])
    other = write_jsonl(
        tmp_path / "other.jsonl", [{**rows[0], "prompt": f"T{i % 3}"} for i in range(6)]
    )
    words = ("--data_path", one, two, "--eval_data_path", other, "--deduplicate")
    kept = {}
    for mode in ("off", "exact", "prompt"):
        train, evaluation, counts = load_training(tmp_path, encoder, *words, mode)
        kept[mode] = list(zip(train["source"], train["index"], strict=True))
        assert counts["duplicates_removed"] == 11 - len(kept[mode])
        assert len(evaluation) == 6  # it is not the evaluation that is thinned out
    assert len(kept["off"]) == 11
    assert kept["exact"] == [("one", 0), ("one", 2), ("one", 3), ("one", 5), ("two", 6)]
    assert kept["prompt"] == [("one", 0), ("one", 5), ("two", 6)]


def test_caps_take_a_fixed_sample(tmp_path, encoder):
    path = write_jsonl(tmp_path / "rows.jsonl", same_prompts(200, of=200))
    other = write_jsonl(tmp_path / "other.jsonl", make_pairs(30))
    words = ("--data_path", f"{path}:50", "--eval_data_path", f"{other}:20")
    samples = [load_training(tmp_path, encoder, *words, "--seed", s)[:2] for s in (1, 2)]
    (train, evaluation), again = samples
    assert (len(set(train["index"])), len(set(evaluation["index"]))) == (50, 20)
    assert max(train["index"]) > 150  # not the first ones
    assert [list(side["index"]) for side in again] == [list(s["index"]) for s in samples[0]]
    both = load_training(tmp_path, encoder, "--data_path", f"{path}:50", other)
    assert len(both[0]) + len(both[1]) == 80  # a source's held-out part counts too


def test_weights_become_a_mixture_of_what_is_taken(tmp_path, encoder, capsys):
    one = write_jsonl(tmp_path / "one.jsonl", same_prompts(30, of=30))
    two = write_jsonl(tmp_path / "two.jsonl", make_pairs(100))
    words = ["--data_path", f"{one}:0.25", f"{two}:0.75", "--eval_fraction", 0.1]
    data = join(parse(tmp_path, *words), encoder)
    sources = np.array(data.train["source"])
    for part, name in zip(data.mixture.parts, ("one", "two"), strict=True):
        assert set(sources[part]) == {name} and len(part) == (sources == name).sum()
    limit = min((sources == "one").sum() / 0.25, (sources == "two").sum() / 0.75)
    assert data.mixture.epoch_size == int(limit)
    drawn = f"an epoch draws {data.mixture.counts[0]} of {(sources == 'one').sum()} comparisons"
    assert drawn in capsys.readouterr().out


def test_every_row_has_one_reason_or_none(tmp_path, encoder):
    def row(prompt, answer="b", ranks=(0, 1)):
        return {"prompt": prompt, "responses": ["a", answer], "ranks": ranks}

    rows = [row(f"Q{i % 20}", f"b{i}") for i in range(60)] + [row("Q", "")]
    rows += [row(f"Q{i}", ranks=(0, 0)) for i in range(20)] + rows[:30]
    one = write_jsonl(tmp_path / "one.jsonl", rows)
    (tmp_path / "two").mkdir()
    write_jsonl(tmp_path / "two" / "train.jsonl", [row(f"Q{i}", "c") for i in range(20)])
    write_jsonl(tmp_path / "two" / "test.jsonl", [row(f"Q{i}") for i in range(18, 24)])

    words = ("--data_path", f"{one}:70", tmp_path / "two", "--deduplicate", "exact")
    words += ("--data_split", "1,4", "--eval_fraction", "0.3", "--tie_threshold", "0.5")
    args = parse(tmp_path, *words)
    inputs = loss_inputs(args)
    splits = choose_rows(args, encoder, inputs, args.seed)
    first, second, test = splits
    assert [split.trains for split in splits] == [True, True, False]

    prompts = {reason: {} for reason in ("", *Reason)}
    for split in splits:
        for row, reason in zip(split.table, split.reason, strict=True):
            prompts[reason].setdefault(split, set()).add(row["prompt_key"])
            of_the_row = "" if row["dropped"] == Reason.TIED and split.trains else row["dropped"]
            assert (reason in UNUSABLE) == (of_the_row != "")
            assert of_the_row in ("", reason)
    found = {reason for reason, splits in prompts.items() if splits}
    chosen = set(Reason) - {*UNUSABLE, Reason.REPEATED_PROMPT}
    assert found == {"", Reason.EMPTY, *chosen}

    trained = prompts[""][first] | prompts[""][second]
    held_out = prompts[Reason.HELD_OUT][first]
    assert not trained & (held_out | prompts[""][test])
    assert set().union(*prompts[Reason.PROMPT_HELD_OUT].values()) <= held_out
    assert list(prompts[Reason.LEAK]) == [test] and prompts[Reason.LEAK][test] <= trained
    assert not prompts[Reason.OTHER_STEP][first] & (held_out | prompts[""][first])
    is_held_out = first.reason == Reason.HELD_OUT
    taken = first.reason.isin(["", Reason.HELD_OUT, Reason.PROMPT_HELD_OUT, Reason.DUPLICATE])
    assert taken.sum() == 70 < len(rows)

    data = join_rows(args, splits, inputs)
    assert len(data.train) == first.used.sum() + second.used.sum()
    assert len(data.evaluation) == test.used.sum() + is_held_out.sum()
