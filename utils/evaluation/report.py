"""Results as text for people: tables on the screen, the model card."""

import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

METRICS = (
    ("comparisons", "comparisons", "{:,}"),
    ("pairs", "pairs", "{:,}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("ties", "ties", "{:,}"),
    ("margin", "margin", "{:.3f}"),
    ("better_score", "better", "{:.3f}"),
    ("worse_score", "worse", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
)


def print_scores(prompt: str, labelled: Sequence[tuple[str, str, float]]) -> None:
    """Print the answers to one prompt with their scores; the best score stands out.

    Args:
        prompt: shown above the answers.
        labelled: a label, the answer and its score, for each answer.
    """
    table = Table(title=Text(prompt), title_justify="left", title_style="bold", show_lines=True)
    table.add_column("answer")
    table.add_column("text", ratio=1, overflow="fold")
    table.add_column("score", justify="right")
    best = max(score for _, _, score in labelled)
    for label, text, score in labelled:
        style = "bold green" if score == best and len(labelled) > 1 else ""
        table.add_row(label, Text(text.strip()), f"{score:.4f}", style=style)
    Console().print(table)


def print_results(results: dict[str, dict]) -> None:
    """Print metrics (metrics.summarize) by source, one row each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("source", overflow="fold")
    for _, title, _ in METRICS[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for source, result in results.items():
        table.add_row(Text(source), *(form.format(result[name]) for name, _, form in METRICS[1:]))
    Console().print(table)


def model_card(args, settings: dict, counts: dict, result: dict) -> str:
    """The README.md of a saved reward model.

    Args:
        args: main.py's.
        settings: how text becomes tokens.
        counts: of the comparisons.
        result: of the last evaluation (metrics.summarize).
    """
    rows = "\n".join(f"| {title} | {form.format(result[name])} |" for name, title, form in METRICS)
    alone = "(Transformers' own forward reads the end token: score with `rw_eval.py`)"
    pooling = {
        "end": "the end token",
        "first_pad": f"one padding token after the end token {alone}",
        "mean": f"all tokens of the answer, as the mean of their values {alone}",
    }[settings["score_position"]]
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags:
- reward-model
---

# Reward model

Gives one number to a prompt and an answer, higher for the better answer. Finetuned from
`{args.model_name_or_path}` on {counts["train_comparisons"]:,} comparisons
({", ".join(f"`{path}`" for path in args.data_path)}).

## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
text = prompt + answer + {settings["end_token"]!r}
score = model(**tokenizer(text, return_tensors="pt")).logits[0, 0]
```

The score is read at {pooling}. A text prompt is
{"rendered as one user message" if settings["apply_chat_template"] else "taken as it stands"}; chat
messages are rendered with the tokenizer's chat template, without one as
`\\n\\nHuman: ...\\n\\nAssistant: ...`. `rw_eval.py --model_name_or_path <folder>` does all of this.

## Evaluation

Held-out comparisons after the last step:

| metric | value |
|---|---|
{rows}

## Training

```json
{json.dumps({"settings": settings, "arguments": _card_arguments(args)}, indent=2)}
```
"""


def _card_arguments(args) -> dict:
    names = (
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "weight_decay",
        "dtype",
        "zero_stage",
        "lora_dim",
        "seed",
    )
    return {name: getattr(args, name) for name in names}
