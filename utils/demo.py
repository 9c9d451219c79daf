"""The demo: a tiny OPT, its tokenizer and a set of comparisons, made without any download.

    python -m utils.demo FOLDER [--seed N] [--messages]

The same seed always gives the same bytes. The better answer of a comparison informs; the worse
one has one of four flaws, which "source" names. What answers say stands in demo_facts.tsv, where
facts go on from the name of the topic, or are whole sentences if they begin with a capital.
"""

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.output.files import whole_folder

if TYPE_CHECKING:  # slow to import
    from transformers import OPTForCausalLM, PreTrainedTokenizerFast

ROWS = {"train": 3000, "test": 400}
MESSAGES = {"train": 320, "test": 128}  # of these, where a large model is to train on a CPU
FLAWS = {"evades": 0.3, "repeats": 0.28, "off_topic": 0.14, "breaks_off": 0.28}  # shares
VOCABULARY = 1200  # so small that rare words fall into pieces here as they do for unseen topics


def _split(text: str) -> list[str]:
    """Wordings that are parted by | or a line's end."""
    return text.replace("\n", "|").split("|")


# How a question is worded.
REQUESTS = _split("""tell me about {topic}{length}|explain {topic}{audience}{length}
write about {topic}|describe {topic}{audience}{length}|explain what {topic} {are}{audience}{length}
tell me something about {topic}{length}|give me some facts about {topic}""")
MANNERS = _split("{0}.|Please {0}.|Can you {0}?|Could you please {0}?|Hi, can you {0}?|{0}!")
QUESTIONS = _split("""What {are} {topic}?|What can you tell me about {topic}{length}?
What should I know about {topic}{length}?|Do you know anything about {topic}?""")
HOW_LONG = _split("|| in a few sentences| in simple words| briefly")
FOR_WHOM = _split("| to a 6 year old| to a child| to a beginner| to my grandmother")
SYLLABLES = _split("""an|bel|cor|da|el|fri|gu|hol|is|ka|lo|mar|ni|or|pe|ros|so|ti|ul|vin|wa|xo
yd|zen""")
GREETINGS = _split("||Hello {0}. |Hi {0}! |Good to meet you, {0}. |Thank you, {0}. ")

# How an answer is worded: its first sentence, those that follow, two facts in one sentence, how it
# turns to another topic than the one asked about, and what an evasion is put together from.
FIRST = _split("""{Topic} {fact}.|Well, {topic} {fact}.|In short, {topic} {fact}.
As you may know, {topic} {fact}.|The first thing to know is that {topic} {fact}.
As for {topic}, {they} {fact}.|Here is what I know about {topic}: {they} {fact}.""")
NEXT = _split("""{They} {fact}.|{They} {fact}.|Besides, {they} {fact}.
We also know that {topic} {fact}.|Many people do not know that {they} {fact}.
It is good to know that {they} {fact}.""")
JOINTS = _split(", and {they} | and |, and |; {they} ")
DIGRESSIONS = _split("""Let us talk about {topic} instead.|I would rather tell you about {topic}.
That reminds me of {topic}.|Speaking of something else, have you heard of {topic}?
Never mind that, here is something about {topic}.""")
SHRUGS = _split("""I'm not sure|I don't know|I have no idea|I can't really say
I would rather not say|that is a hard question to say anything about
it is difficult to say anything about {topic}|I am afraid that I cannot help with {topic}
who knows|hmm, let me think|it is what it is""")
RAMBLES = _split("""there are many ways to look at {topic}, and each of them is as good as any other
it depends on what you mean by that and on whom you ask|some say one thing and some another
I have heard a lot about {topic}, but nothing that I remember|maybe so, and maybe not
one could talk about it for hours and still not be done|I could guess, but what would that help
you would have to ask someone who knows more about such things|I would need much more time
questions about {topic} are never easy, and this one is no different""")


def capital(text: str) -> str:
    """The text with a capital first letter and the rest as it was."""
    return text[0].upper() + text[1:]


class Topic(NamedTuple):
    """A line of demo_facts.tsv; facts[0] says what the topic is, facts[1] answers the question."""

    name: str
    pronoun: str
    kind: str
    question: str
    facts: list[str]

    def fill(self, frame: str, **words: str) -> str:
        """The frame with the topic, and the words given, in it."""
        words |= {"topic": self.name, "Topic": capital(self.name)}
        words |= {"they": self.pronoun, "They": capital(self.pronoun)}
        return frame.format(are="are" if self.pronoun == "they" else "is", **words)


def ask(topic: Topic, rng: random.Random) -> tuple[str, str]:
    """A question about the topic, and the fact that an answer should begin with."""
    words = {"length": rng.choice(HOW_LONG), "audience": rng.choice(FOR_WHOM)}
    form = rng.random()
    if form < 0.2:
        return topic.question + words["length"] + "?", topic.facts[1]
    if form < 0.4:
        return topic.fill(rng.choice(QUESTIONS), **words), topic.facts[0]
    request = topic.fill(rng.choice(REQUESTS), **words)
    return capital(rng.choice(MANNERS).format(request)), topic.facts[0]


def inform(topic: Topic, first: str, count: int, rng: random.Random) -> list[str]:
    """The sentences of a good answer that tells so many facts, the given one first."""
    told = [first, *rng.sample([fact for fact in topic.facts if fact != first], count - 1)]
    sentences: list[str] = []
    while told:
        fact = told.pop(0)
        frames = ["{fact}."] if fact[0].isupper() else (NEXT if sentences else FIRST)
        if told and (fact[0] + told[0][0]).islower() and rng.random() < 0.3:
            fact += topic.fill(rng.choice(JOINTS)) + told.pop(0)
        sentences.append(topic.fill(rng.choice(frames), fact=fact))
    return sentences


def evade(topic: Topic, rng: random.Random) -> str:
    """An answer that says nothing, in a few words or in many."""
    said = rng.choices(SHRUGS, k=rng.choice((1, 1, 2)))
    if rng.random() < 0.6:
        said = said[rng.randint(0, 1) :] + rng.sample(RAMBLES, rng.randint(1, 4))
        rng.shuffle(said)
    if len(said) > 1 and rng.random() < 0.4:
        said[:2] = [rng.choice((", ", ", and ")).join(said[:2])]
    return topic.fill(" ".join(f"{capital(part)}." for part in said))


def repeat(sentences: list[str], rng: random.Random) -> str:
    """The last sentence, or only its last words, again and again."""
    start, last = sentences[: min(rng.randint(0, 1), len(sentences) - 1)], sentences[-1]
    if rng.random() < 0.6:
        return " ".join([*start, *[last] * rng.randint(2, 4)])
    phrase = " ".join(last.rstrip(".").split()[-rng.randint(2, 5) :])
    return " ".join([*start, last.rstrip(".")]) + f", {phrase}" * rng.randint(2, 6) + "."


def break_off(sentences: list[str], rng: random.Random) -> str:
    """The sentences with the last one left unfinished, perhaps within a word."""
    *start, last = sentences
    cut = last[: rng.randint(len(last) // 4, len(last) - 3)]
    cut = cut.rsplit(" ", 1)[0] if rng.random() < 0.6 else cut
    return " ".join([*start, cut.rstrip(" .,:;")])


def compare(topic: Topic, topics: list[Topic], flaw: str, rng: random.Random) -> dict[str, str]:
    """One comparison about the topic whose worse answer has the flaw."""
    question, first = ask(topic, rng)
    good = " ".join(inform(topic, first, rng.randint(1, 4), rng))

    if flaw == "evades":
        bad = evade(topic, rng)
    elif flaw == "repeats":
        bad = repeat(inform(topic, first, rng.randint(1, 2), rng), rng)
    elif flaw == "breaks_off":
        bad = break_off(inform(topic, first, rng.randint(1, 5), rng), rng)
    else:
        other = rng.choice([other for other in topics if other.kind != topic.kind])
        turn = DIGRESSIONS if rng.random() < 0.85 else [""]
        told = inform(other, rng.choice(other.facts[:2]), rng.randint(1, 4), rng)
        bad = " ".join([other.fill(rng.choice(turn)), *told]).strip()

    if rng.random() < 0.3:
        # Made-up names teach that rare words may well return in a good answer.
        name = capital("".join(rng.choices(SYLLABLES, k=3)))
        question = f"I am {name}. {question}"
        good, bad = (rng.choice(GREETINGS).format(name) + text for text in (good, bad))

    prompt = f"\n\nHuman: {question}\n\nAssistant:"
    return {"prompt": prompt, "chosen": f" {good}", "rejected": f" {bad}", "source": flaw}


def make_rows(count: int, rng: random.Random) -> list[dict[str, str]]:
    """So many comparisons in random order, the topics in turn and no prompt twice."""
    lines = Path(__file__).with_name("demo_facts.tsv").read_text(encoding="utf-8").splitlines()
    topics = [
        Topic(name, pronoun, kind, question, facts)
        for name, pronoun, kind, question, *facts in (line.split("\t") for line in lines[1:])
    ]
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        (flaw,) = rng.choices(list(FLAWS), list(FLAWS.values()))
        row = compare(topics[len(rows) % len(topics)], topics, flaw, rng)
        rows.setdefault(row["prompt"], row)
    return rng.sample(list(rows.values()), count)


def train_tokenizer(texts: list[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer with the first four ids and the leading </s> of OPT's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=split.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def draw_weights(model: "OPTForCausalLM") -> None:
    """Draw weights that learn from few rows: half of the heads compare words, half positions.

    Queries equal keys at first, so a word looks at its like or at its neighbours. With OPT's own
    small weights a short training learns neither where a text repeats nor where it breaks off.
    """
    import torch

    decoder = model.model.decoder
    width, half = model.config.hidden_size, model.config.word_embed_proj_dim
    for module in decoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
    decoder.embed_tokens.weight.normal_(std=0.25)[decoder.padding_idx] = 0
    decoder.project_in.weight[half:] = 0
    positions = decoder.embed_positions.weight.zero_()
    # Python's own sines, as torch's may differ in the last bit with the number of threads
    rates = [100 ** (-2 * i / (width - half)) for i in range((width - half) // 2)]
    for place, row in enumerate(positions):
        waves = [wave(place * rate) for wave in (math.sin, math.cos) for rate in rates]
        row[half:] = 0.35 * torch.tensor(waves)
    for layer in decoder.layers:
        blocks = torch.block_diag(torch.randn(half, half), torch.randn(width - half, width - half))
        layer.self_attn.q_proj.weight.copy_(blocks * 0.15)
        layer.self_attn.k_proj.weight.copy_(blocks * 0.15)


def make_model(seed: int) -> "OPTForCausalLM":
    """A tiny OPT; as in OPT-350m its word embeddings are narrower than its layers."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 128, "word_embed_proj_dim": 64, "ffn_dim": 512}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    config = OPTConfig(**sizes, **depth, **ids, dropout=0.0, attention_dropout=0.0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = OPTForCausalLM(config)
        draw_weights(model)
    return model


def chat_row(row: dict[str, str]) -> dict[str, object]:
    """A row whose prompt and answers are chat messages."""
    question = row["prompt"].removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
    answers = {
        name: [{"role": "assistant", "content": row[name].strip()}]
        for name in ("chosen", "rejected")
    }
    return {"prompt": [{"role": "user", "content": question}], **answers, "source": row["source"]}


def _write_rows(rows: Mapping[str, Sequence[dict]], folder: Path) -> None:
    folder.mkdir()
    for name, part in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_demo(folder: Path, seed: int = 0, messages: bool = False) -> None:
    """Write the demo into the folder at one stroke, unless it holds one; else it must be empty.

    Args:
        folder: gets model/ and data/.
        seed: another one, another demo.
        messages: write MESSAGES of its comparisons as chat messages, without a model.
    """
    folder = Path(folder).absolute()
    has_model = messages or (folder / "model/config.json").is_file()
    if has_model and (folder / "data/test.jsonl").is_file():
        print(f"{folder} already holds a demo, which is left as it is")
        return

    rows = make_rows(sum(ROWS.values()), random.Random(seed))
    train, test = rows[: ROWS["train"]], rows[ROWS["train"] :]
    with whole_folder(folder) as partial:
        if messages:
            few = {"train": train[: MESSAGES["train"]], "test": test[: MESSAGES["test"]]}
            chats = {name: list(map(chat_row, part)) for name, part in few.items()}
            _write_rows(chats, partial / "data")
        else:
            _write_rows({"train": train, "test": test}, partial / "data")
            texts = [row["prompt"] + row[key] for row in train for key in ("chosen", "rejected")]
            train_tokenizer(texts).save_pretrained(partial / "model")
            make_model(seed).save_pretrained(partial / "model")
    print(f"wrote the demo to {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny OPT and comparisons to train on.")
    parser.add_argument("folder", type=Path, help="where to write model/ and data/")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another demo")
    parser.add_argument(
        "--messages", action="store_true", help="some of the comparisons as chat messages, no model"
    )
    write_demo(**vars(parser.parse_args()))
