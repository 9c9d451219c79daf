"""OpenRLHF: the model and tokenizer as its trainers load them."""

import torch
from exchange import FOLDER, answer, rendered
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.utils import get_tokenizer
from safetensors.torch import load_file

model = get_llm_for_sequence_regression(
    FOLDER, "reward", attn_implementation="eager", param_dtype="fp16"
).eval()

# It knows 16 bits alone. With the weights in fp32, no rounding hides what it does otherwise.
model.float().load_state_dict(load_file(f"{FOLDER}/model.safetensors"))
tokenizer = get_tokenizer(FOLDER, model, "left")


@torch.no_grad()
def score(rows):
    """A batch padded at the left, without special tokens but those in the text."""
    texts = rendered(tokenizer, rows)
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    return model(batch.input_ids, batch.attention_mask).tolist()


answer(score)
