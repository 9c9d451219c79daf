"""OpenRLHF: the client of its rollouts, which asks two servers of ours."""

import asyncio
from types import SimpleNamespace

from exchange import FOLDER, REQUEST, answer, is_chat, rendered
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

AT_ONCE = 10  # rollouts of each row that run at the same time
SPREAD = 1e-5  # between rewards of the same row

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
addresses = [f"{server}/get_reward" for server in REQUEST["servers"]]
params = SimpleNamespace(max_tokens=1000, logprobs=None)


class Engine:
    """In the place of vLLM: it generates the answer that it was given."""

    def __init__(self, answer: str):
        self.token_ids = tokenizer(answer, add_special_tokens=False).input_ids

    async def generate(self, *args, **options):
        """What vLLM returns, as far as it is read."""
        output = SimpleNamespace(token_ids=self.token_ids, finish_reason="stop")
        return SimpleNamespace(outputs=[output])


def score(rows):
    """The rewards, which must not depend on how the client asks for them."""
    queries, prompts = rendered(tokenizer, rows), rendered_prompts(rows)
    ways = asyncio.run(ask_in_all_ways(queries, prompts))

    spread = max(max(rewards) - min(rewards) for rewards in zip(*ways, strict=True))
    if spread > SPREAD:
        raise ValueError(f"rewards of the same row differ by {spread:.1e}")
    return ways[0]


def rendered_prompts(rows) -> list[str]:
    """What the policy reads."""
    prompts = [prompt for prompt, _ in rows]
    if not is_chat(rows):
        return [REQUEST["leading"] + prompt for prompt in prompts]

    options = {"tokenize": False, "add_generation_prompt": True}
    return [tokenizer.apply_chat_template(prompt, **options) for prompt in prompts]


async def ask_in_all_ways(queries: list[str], prompts: list[str]) -> list[list[float]]:
    """All rewards in one request, in one to each of two servers, and from many rollouts at once."""
    one = SingleTurnAgentExecutor(remote_rm_url=addresses[0])
    both = SingleTurnAgentExecutor(remote_rm_url=addresses)
    ways = [await fetch(executor, queries, prompts) for executor in (one, both)]

    rollouts = [
        roll_out(both, query, prompt)
        for _ in range(AT_ONCE)
        for query, prompt in zip(queries, prompts, strict=True)
    ]
    rewards, count = await asyncio.gather(*rollouts), len(queries)
    return ways + [rewards[i : i + count] for i in range(0, len(rewards), count)]


async def fetch(executor, queries: list[str], prompts: list[str]) -> list[float]:
    """The rewards of several queries."""
    labels = [""] * len(queries)
    replies = await executor._fetch_rewards_via_http(queries, prompts, labels)
    return [reward for reply in replies for reward in reply["rewards"]]


async def roll_out(executor, query: str, prompt: str) -> float:
    """The reward with which a rollout ends."""
    engine = Engine(query.removeprefix(prompt))
    output = await executor.execute(prompt, "", params, 10_000, tokenizer, engine)
    (reward,) = output["reward"]
    return reward


answer(score)
