"""Reward models that others trained get the scores that plain Transformers gives them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import main
import rw_eval
from tests.conftest import (
    SIZES,
    TEXTS,
    bot,
    train_opt_tokenizer,
    train_tokenizer,
    user,
    write_jsonl,
)
from tests.data.chat_styles import GEMMA, GRANITE, LLAMA, QWEN
from utils.data.comparison import Comparison
from utils.evaluation.encoder import make_scoring_encoder
from utils.evaluation.settings import parse_evaluation_arguments
from utils.model import pretrained
from utils.model.layout_trial import choose_layout
from utils.settings import InputError
from utils.training.settings import parse_training_arguments

SMALL = {**SIZES["llama"], "head_dim": 8}
# Family, changes of its config, chat template, its special tokens, and what stands before a text.
STYLES = {
    "llama": ("llama", SMALL, LLAMA, ["<s>", "<|head|>", "<|end|>", "<|eot|>"], "<s>"),
    "gemma": ("gemma2", SMALL, GEMMA, ["<s>", "<start_of_turn>", "<end_of_turn>"], "<s>"),
    "qwen": ("qwen3", SMALL, QWEN, ["<s>", "<|im_start|>", "<|im_end|>"], None),
    "gpt2": ("gpt2", SIZES["gpt2"], None, ["<s>"], None),
    "opt": ("opt", SIZES["opt"], None, ["<s>"], "</s>"),
}
ANSWERS = [" So it is. ", "No </s><|im_end|> <pad> <end_of_turn>\n", TEXTS[2], "\n\nyes"]


def save_foreign(folder, style, pad=None):
    """A sequence classifier with random weights, as others save it."""
    family, changes, template, specials, leading = STYLES[style]
    tokenizer = train_tokenizer(
        [*specials, "</s>"], leading=leading, bos_token="<s>", eos_token="</s>", pad_token=pad
    )
    tokenizer.chat_template = template
    set_seed(0)
    config = CONFIG_MAPPING[family](
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=None, eos_token_id=None, **changes
    )
    model = AutoModelForSequenceClassification.from_config(config)
    for weight in model.parameters():
        weight.data *= 4  # so that scores differ by more than rounding
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_scorer(folder, *words):
    """rw_eval.py's scorer for a command line."""
    given = ["--model_name_or_path", folder, "--dtype", "fp32", *words]
    args = parse_evaluation_arguments([str(word) for word in given])
    config = pretrained.load_config(str(folder))
    layout, _ = choose_layout(config, args.batch_layout)
    args = replace(args, batch_layout=layout)
    checked = pretrained.check_weights(str(folder), config)
    tokenizer = pretrained.load_tokenizer(str(folder))
    args, encoder = make_scoring_encoder(args, config, tokenizer, checked.is_deepspeed_chat)
    return rw_eval.load_scorer(args, config, encoder, torch.device("cpu"))


@torch.no_grad()
def plain_scores(folder, prompt, answers):
    """One sequence at a time, as a model card shows it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    scores = []
    for answer in answers:
        if tokenizer.chat_template:
            messages = [*prompt, bot(answer)]
            inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        else:
            inputs = tokenizer(f"{prompt}{answer}", return_tensors="pt")
        scores.append(model(**inputs).logits[0, 0].item())
    return scores


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("style", STYLES)
def test_scores_are_those_of_plain_transformers(tmp_path, capsys, style, layout):
    layout = "padded" if style == "gemma" else layout  # its attention cannot be exchanged
    scorer = load_scorer(save_foreign(tmp_path, style), "--batch_layout", layout)
    said = capsys.readouterr().out
    assert "the checkpoint does not say how it was trained: " in said and "--answer_end" in said
    text = "Why? <|im_start|>\n"
    prompt = [user("Hi."), bot("Yes?"), user(text)] if STYLES[style][2] else text
    expected = plain_scores(tmp_path, prompt, ANSWERS)
    assert max(expected) - min(expected) > 0.1
    (row,) = scorer([Comparison(prompt, ANSWERS, [0] * 4, "s")])
    assert row["scores"] == pytest.approx(expected, abs=1e-5)
    if STYLES[style][2]:  # a text prompt is one message
        (row,) = scorer([Comparison(text, ANSWERS, [0] * 4, "s")])
        assert row["scores"] == pytest.approx(
            plain_scores(tmp_path, [user(text)], ANSWERS), abs=1e-5
        )


def test_the_pad_token_of_a_foreign_model_may_be_its_end_token(tmp_path):
    """Transformers would look for another last token; the one that stands there is scored."""
    plain = plain_scores(save_foreign(tmp_path / "none", "gpt2"), "Q ", ["a</s>", "b"])
    scorer = load_scorer(save_foreign(tmp_path / "pad", "gpt2", pad="</s>"))
    (row,) = scorer([Comparison("Q ", ["a</s>", "b"], [0, 0], "s")])
    assert row["scores"] == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("style", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_padding_at_the_end_of_a_text_is_not_scored(tmp_path, style, layout):
    """Transformers scores the last token that is not the config's padding, be it the end token."""
    folder = save_foreign(tmp_path, style, pad="</s>")
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = AutoTokenizer.from_pretrained(folder).eos_token_id
    (folder / "config.json").write_text(json.dumps(config))
    if STYLES[style][2]:
        (folder / "chat_template.jinja").write_text(LLAMA.replace("<|eot|>", "</s></s>"))
    answers = [f"{answer}</s>" for answer in ANSWERS]
    prompt = [user("Q")] if STYLES[style][2] else "Q "
    expected = plain_scores(folder, prompt, answers)
    (row,) = load_scorer(folder, "--batch_layout", layout)(
        [Comparison(prompt, answers, [0] * 4, "s")]
    )
    assert row["scores"] == pytest.approx(expected, abs=1e-5)


def test_a_model_whose_tokenizer_has_no_end_token_is_scored(tmp_path):
    folder = save_foreign(tmp_path, "gpt2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))
    (row,) = load_scorer(folder)([Comparison("Q ", ANSWERS, [0] * 4, "s")])
    assert row["scores"] == pytest.approx(plain_scores(folder, "Q ", ANSWERS), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"lm_head.weight": torch.ones(400, 32)}, None),
        ({"score.bias": torch.ones(1)}, r"left over \(score.bias"),
        ({"score.weight": torch.ones(2, 32)}, "its head gives 2 values, not one score"),
        (
            {"score.weight": None, "v_head.summary.weight": torch.ones(1, 32)},
            r"its head has another name \(v_head.summary.weight\)",
        ),
        ({"score.weight": None}, "this is a language model, not a reward model"),
    ],
)
def test_only_a_head_that_gives_one_score_is_taken(tmp_path, changes, refusal):
    file = save_foreign(tmp_path, "llama") / "model.safetensors"
    prompt = [user("Q")]
    expected = plain_scores(tmp_path, prompt, ["a", "b"])
    weights = {**load_file(file), **changes}
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(weights, file, metadata={"format": "pt"})
    if refusal:
        with pytest.raises(InputError, match=refusal):
            load_scorer(tmp_path)
    else:
        (row,) = load_scorer(tmp_path)([Comparison(prompt, ["a", "b"], [0, 0], "s")])
        assert row["scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("settings", ["x", {"max_seq_len": 64}, {"end_token": 5}, {"a": 1}])
def test_settings_of_another_kind_are_refused(tmp_path, settings):
    file = save_foreign(tmp_path, "gpt2") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reward_settings": settings}))
    with pytest.raises(InputError, match="reward_settings in config.json are .* expected those"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("style", ["qwen", "gpt2"])
def test_the_prompt_of_a_foreign_model_is_cut_too(tmp_path, style):
    prompt = [user("Why? " * 30)] if style == "qwen" else "Why? " * 30
    comparisons = [Comparison(prompt, [TEXTS[0][:30], "no"], [0, 0], "s")]
    folder = save_foreign(tmp_path, style)
    (whole,), (cut,) = (
        load_scorer(folder, "--max_seq_len", length)(comparisons) for length in (250, 60)
    )
    assert cut["length"] == 60 and cut["cut"] == whole["length"] - 60
    for ids, before in zip(cut["input_ids"], whole["input_ids"], strict=True):
        assert ids == before[-60:]


def test_a_flag_chooses_the_end_token_and_saved_settings_say_it(tmp_path, capsys):
    folder = save_foreign(tmp_path, "qwen")
    comparison = Comparison([user("Q")], ["a", "b"], [0, 1], "s")

    def texts(*words):
        scorer = load_scorer(folder, *words)
        (row,) = scorer.encoder.rows([comparison])
        return [scorer.encoder.tokenizer.decode(ids) for ids in row["input_ids"]]

    assert texts()[0].endswith("a<|im_end|>\n")
    assert texts("--answer_end", "token")[0].endswith("a<|im_end|></s>")
    assert "answers end with </s>, and a text prompt stands as it is" in capsys.readouterr().out
    assert texts("--add_eot_token")[0].endswith("a<|im_end|><|endoftext|>")
    config = json.loads((folder / "config.json").read_text())
    capsys.readouterr()
    settings = {"end_token": "</s>", "max_seq_len": 64}  # as main.py saved them before
    for ends, close in ({}, "</s>"), ({"answer_end": "as_written"}, "<|im_end|>\n"):
        config["reward_settings"] = {**settings, **ends}
        (folder / "config.json").write_text(json.dumps(config))
        assert texts()[0].endswith(f"a{close}" if "\n" in close else "a<|im_end|></s>")
    assert "does not say" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        texts("--add_eot_token", "--answer_end", "as_written")


def test_a_folder_of_deepspeed_chat_keeps_its_end_token(tmp_path, capsys):
    save_foreign(tmp_path, "opt")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    names = {"score.weight": "v_head.weight"}
    weights = {
        names.get(name, name.replace("model.", "rwtransformer.", 1)): weight
        for name, weight in model.state_dict().items()
    }
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    scorer = load_scorer(tmp_path)
    assert "answers end with </s>" in capsys.readouterr().out
    assert scorer.encoder.settings.answer_end == "token"


def test_notes_on_a_foreign_model_are_no_part_of_data_on_standard_output(tmp_path, capsys):
    data = write_jsonl(tmp_path / "answers.jsonl", [{"prompt": "Q", "responses": ["a", "b"]}])
    words = ("--model_name_or_path", save_foreign(tmp_path, "gpt2"), "--data_path", data)
    rw_eval.main(parse_evaluation_arguments([*map(str, words), "--best_of_n"]))
    said = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in said.out.splitlines()] == ["Q"]
    assert "the checkpoint does not say how it was trained" in said.err


@pytest.mark.parametrize("config", [BertConfig, DebertaV2Config])
def test_encoders_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, config):
    tokenizer = train_opt_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    words = ["--model_name_or_path", str(tmp_path)]
    with pytest.raises(InputError, match="has no linear head `score`.*two segments"):
        rw_eval.main(parse_evaluation_arguments(words))
    monkeypatch.setattr(main.distributed, "initialize", lambda rank: torch.device("cpu"))
    words += ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="expected a causal language model"):
        main.main(parse_training_arguments(words))


def test_the_date_of_a_foreign_template_is_said_and_may_be_given(tmp_path, capsys):
    folder = save_foreign(tmp_path, "qwen")
    (folder / "chat_template.jinja").write_text(GRANITE)
    data = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}])
    words = ["--model_name_or_path", folder, "--data_path", data, "--output_dir", tmp_path / "out"]

    def lines(*more):
        rw_eval.main(
            parse_evaluation_arguments([*map(str, words), "--overwrite_output_dir", *more])
        )
        return (tmp_path / "out" / "scores.jsonl").read_text()

    today, old, again = lines(), *(lines("--chat_template_date", "2001-02-03") for _ in "ab")
    assert old == again != today
    assert "the scores hold for 2001-02-03 (--chat_template_date)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--chat_template_date was 2001-02-03"):
        rw_eval.main(parse_evaluation_arguments([*map(str, words), "--resume"]))
    assert AutoConfig.from_pretrained(folder).model_type == "qwen3"
