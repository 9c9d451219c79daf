"""vLLM: its server, asked with texts and with messages."""

from exchange import FOLDER, answer, is_chat, wholes
from serving import post, served

flags = ["--runner", "pooling", "--dtype", "float32"]

with served("vllm.entrypoints.openai.api_server", "--model", FOLDER, *flags) as address:

    def score(rows):
        """One request for each row, since messages come alone."""
        key = "messages" if is_chat(rows) else "input"
        answers = [post(f"{address}/classify", {key: whole}) for whole in wholes(rows)]
        return [one["data"][0]["probs"][0] for one in answers]

    answer(score)
