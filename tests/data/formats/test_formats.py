import random

import pytest

from tests.conftest import bot, user
from utils.data.comparison import Comparison
from utils.data.formats.layouts import LAYOUTS, OPTIONAL, RANKED_FORMATS, find_reader
from utils.settings import InputError

NAN = float("nan")


def read(row):
    comparison = find_reader(list(row), "file")(row, "s")
    assert comparison.source == "s"
    return comparison.prompt, list(comparison.responses), list(comparison.ranks)


def pair(prompt, chosen, rejected, **others):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def transcripts(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def scored(responses, **numbers):
    return {"prompt": "Q", "responses": responses, **numbers}


def webgpt(question, scores, answers=("a", "b")):
    return {
        "question": question,
        "answer_0": answers[0],
        "answer_1": answers[1],
        "score_0": scores[0],
        "score_1": scores[1],
    }


def shp(labels, history="Q"):
    return {"history": history, "human_ref_A": "a", "human_ref_B": "b", "labels": labels}


A, B = [user("Q"), bot("a")], [user("Q"), bot("b")]
CHAT = ([user("Q")], ["a", "b"], [0, 1])
START = "\n\nHuman: Q\n\nAssistant:"


CASES = {
    "texts": (pair("Q: ", "a", "b"), ("Q: ", ["a", "b"], [0, 1])),
    "texts and another column": (pair("Q", "a", "b", response="a"), ("Q", ["a", "b"], [0, 1])),
    "chat prompt, texts": (pair([user("Q")], "a", "b"), CHAT),
    "chat prompt, messages": (pair([user("Q")], [bot("a")], [bot("b")]), CHAT),
    "chat prompt, conversations": (pair([user("Q")], A, B), CHAT),
    "text prompt, messages": (pair("Q", [bot("a")], [bot("b")]), CHAT),
    "text prompt, conversations": (pair("Q", A, B), CHAT),
    "longer chat": (pair([*A, user("R")], "c", "d"), ([*A, user("R")], ["c", "d"], [0, 1])),
    "answers of several messages": (
        pair([user("Q")], [bot("a"), user("R"), bot("c")], [bot("b")]),
        ([user("Q")], [[bot("a"), user("R"), bot("c")], [bot("b")]], [0, 1]),
    ),
    "conversations": (transcripts(A, B), CHAT),
    "conversations with shared turns": (
        transcripts([*A, user("R"), bot("c")], [*A, user("R"), bot("d")]),
        ([*A, user("R")], ["c", "d"], [0, 1]),
    ),
    "one conversation begins the other": (
        transcripts([*A, user("R"), bot("c")], A),
        ([user("Q")], [[bot("a"), user("R"), bot("c")], [bot("a")]], [0, 1]),
    ),
    "transcripts": (transcripts(START + " a", START + " b"), (START, [" a", " b"], [0, 1])),
    "common beginning of the answers": (
        transcripts(START + " It is so.", START + " It is not."),
        (START, [" It is so.", " It is not."], [0, 1]),
    ),
    "transcripts part in an early turn": (
        transcripts(START + " a\n\nHuman: R\n\nAssistant: c", START + " b"),
        (START, [" a\n\nHuman: R\n\nAssistant: c", " b"], [0, 1]),
    ),
    "no marker": (transcripts("It is.", "It was."), ("", ["It is.", "It was."], [0, 1])),
    "scores": (
        scored(["a", "b", "c", "d"], scores=[1, 3.5, -2, 1]),
        ("Q", ["a", "b", "c", "d"], [1, 0, 2, 1]),
    ),
    "ranks": (
        scored(["a", "b", "c", "d"], ranks=[2, 1, 9, 2]),
        ("Q", ["a", "b", "c", "d"], [1, 0, 2, 1]),
    ),
    "webgpt": (webgpt({"full_text": "Q", "id": "7"}, (-0.5, 0.5)), CHAT[:2] + ([1, 0],)),
    "webgpt, plain question, tie": (webgpt("Q", (0.0, 0.0)), CHAT[:2] + ([0, 0],)),
    "SHP, first preferred": (shp(1), CHAT),
    "SHP, second preferred": (shp(0), CHAT[:2] + ([1, 0],)),
}


@pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)
def test_layout_gives_the_comparison_written_by_hand(row, expected):
    assert read(row) == expected


@pytest.mark.parametrize("seed", range(20))
def test_transcripts_are_cut_after_the_last_shared_marker(seed):
    chance = random.Random(seed)
    shared = START
    for _ in range(chance.randrange(4)):
        words = " ".join(chance.choices(["it", "is", "no", "yes"], k=chance.randint(1, 4)))
        shared += f" {words}\n\nHuman: {words}\n\nAssistant:"
    beginning = chance.choice(["", " It is", "\n\nAssist"])
    answers = [beginning + " a", beginning + chance.choice([" b", "\n\nHuman: c\n\nAssistant: d"])]
    assert read(transcripts(*(shared + answer for answer in answers))) == (shared, answers, [0, 1])


def test_unknown_columns_are_named_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        find_reader(["text", "label"], "some.csv")
    for name in RANKED_FORMATS:
        assert f"{name}: {'+'.join(LAYOUTS[name].needed)}" in str(caught.value)
    for part in ("some.csv", "text", "label"):
        assert part in str(caught.value)


BAD = [
    row
    for bad in (None, 7, NAN, [], ["a"], [None], [bot(None)])
    for row in (
        *(pair(bad, "a", "b"), pair("Q", bad, "b"), pair("Q", "a", bad), pair([user("Q")], bad, B)),
        *(transcripts("a", bad), transcripts(bad, "b"), transcripts(A, bad), transcripts(bad, B)),
        *(scored(["a", bad], scores=[1, 2]), scored(["a", "b"], scores=bad)),
        *(webgpt(bad, (0, 1)), webgpt("Q", (0, 1), ("a", bad)), shp(1, history=bad), shp(bad)),
    )
]
BAD += [
    scored(["a", "b"], **{c: [1, bad]}) for c in ("scores", "ranks") for bad in (None, NAN, "2")
]
BAD += [scored(["a", "b"], **{c: n}) for c in ("scores", "ranks") for n in ([1], [1, 2, 3], [])]
BAD += [webgpt("Q", (0, bad)) for bad in (None, NAN, "2")] + [scored("ab", scores=[1, 2])]
BAD += [pair(None, A, "b"), transcripts(A, "b")]


@pytest.mark.parametrize("row", BAD)
def test_bad_values_are_value_errors(row):
    with pytest.raises(ValueError, match="."):
        read(row)


def test_prompt_is_not_repeated_when_its_messages_carry_other_empty_fields():
    # Columns of a table have one type each, so that a field of one row is None in all others.
    answers = [[{**message, "name": None} for message in messages] for messages in (A, B)]
    prompt, responses, _ = read(pair([user("Q")], *answers))
    assert [message["content"] for message in prompt] == ["Q"]
    assert responses == ["a", "b"]


def test_message_answers_to_a_text_prompt_make_it_a_conversation():
    row = scored([[bot("a")], [user("Q"), bot("b")], "c"], scores=[3, 2, 1])
    assert read(row) == ([user("Q")], ["a", "b", "c"], [0, 1, 2])


def extras(row):
    comparison = find_reader(list(row), "file")(row, "s")
    numbers = [comparison.grades, comparison.votes]
    return [part and [*part] for part in numbers] + [comparison.weight]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pair("Q", "a", "b"), [None, None, None]),
        (pair("Q", "a", "b", margin=None, votes=None, weight=None), [None, None, None]),
        (pair("Q", "a", "b", margin=1.5), [[1.5, 0], None, None]),
        (pair("Q", "a", "b", score_chosen=7, score_rejected=9.5), [[7, 9.5], None, None]),
        (pair("Q", "a", "b", score_chosen=7, score_rejected=None), [None, None, None]),
        (pair("Q", "a", "b", score_chosen=7, score_rejected=9, margin=1), [[1, 0], None, None]),
        (pair("Q", "a", "b", votes=[3, 1]), [None, [3, 1], None]),
        (pair("Q", "a", "b", preference_strength=0), [None, [0.5, 0.5], None]),
        (pair("Q", "a", "b", preference_strength=0.5), [None, [0.75, 0.25], None]),
        (pair("Q", "a", "b", preference_strength=1), [None, [1, 0], None]),
        (pair("Q", "a", "b", preference_strength=1, votes=[1, 1]), [None, [1, 1], None]),
        (pair("Q", "a", "b", weight=0, margin=0), [[0, 0], None, 0]),
        (transcripts(START + " a", START + " b") | {"margin": 2}, [[2, 0], None, None]),
        (scored(["a", "b", "c"], scores=[1, 3.5, 1]), [[1, 3.5, 1], None, None]),
        (scored(["a", "b", "c"], ranks=[1, 2, 3], votes=[5, 0, 0.5]), [None, [5, 0, 0.5], None]),
        (scored(["a", "b"], ranks=[2, 1], margin=3), [[0, 3], None, None]),
        (scored(["a", "b"], ranks=[2, 1], preference_strength=1), [None, [0, 1], None]),
        (scored(["a", "b"], ranks=[1, 1], margin=3), [[3, 3], None, None]),
        (scored(["a", "b"], scores=[4, 1], margin=0.5), [[0.5, 0], None, None]),
        (webgpt("Q", (-0.5, 0.5)), [[-0.5, 0.5], None, None]),
        (shp(0) | {"margin": 2, "weight": 0.5}, [[0, 2], None, 0.5]),
    ],
)
def test_optional_columns_say_how_much_better_and_how_sure(row, expected):
    assert extras(row) == expected


def test_votes_alone_rank_the_answers():
    row = scored(["a", "b", "c", "d"], votes=[1, 5, 0, 1])
    assert read(row)[2] == [1, 0, 2, 1]
    assert extras(row) == [None, [1, 5, 0, 1], None]
    assert read({**row, "scores": [4, 3, 2, 1]})[2] == [0, 1, 2, 3]
    messages = [[user("Q"), bot(text)] for text in "ab"]
    grades = {"scores": [2, 1], "votes": [1, 1]}
    assert extras({"prompt": [user("Q")], "responses": messages, **grades})[:2] == [[2, 1], [1, 1]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        *(({name: -1}, f"{name} has -1; expected at least 0") for name in ("margin", "weight")),
        *(({name: NAN}, f"{name} has nan") for name in ("margin", "weight", "preference_strength")),
        *(({name: "1"}, f"{name} has '1'") for name in ("margin", "weight", "preference_strength")),
        ({"preference_strength": 1.5}, "preference_strength has 1.5; expected at most 1"),
        ({"preference_strength": -0.5}, "preference_strength has -0.5; expected at least 0"),
        ({"score_chosen": NAN, "score_rejected": 1}, "score_chosen has nan"),
        ({"votes": [1]}, "2 answers but 1 votes"),
        ({"votes": [1, 2, 3]}, "2 answers but 3 votes"),
        ({"votes": [1, -2]}, "votes has -2; expected at least 0"),
        ({"votes": [1, None]}, "votes has None"),
        ({"votes": 3}, "votes is int; expected a list"),
    ],
)
def test_malformed_optional_columns_are_value_errors(columns, message):
    with pytest.raises(ValueError, match=message):
        read(pair("Q", "a", "b", **columns))


@pytest.mark.parametrize("column", ["margin", "preference_strength"])
def test_a_column_of_pairs_needs_two_answers(column):
    with pytest.raises(ValueError, match=f"{column} is for a pair, but there are 3 answers"):
        read(scored(["a", "b", "c"], ranks=[1, 2, 3], **{column: 1}))


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        (["prompt", "chosen", "rejected"], "pairs"),
        (["conversations", "chosen", "rejected", "images"], "sharegpt"),
        (["prompt", "responses", "votes"], "voted"),
        (["prompt", "responses", "votes", "ranks"], "ranked"),
        (["prompt", "responses", "votes", "scores"], "scored"),
        (["prompt", "chosen", "rejected", *OPTIONAL], "pairs"),
        (["prompt", "response_1", "response_2", "preference_strength", "split"], "helpsteer2"),
    ],
)
def test_the_layout_with_all_columns_is_taken(columns, layout):
    for ranked in (True, False):
        assert find_reader(columns, "file", ranked).args == (layout,)


def test_of_several_columns_that_may_be_the_prompt_the_first_is():
    columns = ["history", "input", "query", "question", "instruction", "messages", "prompt"]
    names = ["history", "input", "query", "question", "alpaca", "messages", "pairs"]
    for number, name in enumerate(names, 1):
        given = [*columns[:number], "chosen", "rejected", "system"]
        assert find_reader(given, "file").args == (name,)
        assert find_reader(given, "file", layout="history").args == ("history",)


def test_an_ambiguous_table_asks_for_the_format():
    columns = ["prompt", "chosen", "rejected", "conversations"]
    with pytest.raises(InputError) as caught:
        find_reader(columns, "some.csv")
    for part in ("some.csv", "fit the layouts pairs, sharegpt", "--format NAME"):
        assert part in str(caught.value)
    for name in ("pairs", "sharegpt", "transcripts"):
        assert find_reader(columns, "some.csv", layout=name).args == (name,)
    with pytest.raises(InputError, match="fit the layouts ranked, scored"):
        find_reader(["prompt", "responses", "ranks", "scores"], "file")
    with pytest.raises(InputError, match="fit the layouts answers, answer"):
        find_reader(["prompt", "responses", "response"], "file", ranked=False)


def test_a_format_needs_its_columns():
    with pytest.raises(InputError) as caught:
        find_reader(["prompt", "text"], "some.csv", layout="pairs")
    for part in ("some.csv", "--format pairs", "chosen, rejected is not among prompt, text"):
        assert part in str(caught.value)


def test_answers_that_nobody_ranked_are_for_scoring_alone():
    row = {"prompt": "Q", "responses": ["a", "b"], "response": "c"}
    for layout, answers in (("answers", ["a", "b"]), ("answer", ["c"])):
        with pytest.raises(InputError, match=f"--format {layout} does not say which answer"):
            find_reader(list(row), "file", layout=layout)
        reader = find_reader(list(row), "file", ranked=False, layout=layout)
        assert reader(row, "s") == Comparison("Q", answers, [0] * len(answers), "s")
    columns = ["prompt", "chosen", "rejected", "response"]
    assert find_reader(columns, "file", ranked=False).args == ("pairs",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"source": "x", "subset": "y"}, "x"),
        ({"source": None, "subset": "y"}, "y"),
        ({"source": ["x"], "subset": ""}, "s"),
        ({"source": 7}, "s"),
    ],
)
def test_columns_name_the_source(names, expected):
    row = pair("Q", "a", "b", **names)
    assert find_reader(list(row), "file")(row, "s").source == expected


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
def test_names_that_no_table_takes_are_refused(name):
    row = pair("Q", "a", "b", subset=name)
    with pytest.raises(ValueError, match="source has"):
        find_reader(list(row), "file")(row, "s")


def test_a_text_that_is_too_long_for_a_name_names_nothing():
    for length, expected in ((200, "x" * 200), (201, "s")):
        row = pair("Q", "a", "b", source="x" * length)
        assert find_reader(list(row), "file")(row, "s").source == expected


def test_two_columns_of_the_system_say_the_same():
    for row in (pair("Q", "a", "b"), pair([user("Q")], "a", "b"), transcripts(A, B)):
        for others in (
            {"system": "S", "system_prompt": "S "},
            {"system_prompt": "S", "system": ""},
        ):
            prompt = read({**row, **others})[0]
            assert prompt in ("S\n\nQ", [{"role": "system", "content": "S"}, user("Q")])
    with pytest.raises(ValueError, match="system and system_prompt are two different texts"):
        read(pair("Q", "a", "b", system="S", system_prompt="T"))
    for spelled in ([{"role": "system", "content": "S"}], '[{"role": "system", "content": "S"}]'):
        assert read(pair("Q", "a", "b", system=spelled))[0] == "S\n\nQ"
    with pytest.raises(ValueError, match="system is 7; expected text"):
        read(pair("Q", "a", "b", system=7))
