"""OpenRLHF: its server of a reward model, which takes rendered texts."""

from exchange import FOLDER, answer, rendered
from serving import post, served
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
flags = ["--ds.attn_implementation", "eager", "--ds.param_dtype", "fp16", "--batch_size", "4"]

with served("openrlhf.cli.serve_rm", "--reward.model_name_or_path", FOLDER, *flags) as address:
    answer(
        lambda rows: post(f"{address}/get_reward", {"query": rendered(tokenizer, rows)})["rewards"]
    )
