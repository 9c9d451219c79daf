"""RewardBench: its runner on a file of pairs; it takes messages only."""

import json
import os
import tempfile
from pathlib import Path

import torch
from exchange import FOLDER, answer, wholes
from rewardbench.rewardbench import Args, rewardbench
from transformers import BatchEncoding

if not torch.cuda.is_available():  # its pipeline calls .to("cuda")
    BatchEncoding.to = lambda self, device: self


def score(rows):
    """Both columns of the file that it writes, beside a link to the model."""
    chats = wholes(rows)
    pairs = zip(chats[::2], chats[1::2], strict=True)
    lines = [json.dumps({"chosen": better, "rejected": worse}) for better, worse in pairs]

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("model").symlink_to(FOLDER)
        Path("pairs.jsonl").write_text("\n".join(lines))
        rewardbench(
            Args(
                dataset="pairs.jsonl",
                load_json=True,
                model="model",
                not_quantized=True,
                torch_dtype="float32",
            )
        )
        written = Path("results", "model_outputs.jsonl").read_text().splitlines()

    results = map(json.loads, written)
    return [result[f"scores_{side}"] for result in results for side in ("chosen", "rejected")]


answer(score, forms=["chat"])
