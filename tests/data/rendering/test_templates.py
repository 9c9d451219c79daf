"""Chat templates of files, and conversations with tools."""

import json

import pytest
import transformers

from tests.conftest import save_language_model
from tests.data.loading import make_encoder
from utils.data.comparison import Comparison
from utils.data.rendering.templates import fix_date, set_chat_template
from utils.data.tokenization import text_key
from utils.model import pretrained
from utils.settings import InputError
from utils.training.model import make_training_encoder
from utils.training.settings import parse_training_arguments

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


ASKING = [
    ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2001"),
    ('{{- strftime_now( "%B %d, %Y" ) -}}', "February 03, 2001"),
    ("{{ 'Today: ' + strftime_now('%Y-%m-%d') + '.' }}", "Today: 2001-02-03."),
    ("{% set day = strftime_now(format='%d') | int - 1 %}{{ day }}", "2"),
    ("{{ strftime_now('%H:%M %%') }}", "00:00 %"),
    ("{{ strftime_now('it\"s %Y') }}", 'it"s 2001'),
    (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ date_string }}",
        "03 Feb 2001",
    ),
    ("{{ 'no' if strftime_now is not defined else strftime_now('%y') }}", "01"),
]


@pytest.mark.parametrize(("template", "expected"), ASKING)
def test_a_date_stands_in_for_today(opt_tokenizer, template, expected):
    opt_tokenizer.chat_template = template
    assert fix_date(opt_tokenizer, "2001-02-03") == "2001-02-03"
    assert "strftime_now" not in opt_tokenizer.chat_template
    assert opt_tokenizer.apply_chat_template([{"role": "user"}], tokenize=False) == expected
    assert fix_date(opt_tokenizer, "2002-03-04") is None  # nobody asks any more


def test_each_of_several_templates_gets_the_date(opt_tokenizer):
    opt_tokenizer.chat_template = {"default": TEMPLATE, "tool_use": ASKING[0][0]}
    assert fix_date(opt_tokenizer, "2001-02-03")
    assert opt_tokenizer.chat_template == {"default": TEMPLATE, "tool_use": "{{ '03 Feb 2001' }}"}


@pytest.mark.parametrize("template", [None, TEMPLATE, "strftime_now('%d') is no code here"])
def test_a_template_without_a_date_stays_as_it_is(opt_tokenizer, template):
    opt_tokenizer.chat_template = template
    assert fix_date(opt_tokenizer, None) is None and opt_tokenizer.chat_template == template


@pytest.mark.parametrize(
    "template",
    [
        "{% set form = '%d' %}{{ strftime_now(form) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        "{{ strftime_now('%d' + ' %b') }}",
    ],
)
def test_a_template_that_asks_for_the_date_in_another_way_is_refused(opt_tokenizer, template):
    opt_tokenizer.chat_template = template
    with pytest.raises(InputError, match="asks for today's date other than by strftime_now with"):
        fix_date(opt_tokenizer, "2001-02-03")


def test_a_run_keeps_the_date_that_it_began_with(tmp_path, opt_tokenizer, monkeypatch):
    """Whatever the day is: by the flag, by the state that it goes on from, by what it saved."""
    opt_tokenizer.chat_template = TEMPLATE + ASKING[0][0]
    folder = str(save_language_model(tmp_path, opt_tokenizer))
    words = ["--model_name_or_path", folder, "--output_dir", str(tmp_path / "out")]

    def prepare(*more, before=None):
        args = parse_training_arguments([*words, "--max_seq_len", "64", *more])
        args, encoder = make_training_encoder(args, pretrained.load_config(folder), before)
        return args.chat_template_date, encoder

    today, encoder = prepare()
    assert len(today) == 10 and "strftime_now" not in encoder.tokenizer.chat_template
    date, encoder = prepare("--chat_template_date", "2001-02-03")
    assert prepare(before=date)[0] == date == "2001-02-03"
    assert prepare("--chat_template_date", "2001-02-04", before=date)[0] == "2001-02-04"
    encoder.tokenizer.save_pretrained(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.apply_chat_template(PROMPT, tokenize=False).endswith("03 Feb 2001</s>")
    with pytest.raises(SystemExit):
        prepare("--chat_template_date", "3 Feb")
    opt_tokenizer.chat_template = TEMPLATE
    opt_tokenizer.save_pretrained(folder)
    assert prepare("--chat_template_date", "2001-02-03")[0] is None
