"""TRL: the rewards of GRPOTrainer, given the function of docs/serving.md that asks our server."""

import tempfile

from datasets import Dataset
from documented import trl_reward
from exchange import FOLDER, REQUEST, answer, is_chat
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
reward = trl_reward(REQUEST["servers"][0])


def score(rows):
    """What the trainer itself computes before each step; its texts have no end token."""
    prompts, completions = map(list, zip(*rows, strict=True))
    if not is_chat(rows):
        completions = [text.removesuffix(REQUEST["end"]) for text in completions]
    inputs = [{"prompt": prompt} for prompt in prompts]

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            folder,
            per_device_train_batch_size=2,
            num_generations=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = GRPOTrainer(
            policy,
            reward,
            args=arguments,
            train_dataset=Dataset.from_list(inputs),
            processing_class=tokenizer,
        )
        rewards = trainer._calculate_rewards(inputs, prompts, completions, [[0]] * len(rows))
    return rewards[:, 0].tolist()


answer(score)
