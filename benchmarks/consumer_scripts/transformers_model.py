"""Transformers: the model's own forward, on a padded batch."""

import torch
from exchange import FOLDER, answer, is_chat, wholes
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER)


@torch.no_grad()
def score(rows):
    """The logits of all rows at once."""
    encode = tokenizer.apply_chat_template if is_chat(rows) else tokenizer
    options = {"return_dict": True} if is_chat(rows) else {}
    batch = encode(wholes(rows), padding=True, return_tensors="pt", **options)
    return model(**batch).logits[:, 0].tolist()


answer(score)
