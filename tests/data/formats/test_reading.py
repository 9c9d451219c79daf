"""Which columns are read, and that no text of the conversation is lost."""

import csv
import json

import pytest

from tests.conftest import bot, user, write_jsonl
from tests.data.loading import load, make_encoder
from utils.data.comparison import Comparison
from utils.data.formats.columns import parse_columns
from utils.data.formats.reading import plan_reading
from utils.data.sources.names import Source
from utils.evaluation.rows import open_source
from utils.settings import InputError

NAN = float("nan")
A, B = [user("Q"), bot("a")], [user("Q"), bot("b")]
START = "\n\nHuman: Q\n\nAssistant:"


def plan(rows, *columns, **options):
    rows = rows if isinstance(rows, list) else [rows]
    return plan_reading(rows, "some.csv", parse_columns(columns), **options)


def read(row):
    comparison = plan(row).reader(row, "s")
    return comparison.prompt, list(comparison.responses)


def test_history_and_input_stand_around_the_instruction():
    row = {"instruction": "Q", "chosen": "a", "rejected": "b"} | {
        "input": "I",
        "history": [["R", "c"], ["S", "d"]],
    }
    turns = [user("R"), bot("c"), user("S"), bot("d"), user("Q\n\nI")]
    assert read(row) == (turns, ["a", "b"])
    assert read({**row, "history": json.dumps(row["history"])}) == (turns, ["a", "b"])
    assert read({**row, "history": turns[:-1]}) == (turns, ["a", "b"])
    prompt = {"prompt": "Q\n\nI", "chosen": "a", "rejected": "b", "history": row["history"]}
    assert read(prompt) == (turns, ["a", "b"])
    assert read({**prompt, "history": []}) == ("Q\n\nI", ["a", "b"])
    for bad in ("R: c", [["R"]], [["R", 7]], 7):
        with pytest.raises(ValueError, match="history"):
            read({**row, "history": bad})


def test_a_question_is_the_users_message_unless_it_has_turns():
    row = {"chosen": "a", "rejected": "b"}
    for name in ("question", "query", "input", "instruction", "history"):
        assert read({**row, name: "Q"})[0] == [user("Q")]
        assert read({**row, name: START})[0] == START
        assert read({**row, name: json.dumps([user("Q")])})[0] == [user("Q")]


def test_an_empty_prompt_gives_way_to_the_next_column():
    whole = {"chosen": f"{START} a", "rejected": f"{START} b"}
    for empty in (None, "", " ", NAN, []):
        if empty != []:
            assert read({"prompt": empty, **whole}) == (START, [" a", " b"])
        row = {"prompt": empty, "question": "Q", "chosen": "a", "rejected": "b"}
        assert read(row)[0] == [user("Q")]
        assert read({"prompt": empty, "chosen": A, "rejected": B}) == ([user("Q")], ["a", "b"])
    assert read({"prompt": "P", "question": "Q", "chosen": "a", "rejected": "b"})[0] == "P"


def test_messages_may_end_with_one_of_the_answers():
    for row in ({"chosen": "a", "rejected": "b"}, {"chosen": A, "rejected": B}):
        for turns in (A, B, [user("Q")]):
            assert read({**row, "messages": turns}) == ([user("Q")], ["a", "b"])


ASK, GOOD, BAD = "How do I bake bread?", "With flour and water.", "I do not know that."
SAID = [user(ASK)]
GOOD_CHAT, BAD_CHAT = [*SAID, bot(GOOD)], [*SAID, bot(BAD)]
PAIR = {"chosen": GOOD, "rejected": BAD}
CHATS = {"chosen": GOOD_CHAT, "rejected": BAD_CHAT}
TURNS = f"\n\nHuman: {ASK}\n\nAssistant:"
PROSE = "These words are nowhere in the conversation."

# The columns of public data sets: the prompt that comes out, and what is not read.
PUBLIC = {
    "Intel/orca_dpo_pairs": ({"system": "", "question": ASK, **PAIR}, SAID, "none"),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        {
            "system": "",
            "input": ASK,
            **PAIR,
            "generations": [GOOD, BAD],
            "labelling_prompt": [user(PROSE)],
            "raw_labelling_response": PROSE,
            "rating": [9.0, 1.0],
            "rationale": PROSE,
            "original_chosen": GOOD,
        },
        SAID,
        "generations, labelling_prompt, raw_labelling_response, rating, rationale, original_chosen",
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "How do I", "input": "bake?", **PAIR, "history": [["Hi", "Yes?"]]},
        [user("Hi"), bot("Yes?"), user("How do I\n\nbake?")],
        "none",
    ),
    "axolotl, chat_template.default": (
        {"messages": SAID, "chosen": bot(GOOD), "rejected": bot(BAD)},
        SAID,
        "none",
    ),
    "axolotl, chatml.argilla": (
        {"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD},
        SAID,
        "none",
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": ASK, "prompt_id": "a1", **CHATS, "messages": GOOD_CHAT, "score_chosen": 8.0},
        SAID,
        "prompt_id, messages",
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        {"source": "x", **CHATS, "prompt": None, "question": ASK},
        SAID,
        "none",
    ),
    "jondurbin/truthy-dpo": (
        {"id": "1", "source": "x", "system": "Be true.", "prompt": ASK, **PAIR},
        f"Be true.\n\n{ASK}",
        "none",
    ),
    "Dahoas/rm-static": ({"prompt": TURNS, "response": GOOD, **PAIR}, TURNS, "response"),
    "Anthropic/hh-rlhf": ({"chosen": TURNS + GOOD, "rejected": TURNS + BAD}, TURNS, "none"),
    "argilla/Capybara-Preferences": (
        {"conversation": [{"input": ASK, "output": PROSE}], "prompt": ASK, **CHATS},
        SAID,
        "conversation",
    ),
    "argilla/dpo-mix-7k": (
        {"dataset": PROSE, **CHATS, "chosen_rating": 5.0},
        SAID,
        "dataset, chosen_rating",
    ),
    "openai/webgpt_comparisons": (
        {
            "question": {"full_text": ASK, "id": "1"},
            "answer_0": GOOD,
            "answer_1": BAD,
            "score_0": 1,
            "score_1": -1,
            "quotes_0": {"title": [PROSE], "extract": [PROSE]},
        },
        SAID,
        "quotes_0",
    ),
    "arena, 140k": (
        {
            "conversation_a": GOOD_CHAT,
            "conversation_b": BAD_CHAT,
            "winner": "model_a",
            "full_conversation": [{"user": SAID[0], "model_side_a": bot(GOOD)}],
            "conv_metadata": {"turns": 1},
        },
        SAID,
        "full_conversation, conv_metadata",
    ),
    "openbmb/UltraFeedback": (
        {
            "instruction": ASK,
            "completions": [
                {"response": GOOD, "overall_score": 2, "critique": PROSE},
                {"response": BAD, "overall_score": 1, "critique": PROSE},
            ],
            "correct_answers": [PROSE],
        },
        SAID,
        "correct_answers",
    ),
    "berkeley-nest/Nectar": (
        {
            "prompt": TURNS,
            "answers": [{"answer": GOOD, "rank": 1}, {"answer": BAD, "rank": 2}],
            "turns": 1,
            "source": ["x"],
        },
        TURNS,
        "turns, source (source names no row where it is no text of at most 200 characters)",
    ),
    "allenai/reward-bench": (
        {"prompt": ASK, "chosen_model": "A B C D", **PAIR, "subset": "x"},
        ASK,
        "chosen_model",
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_are_read_and_what_is_not_read_is_named(name):
    row, prompt, others = PUBLIC[name]
    reading = plan(row)
    comparison = reading.reader(row, "s")
    assert (comparison.prompt, list(comparison.responses)) == (prompt, [GOOD, BAD])
    assert comparison.ranks == [0, 1]
    assert reading.note.endswith(f"; not read: {others}")


LOST = {
    "a document beside bare answers": ({"document": PROSE, **PAIR}, "document"),
    "any text beside bare answers": ({"title": PROSE, "id": 7, **PAIR}, "title"),
    "a system text does not ask": ({"system": "Be brief.", "story": PROSE, **PAIR}, "story"),
    "empty prompts": ({"prompt": "", "text": PROSE, **PAIR}, "text"),
    "context beside a prompt": ({"prompt": ASK, "context": "Bread", **PAIR}, "context"),
    "a name in two words": ({"prompt": ASK, "userMessages": [user(PROSE)], **PAIR}, "userMessages"),
    "another question": ({"prompt": ASK, "question": "Why?", "query": ASK, **PAIR}, "question"),
    "the document as source": ({"prompt": ASK, "source": PROSE * 9, **PAIR}, "source"),
    "a sentence as source": ({"source": PROSE, **PAIR}, "source"),
    "no spaces between words": (
        {"prompt": ASK, "passage": "\u4eca\u65e5\u306f", **PAIR},
        "passage",
    ),
    "spelled messages": ({"prompt": ASK, "turns": json.dumps([user(PROSE)]), **PAIR}, "turns"),
    "a short name of the system": ({"prompt": ASK, "sys": PROSE, **PAIR}, "sys"),
    "a table beside a question": ({"question": ASK, "schema": PROSE, **PAIR}, "schema"),
    "of transcripts": ({"chosen": TURNS + GOOD, "rejected": TURNS, "post": PROSE}, "post"),
    "for scoring": ({"prompt": ASK, "response": GOOD, "instruction": PROSE}, "instruction"),
}


@pytest.mark.parametrize("name", LOST)
def test_text_that_nobody_reads_is_an_error_with_its_remedy(name):
    row, column = LOST[name]
    ranked = "chosen" in row
    with pytest.raises(InputError) as caught:
        plan(row, ranked=ranked)
    said = str(caught.value)
    for part in (f"some.csv: {column}: not read", f"={column}, or --columns ignore={column}"):
        assert part in said
    assert "pairs: prompt+chosen+rejected" in said
    assert column in plan(row, f"ignore={column}", ranked=ranked).note.split("not read: ")[1]


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (PROSE, "system=chat_history, or"),
        ([user(PROSE), bot("c")], "history=chat_history, or"),
        ([[PROSE, "c"]], "history=chat_history, or"),
        ([PROSE, "c"], None),
        ({"turn": PROSE}, None),
    ],
)
def test_the_remedy_can_hold_the_values(value, remedy):
    for row in ({"prompt": ASK, **PAIR}, {"prompt": ASK, "responses": ["a", "b"], "ranks": [1, 2]}):
        row = {**row, "chat_history": value}
        with pytest.raises(InputError, match="chat_history: not read") as caught:
            plan(row)
        expected = remedy if "chosen" in row or value == PROSE else None
        assert ("as in --columns " in str(caught.value)) == bool(expected)
        assert ("input=chat_history" in str(caught.value)) == (value == PROSE and "chosen" in row)
        if expected:
            assert expected in str(caught.value)
            word = expected.removesuffix(", or")
            assert plan(row, word).reader(row, "s").prompt != ASK


ALLOWED = {
    "rationale": PROSE,
    "judge_prompt": PROSE,
    "prompt_category": "open questions and answers",
    "human_feedback": PROSE,
    "questionId": "a b c",
    "created_at": "Mon Jan 5 10:00:00 2026",
    "model": "Some large model of this year",
    "user": "Ada Lovelace",
    "notes": PROSE,
    "history": "",
    "context": f"{GOOD} ",
    "full_prompt": f"<|user|>\n{ASK}\n<|assistant|>\n",
    "turns": 3,
}


@pytest.mark.parametrize("column", ALLOWED)
def test_other_columns_beside_a_prompt_are_allowed(column):
    row = {"prompt": ASK, **PAIR, column: ALLOWED[column]}
    assert plan(row).reader(row, "s") == Comparison(ASK, [GOOD, BAD], (0, 1), "s")


def test_a_category_beside_bare_answers_is_no_text():
    rows = [{**PAIR, "kind": f"a question of kind number {i % 2}"} for i in range(8)]
    assert plan(rows).note.endswith("; not read: kind")


def test_rows_that_cannot_be_read_are_passed_over():
    rows = [{**PAIR, "prompt": None}, b"{", {"prompt": ASK, **PAIR, "passage": PROSE}]
    with pytest.raises(InputError, match="passage: not read"):
        plan(rows)
    assert plan(rows[:2]).note == (
        "some.csv: layout pairs; read: chosen, rejected, prompt; not read: none"
    )


def test_columns_by_hand():
    row = {"frage": ASK, "besser": GOOD, "schlechter": BAD, "prompt": PROSE, "wer": "Ada"}
    words = ("prompt=frage", "chosen=besser", "rejected=schlechter")
    with pytest.raises(InputError, match="prompt: not read.*reads prompt=frage, chosen=besser"):
        plan(row, *words)
    reading = plan(row, *words, "ignore=prompt")
    assert reading.reader(row, "s") == Comparison(ASK, [GOOD, BAD], (0, 1), "s")
    assert reading.note == (
        "some.csv: layout pairs; read: prompt=frage, chosen=besser, rejected=schlechter; "
        "not read: prompt, wer"
    )
    assert plan({**row, "prompt": GOOD}, *words).reader(row, "s").prompt == ASK
    below = {"Q": ASK, "passage": PROSE, **PAIR}
    comparison = plan(below, "instruction=Q", "input=passage").reader(below, "s")
    assert comparison.prompt == [user(f"{ASK}\n\n{PROSE}")]


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_texts_of_a_csv_file_stay_text_under_any_name(tmp_path, opt_tokenizer):
    rows = [
        {"frage": "7", "query": "7", "system_prompt": "1.50", "a": "NA", "rejected": "null"},
        {"frage": "8", "query": "8", "system_prompt": "2.0", "a": "007", "rejected": "nan"},
    ]
    path = write_csv(tmp_path / "rows.csv", rows)
    asked = ("query=query", "prompt=frage", "chosen=a")
    source = open_source(Source(str(path), columns=parse_columns(asked[1:])))
    assert [source.reader(row, "s").responses for row in source.rows] == [
        ["NA", "null"],
        ["007", "nan"],
    ]
    assert [source.reader(row, "s").prompt for row in source.rows] == ["1.50\n\n7", "2.0\n\n8"]
    encoder = make_encoder(opt_tokenizer)
    texts = {}
    for words in (asked[1:], asked[::2]):
        table = load(path, encoder, tmp_path, columns=words)["train"]
        ids = [row["input_ids"][0] for row in table]
        texts[words] = opt_tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2  # one for each meaning
    assert texts[asked[1:]] == ["1.50\n\n7 NA", "2.0\n\n8 007"]
    assert texts[asked[::2]] == [
        f"\n\n{s}\n\nHuman: {q}\n\nAssistant: {a}"
        for s, q, a in (("1.50", "7", "NA"), ("2.0", "8", "007"))
    ]


def test_a_file_with_sources_names_the_columns_of_each(tmp_path, opt_tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", [{"frage": ASK, **PAIR, "text": PROSE}])
    mix = tmp_path / "mix.yaml"
    mix.write_text(
        "sources: [{path: rows.jsonl, columns: {prompt: frage, ignore: [text]}}]", encoding="utf-8"
    )
    (row,) = load(mix, make_encoder(opt_tokenizer), tmp_path, columns=["prompt=nothing"])["train"]
    text = opt_tokenizer.decode(row["input_ids"][0], skip_special_tokens=True)
    assert text == f"{ASK} {GOOD}"
    mix.write_text("sources: [{path: rows.jsonl, columns: [prompt]}]", encoding="utf-8")
    with pytest.raises(InputError, match=r"rows.jsonl: columns is \['prompt'\]"):
        load(mix, make_encoder(opt_tokenizer), tmp_path)
