"""The model card: README.md of a saved reward model."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from string import Template

from huggingface_hub import ModelCardData

from utils.data.sources.names import parse_word
from utils.output.tables import markdown_grid, number_text
from utils.settings import REFUSED, SIZE
from utils.training.settings import LENGTH, TrainingSettings

METRICS = (
    ("comparisons", "comparisons", ","),
    ("pairs", "pairs (better, worse)", ","),
    ("accuracy", "accuracy (ties count half)", ".4f"),
    ("ties", "ties", ","),
    ("loss", "loss (nats a comparison)", ".4f"),
    ("margin", "margin, mean", ".3f"),
    ("better_score", "score of better answers, mean", ".3f"),
    ("worse_score", "score of worse answers, mean", ".3f"),
    ("score_mean", "score of all answers, mean", ".3f"),
    ("score_std", "score of all answers, standard deviation", ".3f"),
)

CARD = Template("""---
$front_matter
---

# Reward model

Gives one number to a prompt and an answer, higher for the better answer. Finetuned from
`$base` on $comparisons comparisons.

## Use

$use

`python rw_eval.py --model_name_or_path FOLDER --prompt "..." --response "..."` scores in the same
way, and with `--data_path` whole data sets.

The score is read at $position. A text prompt is $prompt;
messages are rendered with the tokenizer's chat template$date.

## Evaluation

Held-out comparisons, when the model was saved:

$metrics

![Loss, accuracy, margin and learning rate](training_curves.png)

## Checks

Made when the model was saved, on a fixed sample of the held-out comparisons:

$checks

## Data

$data

In all, $comparisons comparisons trained and $held_out were held out.

## Settings

```json
$settings
```
""")

TRANSFORMERS = Template("""Transformers:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER")


$join


def reward(prompts, completions, **kwargs):
    texts = [join(prompt, answer) for prompt, answer in zip(prompts, completions)]
    batch = tokenizer(texts, add_special_tokens=$leading, padding=True, return_tensors="pt")
    return model(**batch).logits[:, 0].tolist()
```

`reward` is also a function for TRL's GRPO and RLOO. Messages:

```python
def reward_messages(conversations):
    options = {"padding": True, "return_tensors": "pt", "return_dict": True}
    batch = tokenizer.apply_chat_template(conversations, **options)
    return model(**batch).logits[:, 0].tolist()


reward_messages([[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]])
```

The chat template ends a conversation with $end_token and nothing behind it, since who renders with
it scores what comes last. It breaks special tokens that a message spells by an invisible space;
those in calls of tools and in lists of parts, and those in plain texts, stay special for others.
Of more than $max_seq_len tokens, `rw_eval.py` cuts the prompt as training did, and others do not.

`python rw_eval.py --model_name_or_path FOLDER --serve 8000` serves the scores to OpenRLHF, TRL and
who speaks vLLM's /classify. `main.py --save_format dschat` writes for DeepSpeed-Chat's step 3.""")

JOIN_TEXT = Template("""def join(prompt, answer):
    # As in training: one space at the seam, if there is no white space.
    seam = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
    return prompt + seam + answer + $end_token""")

JOIN_MESSAGES = """def join(prompt, answer):
    # As in training: the prompt is one message of the user.
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)"""

DEEPSPEED_CHAT = """DeepSpeed-Chat: this folder is for step 3, `--critic_model_name_or_path FOLDER`.
It reads the last token before the padding. Where it pads with the end token (OPT, GPT-2), that is
the end token only if it is one of its own: `--add_eot_token` in training and in step 3.

Transformers and TRL would take none of these weights and go on with random ones: `main.py
--save_format hf` writes a folder for them."""


# Where the score is read, by --score_position.
ALONE = "(Transformers' own forward reads the end token: score with `rw_eval.py`)"
POSITIONS = {
    "end": "the end token",
    "first_pad": f"one padding token after the end token {ALONE}",
    "mean": f"all tokens of the answer, as the mean of their values {ALONE}",
}


def model_card(
    args: TrainingSettings, settings: dict, counts: dict, result: dict, checks: Iterable
) -> str:
    """The README.md of a saved reward model.

    Args:
        args: main.py's.
        settings: how text becomes tokens (TextSettings).
        counts: of the data, as in training_args.json.
        result: of the evaluation when it was saved (metrics.summarize).
        checks: of the saved model (checks.Check); none before they are made.
    """
    use, prompt, date = DEEPSPEED_CHAT, "taken as it stands", ""
    if args.save_format != "dschat":
        use = _use_in_transformers(settings)
    if settings["apply_chat_template"]:
        prompt = "rendered as one user message"
    if args.chat_template_date:
        date = f" (which writes {args.chat_template_date} as the date of every conversation)"

    metrics = [(title, number_text(result[name], form)) for name, title, form in METRICS]
    results = [(c.name, c.finding, "ok" if c.passed else "FAILED") for c in checks]
    results = results or [("none", "the run ended before they were made", "")]
    arguments = args.flags(REFUSED, SIZE, LENGTH)

    return CARD.substitute(
        front_matter=_front_matter(args),
        base=args.model_name_or_path,
        comparisons=f"{counts['train_comparisons']:,}",
        use=use,
        position=POSITIONS[settings["score_position"]],
        prompt=prompt,
        date=date,
        metrics=_table(("metric", "value"), metrics),
        checks=_table(("check", "found", "result"), results),
        data=_table(("data", "use", "read", "kept", "dropped"), _data_rows(counts)),
        held_out=f"{counts['eval_comparisons']:,}",
        settings=json.dumps({"settings": settings, "arguments": arguments}, indent=2),
    )


def _use_in_transformers(settings: dict) -> str:
    is_chat, end_token = settings["apply_chat_template"], settings["end_token"]
    return TRANSFORMERS.substitute(
        join=JOIN_MESSAGES if is_chat else JOIN_TEXT.substitute(end_token=repr(end_token)),
        leading=not is_chat,  # the chat template writes it itself
        end_token=f"`{end_token}`",
        max_seq_len=settings["max_seq_len"],
    )


def _front_matter(args: TrainingSettings) -> str:
    # Only what is on the hub may be named there.
    base = None if os.path.exists(args.model_name_or_path) else args.model_name_or_path
    paths = args.data_path + (args.eval_data_path or [])
    names = [parse_word(path).repository for path in paths]
    return ModelCardData(
        library_name="transformers" if args.save_format != "dschat" else None,
        pipeline_tag="text-classification",
        tags=["reward-model"] + (["deepspeed-chat"] if args.save_format == "dschat" else []),
        base_model=base,
        datasets=[name for name in dict.fromkeys(names) if name] or None,
    ).to_yaml()


def _data_rows(counts: dict) -> Iterator[tuple[str, ...]]:
    for use in ("train", "eval"):
        for path, count in counts[use].items():
            dropped = [f"{reason}: {number:,}" for reason, number in count["dropped"].items()]
            numbers = f"{count['comparisons']:,}", f"{count['kept']:,}"
            yield f"`{path}`", use, *numbers, ", ".join(dropped) or "none"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_grid([header, ["---"] * len(header), *rows])
