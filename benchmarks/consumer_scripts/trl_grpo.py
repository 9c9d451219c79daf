"""TRL: the rewards of GRPOTrainer, to which the folder is given as its reward model."""

from exchange import FOLDER, REQUEST, answer, is_chat
from trl_rewards import trainer_rewards


def score(rows):
    """It adds no special token to texts, so that they come with all of theirs."""
    prompts, completions = map(list, zip(*rows, strict=True))
    if not is_chat(rows):
        prompts = [REQUEST["leading"] + prompt for prompt in prompts]
    return trainer_rewards(FOLDER, prompts, completions)


answer(score)
