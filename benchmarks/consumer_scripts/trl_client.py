"""TRL: the rewards of GRPOTrainer, given the function of docs/serving.md that asks our server."""

from documented import trl_reward
from exchange import REQUEST, answer, is_chat
from trl_rewards import trainer_rewards

reward = trl_reward(REQUEST["servers"][0])


def score(rows):
    """The server ends the texts, so that they come without their end token."""
    prompts, completions = map(list, zip(*rows, strict=True))
    if not is_chat(rows):
        completions = [text.removesuffix(REQUEST["end"]) for text in completions]
    return trainer_rewards(reward, prompts, completions)


answer(score)
