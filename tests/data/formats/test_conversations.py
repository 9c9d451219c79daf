"""One copy of the prompt, whatever shape it and the answers have."""

import json

import pytest

from tests.conftest import bot, user
from utils.data.comparison import Comparison
from utils.data.formats.conversations import make_comparison, remainder, with_system

Q, R = "What is the capital of France?", "And how many people live there?"
TURNS = f"\n\nHuman: {Q}\n\nAssistant:"


def system(text):
    return {"role": "system", "content": text}


def make(prompt, *answers):
    return make_comparison(prompt, answers, range(len(answers)), "s")


def pair(*turns):
    """Two conversations that begin with the same turns."""
    return [*turns, bot("Paris.")], [*turns, bot("Rome.")]


ONE = [user(Q)]
LONG = [user(Q), bot("Paris."), user(R)]
SAID = [system("Be brief."), user(Q)]
KEPT = {
    # What the prompt column and both answers have, and which turns stand before the answers.
    "nothing twice": (Q, [[bot("Paris.")], [bot("Rome.")]], ONE),
    "the prompt again": (Q, pair(user(Q)), ONE),
    "messages again": (ONE, pair(user(Q)), ONE),
    "white space at the end": (Q, pair(user(Q + " \n")), [user(Q + " \n")]),
    "white space in one answer": (Q, (pair(user(Q))[0], pair(user(Q + " "))[1]), ONE),
    "a system message first": (Q, pair(*SAID), SAID),
    "a system message in the prompt alone": (SAID, pair(user(Q)), SAID),
    "a system message in both": (SAID, pair(*SAID), SAID),
    "the system message alone in the prompt": ([system("Be brief.")], pair(user(Q)), SAID),
    "the last turn of a longer conversation": (R, pair(*LONG), LONG),
    "the first turn of a longer conversation": (Q, pair(*LONG), LONG),
    "the last turns of the prompt": (LONG, pair(user(R)), LONG),
    "a transcript of the same turns": (TURNS, pair(user(Q)), ONE),
    "with the markup of a template": (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n",
        pair(*SAID),
        SAID,
    ),
    "one answer whole and one alone": (Q, (pair(user(Q))[0], [bot("Rome.")]), ONE),
    "text answers that begin with it": (ONE, (f"{Q} Paris.", f"{Q} Rome."), ONE),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_prompt_stands_once(name):
    prompt, answers, turns = KEPT[name]
    comparison = make(prompt, *answers)
    assert comparison.prompt == turns
    assert [answer.strip() for answer in comparison.responses] == ["Paris.", "Rome."]


@pytest.mark.parametrize(
    ("prompt", "answers", "problem"),
    [
        (Q, pair(user(R)), "answer 1 is a conversation .* does not hold the prompt"),
        (Q, (pair(user(Q))[0], pair(user(R))[1]), "answer 2 is a conversation"),
        (LONG, pair(user(Q), bot("Rome."), user("Why?")), "does not hold the prompt"),
        (SAID, pair(system("Be long."), user(Q)), "answer 1 have two different system messages"),
        (Q, ([user(Q), user("Paris.")], [bot("Rome.")]), "answer 1 ends with .* role user"),
        (Q, ([bot("Paris.")], [user(Q), system("Rome.")]), "answer 2 ends with .* role system"),
        ([], ([bot("Paris.")], [bot("Rome.")]), "no message before them .*--columns prompt="),
        ([], (pair(user(Q))[0], pair(user(R))[1]), "no message before them in common"),
        (Q, ([], [bot("Rome.")]), "answer 1 has no messages"),
        (R, (TURNS + " Paris.", TURNS + " Rome."), "transcripts that do not hold the prompt"),
        (SAID, (TURNS + " Paris.", TURNS + " Rome."), "transcripts that do not hold the prompt"),
        ('[{"role": "user", "content": ', ("a", "b"), "begins like messages, but is no list"),
    ],
)
def test_what_contradicts_the_prompt_is_a_value_error(prompt, answers, problem):
    with pytest.raises(ValueError, match=problem):
        make(prompt, *answers)


@pytest.mark.parametrize(
    ("prompt", "answers", "expected"),
    [
        (Q, (f"{Q}\nParis.", f"{Q} Rome."), (Q, ["\nParis.", " Rome."])),
        (Q + " ", (f"{Q} Paris.", f"{Q}  Rome."), (Q, [" Paris.", "  Rome."])),
        (TURNS, (TURNS + " Paris.", TURNS + " Rome."), (TURNS, [" Paris.", " Rome."])),
        (TURNS, (TURNS + " Paris.", " Rome."), (TURNS, [" Paris.", " Rome."])),
        (Q, (TURNS + " Paris.", TURNS + " Rome."), (TURNS, [" Paris.", " Rome."])),
        (ONE, (TURNS + " Paris.", TURNS + " Rome."), (ONE, [" Paris.", " Rome."])),
        (
            [user(R)],
            (
                f"{TURNS} x\n\nHuman: {R}\n\nAssistant: a",
                f"{TURNS} x\n\nHuman: {R}\n\nAssistant: b",
            ),
            (f"{TURNS} x\n\nHuman: {R}\n\nAssistant:", [" a", " b"]),
        ),
        # An answer may quote the prompt, greet with its words, or begin as a word of it does.
        (Q, (f"{Q} Paris.", "Rome."), None),
        ("Good day!", ("Good day! A", "Good day! B"), None),
        ("Say it once more", ("Say it once more", "Say it once moreover"), None),
        (Q, (Q, f"{Q} Rome."), None),
    ],
)
def test_texts_that_begin_with_the_prompt_lose_it_where_all_do(prompt, answers, expected):
    comparison = make(prompt, *answers)
    found = comparison.prompt, list(comparison.responses)
    assert found == (expected or (prompt, list(answers)))


def spellings(value):
    """A list of messages as JSON, as Python and as NumPy write it."""
    yield from (json.dumps(value), json.dumps(value, indent=1), repr(value))
    yield repr(value).replace("}, {", "}\n {")


@pytest.mark.parametrize("number", range(4))
def test_messages_may_be_spelled_out(number):
    quoted = "It's \"fine\" }\n {'so'} \\n é"
    answers = ([bot(quoted)], [bot("No.")])
    texts = [list(spellings(value))[number] for value in (LONG, *answers)]
    assert make(*texts) == make(LONG, *answers) == Comparison(LONG, [quoted, "No."], (0, 1), "s")
    whole = [list(spellings([*LONG, *answer]))[number] for answer in answers]
    assert make([], *whole) == make(LONG, *answers)
    one = [repr(answer[0]) for answer in answers]
    assert make(LONG, *one) == make(LONG, *(answer[0] for answer in answers)) == make(*texts)


def test_spelled_messages_may_begin_with_any_field_and_odd_names_of_roles():
    answers = ([bot("Yes.")], [bot("No.")])
    odd = [[{"id": 3, "role": " AI", "content": answer[0]["content"]}] for answer in answers]
    asked = [{"name": None, "role": "System", "content": "Be brief."}, user(Q)]
    expected = Comparison(SAID, ["Yes.", "No."], (0, 1), "s")
    for spell in (repr, json.dumps):
        assert make(spell(asked), *map(spell, odd)) == make(asked, *odd) == expected


def test_answers_that_all_begin_like_messages_must_be_some():
    whole, cut = repr([bot("Yes.")]), "[{'role': 'assistant', 'content': 'it's so'}]"
    for answers, number in (((whole, cut), 2), ((cut, cut), 1)):
        with pytest.raises(ValueError, match=f"answer {number} is .* begins like messages"):
            make(Q, *answers)
    assert list(make(Q, cut, "No.").responses) == [cut, "No."]


@pytest.mark.parametrize(
    "answers",
    [
        ('[{"role": "manager", "content": "Ada"}]', '[{"role": "clerk", "content": "Bob"}]'),
        ('[{"from": "ada@example.org", "value": "Hi"}]', '[{"from": "x", "value": ""}]'),
        ('[{"role": "user", "content": "Hi"}]', "I do not know."),
        ('{"content": "Hi"}', "[]"),
        ("[1, 2]", '["a"]'),
    ],
)
def test_an_answer_that_merely_is_json_stays_text(answers):
    assert make(Q, *answers) == Comparison(Q, answers, (0, 1), "s")


@pytest.mark.parametrize(
    ("prompt", "as_message", "expected"),
    [
        ([user(Q)], False, SAID),
        (SAID, False, SAID),
        ([system("Be brief.  Speak French."), user(Q)], False, None),
        (Q, False, f"Be brief.\n\n{Q}"),
        (TURNS, False, f"Be brief.{TURNS}"),
        ("", False, "Be brief."),
        (f"Be brief. {Q}", False, None),
        (f"<|system|>\nBe brief.\n<|user|>{Q}", False, None),
        (f"Who said 'Be brief.'? {Q}", False, f"Be brief.\n\nWho said 'Be brief.'? {Q}"),
        (Q, True, SAID),
    ],
)
def test_a_system_text_stands_first_and_once(prompt, as_message, expected):
    comparison = Comparison(prompt, ("a", "b"), (0, 1), "s")
    assert with_system(comparison, "Be brief.", as_message) == (expected or prompt)


def test_two_system_texts_contradict_each_other():
    with pytest.raises(ValueError, match="system text is 'No.'.*system message 'Be brief.'"):
        with_system(Comparison(SAID, ("a", "b"), (0, 1), "s"), "No.")


@pytest.mark.parametrize(
    ("text", "parts", "rest"),
    [
        ("a  b", ["a b c"], ""),
        ("a b", ["ca b"], "a b"),
        ("Human: a b Assistant:", ["a b"], ""),
        ("[INST] a b [/INST]", ["a b"], ""),
        ("a b, now c", ["a b"], ", now c"),
        ("a b c", ["a", "b c"], ""),
    ],
)
def test_remainder_is_what_others_do_not_say(text, parts, rest):
    assert remainder(text, parts) == rest
