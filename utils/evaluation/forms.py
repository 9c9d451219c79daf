"""Data made with scores: the best answer of each row, a pair, or all answers with their scores."""

from utils import distributed
from utils.data.comparison import Comparison
from utils.evaluation.line_file import LineFile
from utils.evaluation.records import Form, RowCounts, score_windows
from utils.evaluation.rows import OpenSource
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import ReportSettings


def best_of_n(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """The prompt with the answer of the highest score; None if no answer has one."""
    scored = _scored(comparison, scores)
    if not scored:
        return None
    score, best = max(scored, key=lambda pair: pair[0])
    return {"prompt": comparison.prompt, "response": best, "score": score}


def as_pair(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """The answers of the highest and the lowest score, as main.py reads them; None if equal."""
    scored = _scored(comparison, scores)
    if len({score for score, _ in scored}) < 2:
        return None
    high, best = max(scored, key=lambda pair: pair[0])
    low, worst = min(scored, key=lambda pair: pair[0])
    pair = {"prompt": comparison.prompt, "chosen": best, "rejected": worst}
    return {**pair, "score_chosen": high, "score_rejected": low}


def as_scores(comparison: Comparison, scores: list[float | None]) -> dict | None:
    """All answers with their scores, as main.py reads them; None if no answer has one."""
    scored = _scored(comparison, scores)
    if not scored:
        return None
    values, answers = zip(*scored, strict=True)
    return {"prompt": comparison.prompt, "responses": list(answers), "scores": list(values)}


# The data that scores can make, by the flags that ask for them.
FORMS: dict[str, Form] = {"best_of_n": best_of_n, "as_pairs": as_pair, "as_scores": as_scores}


def chosen_form(args: ReportSettings) -> str | None:
    """Which of the FORMS was asked for; None: scores and a report."""
    return next((name for name in FORMS if getattr(args, name)), None)


def make_data(scorer: Scorer, sources: list[OpenSource], form: Form, file: LineFile) -> None:
    """Write a line for each row, in one of the FORMS."""
    counts = RowCounts()
    for scored in score_windows(scorer, sources, file.start, form):
        counts.add([record for record, _ in scored])
        file.write([line for _, line in scored if line])

    where = f" to {file.path}" if file.path else ""
    distributed.log(f"{counts}, {file.written:,} lines written{where}")


def _scored(comparison: Comparison, scores: list[float | None]) -> list[tuple[float, object]]:
    """The score and the answer, of those that have a score."""
    both = zip(scores, comparison.responses, strict=True)
    return [(score, answer) for score, answer in both if score is not None]
