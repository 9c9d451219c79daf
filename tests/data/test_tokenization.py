import random
from types import SimpleNamespace

import pytest

from tests.conftest import TEXTS, bot, slow_prefix, user
from utils.data.comparison import Comparison
from utils.data.tokenization import (
    ComparisonTokenizer,
    TextSettings,
    check_num_padding_at_beginning,
    common_prefix_length,
    prepare_tokenizer,
)
from utils.settings import InputError

SPELLED = "</s> <pad><s>x<|endoftext|><unk>"
TURNS = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}END{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)
CHAT = TURNS.replace("END", "{{ eos_token }}")
BARE = CHAT.replace("{{ bos_token }}", "\n")


def pair(prompt, *answers, ranks=None):
    return Comparison(prompt, answers, ranks or range(len(answers)), "s")


@pytest.fixture(params=["opt_tokenizer", "gpt2_tokenizer", "llama_tokenizer"])
def make_encoder(request):
    tokenizer = request.getfixturevalue(request.param)

    def make(template=None, eot=False, **settings):
        end, _ = prepare_tokenizer(tokenizer, eot)
        tokenizer.chat_template = template
        return ComparisonTokenizer(tokenizer, TextSettings(end, **settings))

    return make


def leading_count(encoder):
    """What the tokenizer puts before a text stands alone where there is no text."""
    return len(encoder.tokenizer("").input_ids)


def special_tokens(encoder, ids):
    special = {i for i, t in encoder.tokenizer.added_tokens_decoder.items() if t.special}
    return [encoder.tokenizer.convert_ids_to_tokens(i) for i in ids if i in special]


def decode(encoder, ids):
    return encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def random_text(chance, longest):
    words = " ".join(TEXTS).split()
    return " ".join(chance.choices(words, k=chance.randint(1, longest)))


def test_padding_token_is_not_the_end_token(make_encoder):
    encoder = make_encoder()
    tokenizer, end = encoder.tokenizer, encoder.settings.end_token
    assert end == tokenizer.eos_token
    for pad in (tokenizer.pad_token, end):
        tokenizer.pad_token = pad
        _, notes = prepare_tokenizer(tokenizer, False)
        assert len(notes) == (pad == end)
        assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.unk_token_id, None)
        assert tokenizer.padding_side == "right"
    assert prepare_tokenizer(tokenizer, True)[0] == "<|endoftext|>"


def test_slow_tokenizer_and_missing_end_token_are_input_errors(opt_tokenizer):
    with pytest.raises(InputError, match="slow tokenizer"):
        prepare_tokenizer(SimpleNamespace(is_fast=False, name_or_path="x"), False)
    opt_tokenizer.eos_token = None
    with pytest.raises(InputError, match="end token.*--add_eot_token"):
        prepare_tokenizer(opt_tokenizer, False)
    assert prepare_tokenizer(opt_tokenizer, True)[0] == "<|endoftext|>"


@pytest.mark.parametrize("eot", [False, True])
def test_num_padding_at_beginning_is_one_for_opt_and_zero_for_others(make_encoder, eot):
    encoder = make_encoder(eot=eot)
    tokenizer, end = encoder.tokenizer, encoder.settings.end_token
    number = 1 if tokenizer.eos_token == tokenizer.bos_token != "<|endoftext|>" else 0
    for given in (None, number):
        assert check_num_padding_at_beginning(tokenizer, end, given) == number
    with pytest.raises(InputError) as caught:
        check_num_padding_at_beginning(tokenizer, end, number + 4)
    assert f" is {number + 4}," in str(caught.value) and f"give {number} " in str(caught.value)


@pytest.mark.parametrize("eot", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_text_ids_are_the_tokenizers_own_with_the_end_token(make_encoder, seed, eot):
    chance, encoder = random.Random(seed), make_encoder(eot=eot)
    for _ in range(20):
        prompt = chance.choice(["", random_text(chance, 9), random_text(chance, 9) + "\n\n"])
        answers = [chance.choice(["", " ", "\n"]) + random_text(chance, 6) for _ in range(3)]
        [row] = encoder.rows([pair(prompt, *answers)])
        for ids, answer in zip(row["input_ids"], answers, strict=True):
            seam = " " if prompt and not prompt.endswith("\n") and answer[0].isalnum() else ""
            whole = encoder.tokenizer(prompt + seam + answer).input_ids
            assert ids == [
                *whole,
                encoder.tokenizer.convert_tokens_to_ids(encoder.settings.end_token),
            ]


@pytest.mark.parametrize("eot", [False, True])
def test_text_that_spells_special_tokens_gives_none(make_encoder, eot):
    encoder = make_encoder(eot=eot)
    lead = leading_count(encoder)
    [row] = encoder.rows([pair(SPELLED + " Why?", " So." + SPELLED, " b", SPELLED)])
    for ids in row["input_ids"]:
        assert special_tokens(encoder, ids[lead:]) == [encoder.settings.end_token]
        assert decode(encoder, ids[lead:-1]).startswith(SPELLED)
    assert decode(encoder, row["input_ids"][0][:-1]).endswith(" So." + SPELLED)


@pytest.mark.parametrize("eot", [False, True])
@pytest.mark.parametrize("template", [None, CHAT])
@pytest.mark.parametrize("place", ["prompt", "answer", "role"])
def test_messages_that_spell_special_tokens_give_only_the_templates(
    make_encoder, place, template, eot
):
    encoder = make_encoder(template, eot)
    words = {"prompt": "Why?", "answer": "So.", "role": "user"}
    rows = []
    for spelled in ("", SPELLED):
        words[place] += spelled
        message = {"role": words["role"], "content": words["prompt"]}
        rows += encoder.rows([pair([message], words["answer"], "b")])
    harmless, row = ([special_tokens(encoder, ids) for ids in r["input_ids"]] for r in rows)
    assert row == harmless
    if place != "role":
        visible = decode(encoder, rows[1]["input_ids"][0]).replace("\u200b", "")
        assert words[place] in visible


@pytest.mark.parametrize("close", ["", "{{ eos_token }}", "{{ eos_token }}\n", "\n"])
def test_chat_ids_are_the_templates_with_exactly_one_end_token(make_encoder, close):
    encoder = make_encoder(TURNS.replace("END", close))
    [row] = encoder.rows([pair([user("Why?"), bot("What?"), user("It.")], "Because.", "No")])
    tokenizer = encoder.tokenizer
    for ids, answer in zip(row["input_ids"], ["Because.", "No"], strict=True):
        messages = [user("Why?"), bot("What?"), user("It."), bot(answer)]
        text = tokenizer.apply_chat_template(messages, tokenize=False).strip()
        whole = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == whole + [tokenizer.eos_token_id] * ("eos" not in close)


def test_messages_without_a_template_are_an_hh_transcript(make_encoder):
    encoder = make_encoder()
    chat, text = encoder.rows(
        [
            pair([user("Hi"), bot("Yes?"), user("Why?")], "So.", [bot("a"), user("b"), bot("c")]),
            pair(
                "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:",
                *(" So.", " a\n\nHuman: b\n\nAssistant: c"),
            ),
        ]
    )
    assert chat["input_ids"] == text["input_ids"]
    assert chat["answer_starts"] == text["answer_starts"]


@pytest.mark.parametrize("template", [None, CHAT])
def test_apply_chat_template_takes_text_as_a_user_message(make_encoder, template):
    encoder = make_encoder(template, apply_chat_template=True)
    text, chat = encoder.rows([pair("Why?", "a", "b"), pair([user("Why?")], [bot("a")], "b")])
    assert text["input_ids"] == chat["input_ids"]
    assert text["answer_starts"] == chat["answer_starts"]
    plain = make_encoder(template).rows([pair("Why?", "a", "b")])[0]
    assert plain["input_ids"] != text["input_ids"]


@pytest.mark.parametrize("score_position", ["end", "first_pad"])
@pytest.mark.parametrize("prompt", ["", "Why", "Why: ", "Why?\n\n", "é", [user("Why?")]])
@pytest.mark.parametrize("template", [None, CHAT])
def test_answer_starts_mark_the_first_token_of_the_answer(
    make_encoder, template, prompt, score_position
):
    encoder = make_encoder(template, score_position=score_position)
    answers = ["It is.", " It is.", "  \n it", "😀 é", "0"]
    [row] = encoder.rows([pair(prompt, *answers)])
    ends = 2 if score_position == "first_pad" else 1
    for ids, start, answer in zip(row["input_ids"], row["answer_starts"], answers, strict=True):
        assert decode(encoder, ids[start:-ends]).strip() == answer.strip()
        assert decode(encoder, ids[start : start + 1]).strip()


def test_first_pad_adds_the_padding_token_after_the_end_token(make_encoder):
    comparisons = [pair("Why?", " a", " b"), pair([user("Why?")], "c", "d")]
    end = make_encoder().rows(comparisons)
    encoder = make_encoder(score_position="first_pad")
    for row, other in zip(encoder.rows(comparisons), end, strict=True):
        assert row["input_ids"] == [
            [*ids, encoder.tokenizer.pad_token_id] for ids in other["input_ids"]
        ]


@pytest.mark.parametrize("score_position", ["end", "first_pad"])
@pytest.mark.parametrize("policy", ["truncate_prompt", "drop", "truncate_end"])
@pytest.mark.parametrize("kind", ["text", "fallback", "chat", "bare chat"])
def test_overlength_policy_equals_a_slow_loop(make_encoder, kind, policy, score_position):
    template = {"chat": CHAT, "bare chat": BARE}.get(kind)
    limit, ends = 24, 2 if score_position == "first_pad" else 1
    chance = random.Random(7)
    comparisons = []
    for _ in range(60):
        prompt = random_text(chance, 12)
        answers = [" " + random_text(chance, 6) for _ in range(chance.randint(2, 4))]
        comparisons.append(pair(prompt if kind == "text" else [user(prompt)], *answers))
    whole = make_encoder(template, score_position=score_position, max_seq_len=10**6)
    head = {"chat": 1, "bare chat": 0}.get(kind, leading_count(whole))
    full = whole.rows(comparisons)
    encoder = make_encoder(
        template, score_position=score_position, max_seq_len=limit, overlength=policy
    )
    for row, before in zip(encoder.rows(comparisons), full, strict=True):
        sequences = list(zip(before["input_ids"], before["answer_starts"], strict=True))
        kept = list(range(len(sequences)))
        if policy == "drop":
            kept = [i for i in kept if len(sequences[i][0]) <= limit]
            expected = [sequences[i][0] for i in kept]
        elif policy == "truncate_prompt":
            kept = [i for i in kept if head + len(sequences[i][0]) - sequences[i][1] <= limit]
            expected = [
                ids[:head] + ids[head:start][max(len(ids) - limit, 0) :] + ids[start:]
                for ids, start in (sequences[i] for i in kept)
            ]
        else:
            expected = [
                ids if len(ids) <= limit else ids[: limit - ends] + ids[-ends:]
                for ids, _ in sequences
            ]
        assert row["answers"] == kept
        assert row["input_ids"] == expected
        assert row["long_answers"] == len(sequences) - len(kept)
        assert row["length"] == max(map(len, expected), default=0) <= limit
        for i, ids, start in zip(kept, row["input_ids"], row["answer_starts"], strict=True):
            answer = sequences[i][0][sequences[i][1] : -ends]
            assert ids[start:-ends] == answer[: len(ids) - ends - start]
            assert policy == "truncate_end" or ids[start:-ends] == answer
        assert (row["dropped"] == "longer than max_seq_len") == (len(kept) < 2)


@pytest.mark.parametrize("policy", ["truncate_prompt", "drop", "truncate_end"])
def test_cut_says_whether_a_kept_answer_was_cut(make_encoder, policy):
    texts = [("Why?", " a", " b"), ("It is so " * 20, " a", " b"), ("Q", " a", " b", " c" * 40)]
    comparisons = [pair(*text) for text in texts]
    full = make_encoder(max_seq_len=10**6).rows(comparisons)
    for row, before in zip(
        make_encoder(max_seq_len=24, overlength=policy).rows(comparisons), full, strict=True
    ):
        kept = [before["input_ids"][i] for i in row["answers"]]
        assert (row["cut"] > 0) == (row["input_ids"] != kept)


@pytest.mark.parametrize("seed", range(20))
def test_common_prefix_length_equals_a_slow_loop(seed):
    chance = random.Random(seed)
    for _ in range(50):
        prompt = [chance.randint(0, 20) for _ in range(chance.randint(0, 4))]
        sequences = [
            prompt + [chance.randint(0, 1) for _ in range(chance.randint(0, 3))]
            for _ in range(chance.choice([1, 2, 3, 5, 11]))
        ]
        before = [list(ids) for ids in sequences]
        assert common_prefix_length(sequences) == slow_prefix(sequences) >= len(prompt)
        assert sequences == before


@pytest.mark.parametrize(
    ("sequences", "shared"),
    [
        ([], 0),
        ([[3, 4]], 2),
        ([[], [3]], 0),
        ([[3, 4], [3]], 1),
        ([[3, 4], [3, 4]], 2),
        ([[3, 4, 9], [3, 5], [3, 4, 1]], 1),
    ],
)
def test_common_prefix_length_of_plain_cases(sequences, shared):
    assert common_prefix_length(sequences) == slow_prefix(sequences) == shared


@pytest.mark.parametrize("score_position", ["end", "first_pad"])
@pytest.mark.parametrize("policy", ["truncate_prompt", "drop", "truncate_end"])
@pytest.mark.parametrize("template", [None, CHAT])
def test_tokens_count_what_all_answers_share_once(make_encoder, template, policy, score_position):
    chance = random.Random(3)
    comparisons = []
    for _ in range(40):
        words = chance.choice(["", random_text(chance, 3)])  # that more than the prompt is shared
        answers = [f" {words} {random_text(chance, 3)}" for _ in range(chance.randint(1, 5))]
        prompt = random_text(chance, 9)
        prompt = prompt if template is None else [user(prompt)]
        comparisons.append(pair(prompt, *answers, *chance.choice([[], ["", answers[0]]])))
    limit = 24 if template else 14  # a few of the comparisons are longer
    settings = {"max_seq_len": limit, "overlength": policy, "score_position": score_position}
    rows = make_encoder(template, **settings).rows(comparisons)
    for row in rows:
        shared = slow_prefix(row["input_ids"])
        once = row["input_ids"][0][:shared] if row["input_ids"] else []
        assert row["shared"] == shared
        assert row["tokens"] == len(once) + sum(len(ids[shared:]) for ids in row["input_ids"])
    assert any(row["cut"] or row["long_answers"] for row in rows)
    assert any(row["shared"] > max(row["answer_starts"], default=0) for row in rows)


@pytest.mark.parametrize("policy", ["truncate_prompt", "drop", "truncate_end"])
@pytest.mark.parametrize("kind", ["text", "fallback", "chat", "bare chat"])
def test_tokens_of_an_answer_depend_on_no_other_answer(make_encoder, kind, policy):
    template, chance = {"chat": CHAT, "bare chat": BARE}.get(kind), random.Random(5)
    encoder = make_encoder(template, max_seq_len=20, overlength=policy)
    cut = left_out = 0
    for _ in range(40):
        prompt = random_text(chance, 12)
        prompt = prompt if kind == "text" else [user(prompt)]
        answers = [" " + random_text(chance, chance.choice([2, 40])) for _ in range(3)]
        [row] = encoder.rows([pair(prompt, *answers)])
        columns = (row["answers"], row["input_ids"], row["answer_starts"])
        found = {i: ([ids], [start]) for i, ids, start in zip(*columns, strict=True)}
        for number, answer in enumerate(answers):
            [alone] = encoder.rows([pair(prompt, answer)])
            expected = found.get(number, ([], []))
            assert (alone["input_ids"], alone["answer_starts"]) == expected
            cut += alone["cut"] > 0
            left_out += alone["long_answers"]
    assert (cut > 5) == (policy != "drop")
    assert (left_out > 5) == (policy != "truncate_end")


LONG = " It is so." * 20


@pytest.mark.parametrize(
    ("answers", "ranks", "policy", "dropped"),
    [
        ([" a", " b"], (0, 1), "drop", ""),
        ([" a", " b"], (1, 1), "drop", "tied"),
        ([" a", " b", " c"], (0, 1, 1), "drop", ""),
        ([" a", " a"], (0, 1), "drop", "identical answers"),
        ([" a", " a"], (1, 1), "drop", "identical answers"),
        ([" a", "a"], (0, 1), "drop", "identical answers"),
        ([" a", " a", " b"], (0, 1, 1), "drop", ""),
        ([" a", " b", " b"], (0, 0, 0), "drop", "tied"),
        ([" a", " b", ""], (0, 0, 1), "drop", "tied"),
        ([LONG + " a", LONG + " b"], (0, 1), "truncate_end", "identical after truncation"),
        ([LONG + " a", LONG + " a"], (0, 1), "truncate_end", "identical answers"),
        ([LONG + " a", LONG + " b"], (0, 1), "truncate_prompt", "longer than max_seq_len"),
        ([LONG + " a", " b"], (0, 1), "drop", "longer than max_seq_len"),
        ([LONG, " b", " c"], (0, 1, 2), "truncate_prompt", ""),
        (["", " b"], (0, 1), "drop", "empty answer"),
        ([" \n", " b"], (0, 1), "drop", "empty answer"),
        (["", " a", " b"], (0, 1, 2), "drop", ""),
        ([" a"], (0,), "drop", "fewer than two answers"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "chat", "chat that does not close with the end token"])
def test_reason_for_dropping(make_encoder, kind, answers, ranks, policy, dropped):
    encoder = make_encoder(
        None if kind == "text" else CHAT, eot="not" in kind, max_seq_len=32, overlength=policy
    )
    if kind == "chat" or "not" in kind:
        answers = [answer.strip() for answer in answers]
    prompt = "Why?" if kind == "text" else [user("Why?")]
    [row] = encoder.rows([pair(prompt, *answers, ranks=ranks)])
    assert row["dropped"] == dropped
    assert row["empty_answers"] == sum(not answer.strip() for answer in answers)


def test_template_that_refuses_a_conversation_makes_it_malformed(make_encoder):
    encoder = make_encoder("{% if messages|length > 3 %}{{ undefined.x }}{% endif %}" + CHAT)
    refused, kept = pair([user("a"), bot("b"), user("c")], "d", "e"), pair([user("a")], "b", "c")
    rows = encoder.rows([kept, refused, kept])
    assert [row["dropped"] for row in rows] == ["", "malformed", ""]
    assert "undefined" in rows[1]["problem"]
    assert rows[0] == rows[2] == make_encoder(CHAT).rows([kept])[0]


def test_prompt_key_is_shared_by_equal_prompts_alone(make_encoder):
    prompts = ["Q", "Q ", "R", [user("Q")], [user("R")], [user("Q"), bot("R"), user("Q")]]
    keys = [row["prompt_key"] for row in make_encoder().rows([pair(p, "a", "b") for p in prompts])]
    again = make_encoder(max_seq_len=8).rows([pair(p, "c", "d") for p in prompts])
    assert keys == [row["prompt_key"] for row in again]
    assert keys[0] == keys[1] and len(set(keys)) == len(keys) - 1
