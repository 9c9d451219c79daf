"""TRL: the rewards that GRPOTrainer itself computes before each step."""

import tempfile
from collections.abc import Callable, Sequence

from datasets import Dataset
from exchange import FOLDER
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def trainer_rewards(
    reward: str | Callable, prompts: Sequence, completions: Sequence
) -> list[float]:
    """The rewards of a trainer whose policy, a tiny one, has given these completions.

    Args:
        reward: what it gets as `reward_funcs`.
        prompts, completions: both texts, or both messages.
    """
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
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
            LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)),
            reward,
            args=arguments,
            train_dataset=Dataset.from_list(inputs),
            processing_class=tokenizer,
        )
        rewards = trainer._calculate_rewards(inputs, prompts, completions, [[0]] * len(prompts))
    return rewards[:, 0].tolist()
