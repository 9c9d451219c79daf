"""Sentence Transformers: a CrossEncoder, asked with messages, and with pairs of texts."""

from exchange import FOLDER, REQUEST, answer, is_chat, wholes
from sentence_transformers import CrossEncoder

# A pair comes to the chat template as two messages: this one writes them as they stand.
JOINED = "{{ leading }}{% for message in messages %}{{ message.content }}{% endfor %}"


def score(rows):
    """What `predict` returns, without flags that change its numbers."""
    if is_chat(rows):
        return CrossEncoder(FOLDER, device="cpu").predict(wholes(rows)).tolist()

    template = JOINED.replace("{{ leading }}", REQUEST["leading"])
    options = {"processor_kwargs": {"chat_template": template}}
    return CrossEncoder(FOLDER, device="cpu", **options).predict(rows).tolist()


answer(score)
