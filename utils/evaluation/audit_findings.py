"""What in the audit of the data should worry people, with its threshold and what mends it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from utils.data.audit import Audit, Matches, SourceAudit
from utils.data.tokenization import CUT_IDENTICAL, EMPTY, IDENTICAL, MALFORMED, TIED, TOO_LONG

SHOWN = 5  # rows that a finding names
FEW_PAIRS = 200


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: what it is about, in a word or two.
        serious: whether --strict ends the run for it.
        sentence: what was found, where, the threshold, the first rows, and what mends it.
        count: rows, or pairs, that it is true of.
        rows: source and row, counted from 1, of the first SHOWN.
    """

    kind: str
    serious: bool
    sentence: str
    count: int
    rows: list[tuple[str, int]]


def find_findings(audit: Audit) -> list[Finding]:
    """What crosses a threshold, the serious findings first."""
    sources = [source for side in audit.sources.values() for source in side]
    found = [*_of_rows(audit, sources), *_of_shares(sources), *_longer_better(sources)]
    pairs = audit.total("evaluation").pairs
    if pairs < FEW_PAIRS:
        sentence = (
            f"Pairs to evaluate: {pairs:,}, fewer than {FEW_PAIRS}, with which the 95 % interval "
            "of the accuracy reaches about 7 points to either side; give more with "
            "--eval_data_path or --eval_fraction"
        )
        found.append(Finding("few pairs to evaluate", False, sentence, pairs, []))
    return sorted(found, key=lambda finding: not finding.serious)


def _of_rows(audit: Audit, sources: Sequence[SourceAudit]) -> list[Finding]:
    """Of defects that no row should have."""
    repeats = audit.repeats
    rows = [(source.path, source.dropped_rows.get(MALFORMED, ())) for source in sources]
    malformed = [(path, int(row)) for path, some in rows for row in some[:SHOWN]]
    number = sum(source.figures.dropped[MALFORMED] for source in sources)
    cases = [
        (
            ("malformed", True, number, malformed),
            "Malformed rows",
            "mend or remove them; --max_bad_rows says how many may pass",
        ),
        (
            ("contradictory labels", True, *_first(repeats.contradictions["training"])),
            "Training comparisons that rank two answers the other way round than another one",
            "correct or remove them; --deduplicate prompt keeps the first of each prompt",
        ),
        (
            ("contradictory labels", True, *_first(repeats.contradictions["evaluation"])),
            "Evaluation comparisons that rank two answers the other way round than another one",
            "correct or remove them in the evaluation data (--eval_data_path)",
        ),
        (
            ("exact duplicates", True, *_first(repeats.duplicates["training"])),
            "Training comparisons that repeat an earlier one",
            "--deduplicate exact leaves them out",
        ),
        (
            ("exact duplicates", False, *_first(repeats.duplicates["evaluation"])),
            "Evaluation comparisons that repeat an earlier one, which so counts twice",
            "remove them from the evaluation data (--eval_data_path)",
        ),
        (
            ("prompts on both sides", True, *_first(repeats.leaks)),
            f"Evaluation comparisons with one of {len(repeats.leaked_prompts):,} trained prompts",
            "they are removed from the evaluation; --eval_data_path with other prompts loses none",
        ),
    ]
    return [
        Finding(
            kind,
            serious,
            f"{what}: {count:,}, should be 0 ({_name_rows(rows, count)}): {mend}",
            count,
            rows[:SHOWN],
        )
        for (kind, serious, count, rows), what, mend in cases
        if count
    ]


def _of_shares(sources: Sequence[SourceAudit]) -> list[Finding]:
    """Of defects that become a problem when a source has many of them."""
    longer = "raise --max_seq_len"
    cases = [
        (
            (CUT_IDENTICAL, True, 0.01, (CUT_IDENTICAL,)),
            "have answers that are identical once they are cut",
            f"{longer}, or give --overlength truncate_prompt",
        ),
        (("too long", False, 0.1, (TOO_LONG,)), "are too long and left out", longer),
        (
            ("tied or empty", False, 0.1, (TIED, EMPTY, IDENTICAL)),
            "are left out because their answers are tied, empty or identical",
            "look at them in rows.jsonl (--audit_data); ties train with --tie_threshold",
        ),
    ]
    found = []
    for (kind, serious, limit, reasons), what, mend in cases:
        rows = [
            np.sort(np.concatenate([[], *(source.dropped_rows.get(r, ()) for r in reasons)]))
            for source in sources
        ]
        found += _share_finding(kind, serious, limit, what, mend, sources, rows)
    rows = [source.cut_rows for source in sources]
    return found + _share_finding("cut", False, 0.1, "are cut to fit", longer, sources, rows)


def _share_finding(kind, serious, limit, what, mend, sources, rows) -> list[Finding]:
    """At most one: `rows` has those of each source for which `what` is true."""
    above = [
        (source.path, some, source.figures.rows)
        for source, some in zip(sources, rows, strict=True)
        if len(some) > limit * source.figures.rows
    ]
    if not above:
        return []
    where = _join(
        f"{path}: {len(some):,} of {of:,}, {_percent(len(some) / of)}, {_numbers(some)}"
        for path, some, of in above
    )
    first = [(path, int(row)) for path, some, _ in above for row in some[:SHOWN]]
    sentence = f"More than {100 * limit:.0f} % of the rows {what} ({where}): {mend}"
    return [Finding(kind, serious, sentence, sum(len(some) for _, some, _ in above), first[:SHOWN])]


def _longer_better(sources: Sequence[SourceAudit]) -> list[Finding]:
    """A share that chance explains, whose interval includes 0.5, is no finding."""
    found = []
    for longer, word in ((True, "longer"), (False, "shorter")):
        above = []
        for source in sources:
            one = source.figures.results()["longer_better"]
            share, low = one["share"], one["low"]
            if share is not None and not longer:
                share, low = 1 - share, 1 - one["high"]
            if share is not None and share > 0.7 and low > 0.5:
                above.append((source.path, share, one["pairs"]))
        if above:
            where = _join(f"{path}: {_percent(share)} of {of:,}" for path, share, of in above)
            sentence = (
                f"The {word} answer is the better one in more than 70 % of the pairs ({where}): "
                "scores may follow length; look at the length table of rw_eval.py's report"
            )
            count = sum(of for *_, of in above)
            found.append(Finding(f"{word} answers are better", False, sentence, count, []))
    return found


def _first(matches: Matches) -> tuple[int, list[tuple[str, int]]]:
    """How many there are, and the first rows."""
    rows = zip(matches.path[:SHOWN], matches.row[:SHOWN], strict=True)
    return len(matches.row), [(matches.paths[path], int(row)) for path, row in rows]


def _name_rows(rows: Sequence[tuple[str, int]], count: int) -> str:
    """Such as: rows 3, 17 of a.jsonl; row 2 of b.jsonl, ..."""
    groups = groupby(rows[:SHOWN], key=lambda row: row[0])
    named = "; ".join(f"{_numbers([row for _, row in some])} of {path}" for path, some in groups)
    return named + (", ..." if count > SHOWN else "")


def _numbers(rows: Sequence[int]) -> str:
    """Such as: rows 3, 17, ..."""
    text = ", ".join(str(int(row)) for row in rows[:SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {text}" + (", ..." if len(rows) > SHOWN else "")


def _join(sources: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    texts = list(sources)
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; {more} more" if more > 0 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
