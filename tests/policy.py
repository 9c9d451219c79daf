"""A tiny policy that TRL's GRPOTrainer trains with the rewards of a server.

    python -m tests.policy ADDRESS FOLDER SEED...

It reads and writes kind and rude words. The last line of the output is JSON: for each seed, the
mean reward of each step and its standard deviation, and the share of kind words.
"""

import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from benchmarks.consumer_scripts.documented import trl_reward

KIND = ["thanks", "please", "welcome", "lovely", "gladly", "friend", "bravo", "sorry"]
RUDE = ["nonsense", "never", "stupid", "useless", "boring", "enough", "rubbish", "fool"]
PROMPTS = [" ".join(words) for words in zip(KIND, RUDE, reversed(KIND), strict=True)]

STEPS = 20
ANSWERS = 64  # of a step
LENGTH = 8  # words of an answer, at most


def main() -> None:
    """Train once with each seed."""
    address, folder, *seeds = sys.argv[1:]
    reward = trl_reward(address)
    print(json.dumps([train(reward, folder, int(seed)) for seed in seeds]))


def train(reward, folder: str, seed: int) -> dict[str, list[float]]:
    """Figures of each step, by name."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        folder,
        seed=seed,
        max_steps=STEPS,
        per_device_train_batch_size=ANSWERS,
        num_generations=8,
        max_completion_length=LENGTH,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        # The share is not trained on, only written down.
        reward_weights=[1, 0],
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    tokenizer = make_tokenizer()
    trainer = GRPOTrainer(
        make_policy(tokenizer, seed),
        [reward, kind_share],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    trainer.train()

    figures = {
        "rewards": "rewards/reward/mean",
        "deviations": "rewards/reward/std",
        "shares": "rewards/kind_share/mean",
    }
    steps = trainer.state.log_history[:STEPS]
    return {name: [step[key] for step in steps] for name, key in figures.items()}


def kind_share(completions, **kwargs) -> list[float | None]:
    """The share of kind words in each answer that is not empty."""
    answers = [completion.split() for completion in completions]
    return [
        sum(word in KIND for word in words) / len(words) if words else None for words in answers
    ]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word."""
    vocabulary = ["<pad>", "<end>", *KIND, *RUDE]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def make_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A tiny Llama with random weights."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


if __name__ == "__main__":
    main()
