"""DeepSpeed-Chat, whose step 3 is no package: its rule restated (`forward_value`)."""

import math
from pathlib import Path

import torch
from exchange import FOLDER, answer, is_chat, rendered, wholes
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
tokenizer.pad_token = tokenizer.eos_token

config = AutoConfig.from_pretrained(FOLDER)
model = nn.Module()
model.rwtransformer = AutoModel.from_config(config).eval()
model.rwtransformer.resize_token_embeddings(8 * math.ceil(len(tokenizer) / 8))
width = getattr(config, "word_embed_proj_dim", config.hidden_size)
model.v_head = nn.Linear(width, 1, bias=False)
model.load_state_dict(torch.load(Path(FOLDER, "pytorch_model.bin")))


@torch.no_grad()
def score(rows):
    """The value before the first padding that follows the second token."""
    if is_chat(rows):
        batch = tokenizer(
            rendered(tokenizer, rows), padding=True, add_special_tokens=False, return_tensors="pt"
        )
    else:
        batch = tokenizer(wholes(rows), padding=True, return_tensors="pt")
    values = model.v_head(model.rwtransformer(**batch).last_hidden_state)[:, :, 0]

    scores = []
    for ids, row in zip(batch.input_ids.tolist(), values.tolist(), strict=True):
        padding = [i for i in range(2, len(ids)) if ids[i] == tokenizer.pad_token_id]
        scores.append(row[(padding or [len(ids)])[0] - 1])
    return scores


answer(score)
