"""Scores of the answers to single prompts: given by flags, built in, or typed one by one."""

from utils.data.comparison import Comparison
from utils.data.token_rows import Reason
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.report import print_scores
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import ScorerSettings
from utils.settings import InputError

# Prompt, good answer, bad answer.
BUILT_IN = (
    (
        "Please tell me about Microsoft in a few sentences.",
        "Microsoft is a technology company that was founded in 1975 by Bill Gates and Paul Allen. "
        "It is best known for the Windows operating system and for the Office programs, and it "
        "also makes the Xbox and runs a large cloud service.",
        "I'm not sure.",
    ),
    (
        "Explain the moon landing to a 6 year old in a few sentences.",
        "A long time ago, in 1969, three people flew to the Moon in a big rocket. Two of them "
        "climbed down a ladder and walked on the dusty ground. They picked up some stones, put up "
        "a flag, and then they flew all the way home.",
        "I don't know, I don't know.",
    ),
)


def given_prompts(args: ScorerSettings, encoder: ComparisonTokenizer) -> list[Comparison]:
    """The prompt of the command line with its answers, or else the built-in ones.

    Raises:
        InputError: an answer is empty, too long, or not what the chat template writes.
    """
    if args.prompt is not None:
        prompts: list[tuple] = [(args.prompt, args.response)]
    else:
        prompts = [([{"role": "user", "content": text}], answers) for text, *answers in BUILT_IN]
    comparisons = [
        Comparison(prompt, answers, range(len(answers)), "command line")
        for prompt, answers in prompts
    ]

    for comparison, row in zip(comparisons, encoder.rows(comparisons), strict=True):
        if row["dropped"] == Reason.NOT_RENDERED:
            raise InputError(
                f"{row['problem']} is {Reason.NOT_RENDERED}: give another --response, or a "
                "template that writes it (--chat_template)"
            )

        for number, answer in enumerate(comparison.responses):
            if number not in row["answers"]:
                raise InputError(
                    f"the answer {answer[:60]!r} is empty or has more than "
                    f"{encoder.settings.max_seq_len} tokens: give another --response "
                    "or --max_seq_len"
                )
    return comparisons


def score_prompts(args: ScorerSettings, scorer: Scorer, comparisons: list[Comparison]) -> None:
    """Score and print what `given_prompts` returned."""
    rows = scorer(comparisons)
    if args.prompt is not None:
        (row,) = rows
        _print_numbered(args.prompt, args.response, row["scores"])
        return

    for (text, good, bad), row in zip(BUILT_IN, rows, strict=True):
        high, low = row["scores"]
        print_scores(text, [("good", good, high), ("bad", bad, low)])
        print(f"good answer {'above' if high > low else 'NOT above'} the bad one\n")


def score_typed(scorer: Scorer) -> None:
    """Ask for prompts and their answers until the input ends, and score each answer at once."""
    print("An empty line ends the answers to a prompt; Ctrl-D ends all.")
    while prompt := _read_line("\nprompt> "):
        answers: list[str] = []
        while answer := _read_line("answer> "):
            comparison = Comparison(prompt, [*answers, answer], [0] * (len(answers) + 1), "typed")
            (row,) = scorer([comparison])
            if row["scores"][-1] is None:
                limit = scorer.encoder.settings.max_seq_len
                why = f"it has more than {limit} tokens (--max_seq_len)"
                print(f"not scored: {row['problem'] or why}")
                continue

            answers.append(answer)
            _print_numbered(prompt, answers, row["scores"])


def _print_numbered(prompt: str, answers: list[str], scores: list[float]) -> None:
    numbers = map(str, range(1, len(answers) + 1))
    print_scores(prompt, list(zip(numbers, answers, scores, strict=True)))


def _read_line(question: str) -> str:
    """A line without the white space around it; "" where the input ends."""
    try:
        return input(question).strip()
    except EOFError:
        return ""
