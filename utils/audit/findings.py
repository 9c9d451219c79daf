"""What in the audit of the data should worry people, with its threshold and what mends it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from utils.audit.results import total_of, total_path
from utils.audit.rows import CONTRADICTION, CUT, EVALUATION, TRAINING, UNRENDERED, AuditedData
from utils.data.token_rows import Reason
from utils.data.tokenization import WRITE_IT
from utils.output.tables import percent_text

MOST_NAMED = 5  # rows, or sources, that a finding names
FEW_PAIRS = 200


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: what it is about, in a word or two.
        serious: whether --strict ends the run for it.
        sentence: what was found, where, the threshold, the first rows, and what mends it.
        count: rows, or pairs, that it is true of.
        rows: source and row, counted from 1, of the first MOST_NAMED.
    """

    kind: str
    serious: bool
    sentence: str
    count: int
    rows: list[tuple[str, int]]


@dataclass(frozen=True)
class Rule:
    """When defects of rows are a finding.

    Attributes:
        kind, serious: of the finding.
        defects: names of the defects.
        what: the words for the rows that have one.
        remedy: what mends it.
        sides: whose rows count.
        limit: the share of the rows of a source that may have one; 0: none may.
    """

    kind: str
    serious: bool
    defects: tuple[str, ...]
    what: str
    remedy: str
    sides: tuple[str, ...] = (TRAINING, EVALUATION)
    limit: float = 0.0


CONTRADICT = "that rank two answers the other way round than another one"
LONGER = "raise --max_seq_len"
LEFT_OUT = "they were removed or cannot be used, and count no more"
RULES = (
    Rule(
        *("malformed", True, (Reason.MALFORMED,), "Malformed rows"),
        "mend or remove them; --max_bad_rows says how many may pass",
    ),
    Rule(
        *(Reason.NOT_RENDERED, True, (Reason.NOT_RENDERED,)),
        "Rows with a part of an answer that the chat template does not write",
        WRITE_IT,
    ),
    Rule(
        *(UNRENDERED, False, (UNRENDERED,)),
        "Rows with a part of the prompt that the chat template does not write",
        WRITE_IT,
    ),
    Rule(
        *("contradictory labels", True, (CONTRADICTION,), f"Training comparisons {CONTRADICT}"),
        "correct or remove them; --deduplicate prompt keeps the first of each prompt",
        (TRAINING,),
    ),
    Rule(
        *("contradictory labels", True, (CONTRADICTION,), f"Evaluation comparisons {CONTRADICT}"),
        "correct or remove them in the evaluation data (--eval_data_path)",
        (EVALUATION,),
    ),
    Rule(
        *("exact duplicates", True, (Reason.DUPLICATE,)),
        "Training comparisons that repeat an earlier one",
        "--deduplicate exact leaves them out",
        (TRAINING,),
    ),
    Rule(
        *("exact duplicates", False, (Reason.DUPLICATE,)),
        "Evaluation comparisons that repeat an earlier one, which so counts twice",
        "remove them from the evaluation data (--eval_data_path)",
        (EVALUATION,),
    ),
    Rule(
        *("prompts on both sides", False, (Reason.LEAK,)),
        "Evaluation comparisons with one of {prompts:,} trained prompts",
        LEFT_OUT,
    ),
    Rule(
        *("identical after truncation", True, (Reason.CUT_IDENTICAL,)),
        "have answers that are identical once they are cut",
        f"{LONGER}, or give --overlength truncate_prompt",
        limit=0.01,
    ),
    Rule(
        *(
            "too long",
            False,
            (Reason.TOO_LONG,),
            "are left out because an answer alone is too long",
        ),
        f"{LONGER}, or cut answers with --overlength truncate_end",
        limit=0.1,
    ),
    Rule(
        *("tied or empty", False, (Reason.TIED, Reason.EMPTY, Reason.IDENTICAL)),
        "are left out because their answers are tied, empty or identical",
        "look at them in rows.jsonl (--audit_data); ties train with --tie_threshold",
        limit=0.1,
    ),
    Rule("cut", False, (CUT,), "are cut to fit", LONGER, limit=0.1),
)


def find_findings(data: AuditedData, results: list[dict]) -> list[Finding]:
    """What crosses a threshold, the serious findings first; `results` are those of the data."""
    found = [*_of_rules(data), *_find_longer_better(data, results)]
    pairs = evaluation_pairs(results)
    if pairs < FEW_PAIRS:
        sentence = (
            f"Pairs to evaluate: {pairs:,}. With fewer than {FEW_PAIRS} the 95 % interval of the "
            "accuracy reaches more than about 7 points to either side: give more with "
            "--eval_data_path or --eval_fraction"
        )
        found.append(Finding("few pairs to evaluate", False, sentence, pairs, []))
    return sorted(found, key=lambda finding: not finding.serious)


def evaluation_pairs(results: list[dict]) -> int:
    """Ranked pairs of all that evaluates."""
    total = total_of(results, EVALUATION)
    return total["pairs"] if total else 0


def leaked_prompts(data: AuditedData) -> int:
    """Different prompts that train and are in the evaluation data."""
    leaks = data.defects["comparison"][data.defects["defect"] == Reason.LEAK]
    return int(data.rows["prompt_key"][leaks].nunique())


def _of_rules(data: AuditedData) -> Iterator[Finding]:
    places = data.rows.loc[data.defects["comparison"], ["split", "row"]].reset_index(drop=True)
    defects = data.defects[["defect", "left_out"]].join(places)
    defects["side"] = [data.splits[split][0] for split in defects["split"]]
    sizes = data.rows["split"].value_counts()
    prompts = leaked_prompts(data)

    for rule in RULES:
        own = defects[defects["defect"].isin(rule.defects) & defects["side"].isin(rule.sides)]
        if rule.limit:
            counts = own["split"].value_counts()
            above = counts.index[counts > rule.limit * sizes[counts.index]]
            own = own[own["split"].isin(above)]

        for left_out, rows in own.groupby("left_out"):
            what, remedy = rule.what.format(prompts=prompts), rule.remedy
            if left_out:
                what = f"{what}, left out"
                remedy = LEFT_OUT
            groups = [(int(str(split)), group["row"]) for split, group in rows.groupby("split")]
            if rule.limit:
                where = _join_sources(
                    f"{data.splits[split][1]}: {len(some):,} of {sizes[split]:,}, "
                    f"{percent_text(len(some) / sizes[split])}, {_name_numbers(some)}"
                    for split, some in groups
                )
                sentence = f"More than {100 * rule.limit:.0f} % of the rows {what} ({where})"
            else:
                sentence = f"{what}: {len(rows):,}, should be 0 ({_name_rows(data, rows)})"

            first = rows[:MOST_NAMED][["split", "row"]].itertuples(index=False)
            named = [(data.splits[split][1], int(row)) for split, row in first]
            serious = rule.serious and not left_out
            yield Finding(rule.kind, serious, f"{sentence}: {remedy}", len(rows), named)


def _find_longer_better(data: AuditedData, results: list[dict]) -> Iterator[Finding]:
    """A share that chance explains, whose interval includes 0.5, is no finding."""
    sources = [one for one in results if one["path"] != total_path(one["side"])]
    paths = [path for _, path in data.splits]
    shares = [
        (path, result["longer_better"])
        for path, result in zip(paths, sources, strict=True)
        if result["longer_better"]["pairs"]
    ]
    longer = [(path, one["share"], one["low"], one["pairs"]) for path, one in shares]
    shorter = [(path, 1 - one["share"], 1 - one["high"], one["pairs"]) for path, one in shares]

    for word, cases in (("longer", longer), ("shorter", shorter)):
        above = [(path, share, of) for path, share, low, of in cases if share > 0.7 and low > 0.5]
        if above:
            where = _join_sources(
                f"{path}: {percent_text(share)} of {of:,}" for path, share, of in above
            )
            sentence = (
                f"The {word} answer is the better one in more than 70 % of the pairs ({where}): "
                "scores may follow length; look at the length table of rw_eval.py's report"
            )
            count = sum(of for *_, of in above)
            yield Finding(f"{word} answers are better", False, sentence, count, [])


def _name_rows(data: AuditedData, rows: pd.DataFrame) -> str:
    """Such as: rows 3, 17 of a.jsonl; row 2 of b.jsonl, ..."""
    named = "; ".join(
        f"{_name_numbers(group['row'])} of {data.splits[int(str(split))][1]}"
        for split, group in rows[:MOST_NAMED].groupby("split")
    )
    return named + (", ..." if len(rows) > MOST_NAMED else "")


def _name_numbers(rows: pd.Series) -> str:
    """Such as: rows 3, 17, ..."""
    text = ", ".join(map(str, rows[:MOST_NAMED]))
    return f"row{'s' if len(rows) > 1 else ''} {text}" + (", ..." if len(rows) > MOST_NAMED else "")


def _join_sources(sources: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    texts = list(sources)
    more = len(texts) - MOST_NAMED
    return "; ".join(texts[:MOST_NAMED]) + (f"; {more} more" if more > 0 else "")
