"""Chat templates of files, and conversations with tools."""

import json

import pytest

from tests.data.loading import make_encoder
from utils.arguments import InputError
from utils.data.chat_templates import set_chat_template
from utils.data.comparison import Comparison
from utils.data.tokenization import text_key

TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "says </s> <pad>"}}]
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "</s>"}}}
PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Because.", "name": "look_up"},
]
TEMPLATE = """{% if tools %}Tools: {{ tools | tojson }}{{ eos_token }}{% endif %}
{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% for call in m['tool_calls'] or [] %}{{ call | tojson }}{% endfor %}{{ eos_token }}{% endfor %}
{% if add_generation_prompt %}assistant: {% endif %}"""


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["turns", "template"])
def test_tools_and_their_calls_are_rendered_and_spell_no_special_token(opt_tokenizer, template):
    encoder = make_encoder(opt_tokenizer, template)
    answers = ["It is so.", [{"role": "assistant", "content": "", "tool_calls": [CALL]}]]
    (row,) = encoder.rows([Comparison(PROMPT, answers, [0, 1], "s", tools=TOOLS)])
    assert row["dropped"] == "" and row["answers"] == [0, 1]
    first, second = (opt_tokenizer.decode(ids) for ids in row["input_ids"])
    for part in ("look_up", "says", "Be brief.", "Why?", "Because.", '"word"'):
        assert part in first
    assert second.count('"word"') == 2 and first.count('"word"') == 1
    # Of text, no token is special: those that are, are the template's and the two ends.
    plain, expected = [{"role": m["role"], "content": m["content"]} for m in PROMPT], 2
    if template:
        rendered = opt_tokenizer.apply_chat_template([*plain, *plain[:1]], tokenize=False)
        expected = rendered.count("</s>") + 1  # the tools close with one too
    for ids in row["input_ids"]:
        assert sum(token in opt_tokenizer.all_special_ids for token in ids) == expected


def test_tool_calls_make_answers_different(opt_tokenizer):
    calls = [{"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": i}]} for i in "ab"]
    assert text_key([calls[0]]) != text_key([calls[1]])
    (row,) = make_encoder(opt_tokenizer).rows(
        [Comparison(PROMPT, [[call] for call in calls], [0, 1], "s")]
    )
    assert row["dropped"] == "" and len(set(row["answer_keys"])) == 2


def test_a_template_of_a_file_replaces_the_tokenizers(tmp_path, opt_tokenizer):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    encoder = make_encoder(opt_tokenizer, "{{ messages }}")
    set_chat_template(opt_tokenizer, str(tmp_path / "chat.jinja"))
    (row,) = encoder.rows([Comparison([{"role": "user", "content": "Q"}], ["a", "b"], [0, 1], "s")])
    assert opt_tokenizer.decode(row["input_ids"][0]) == "<Q><a></s>"
    assert opt_tokenizer.save_pretrained(tmp_path / "saved")
    saved = [path.read_text() for path in (tmp_path / "saved").iterdir()]
    assert any("<{{ m['content'] }}>" in text or json.dumps("<{{") in text for text in saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"{% for m in messages %}", "Unexpected end of template"),
        (b"{{ messages[5]['content'].strip() }}", "no element 5"),
        (b"{{ raise_exception('never') }}", "never"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_a_template_that_renders_nothing_is_an_error(tmp_path, opt_tokenizer, content, message):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        set_chat_template(opt_tokenizer, str(path))
    assert f"--chat_template {path}" in str(caught.value)
