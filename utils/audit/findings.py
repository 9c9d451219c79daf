"""What in the audit of the data should worry people, with its threshold and what mends it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from utils.data.audit import Audit, Matches, SourceAudit
from utils.data.tokenization import (
    CUT_IDENTICAL,
    EMPTY,
    IDENTICAL,
    MALFORMED,
    NOT_RENDERED,
    TIED,
    TOO_LONG,
    WRITE_IT,
)
from utils.output.tables import percent_text

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
            f"Pairs to evaluate: {pairs:,}. With fewer than {FEW_PAIRS} the 95 % interval of the "
            "accuracy reaches more than about 7 points to either side: give more with "
            "--eval_data_path or --eval_fraction"
        )
        found.append(Finding("few pairs to evaluate", False, sentence, pairs, []))
    return sorted(found, key=lambda finding: not finding.serious)


def _of_rows(audit: Audit, sources: Sequence[SourceAudit]) -> list[Finding]:
    """Of defects that no row should have."""
    unrendered = [(s.path, rows) for s in sources for rows in s.unrendered.values()]
    cases = [
        (
            ("malformed", True, *_named(_dropped(sources, MALFORMED))),
            "Malformed rows",
            "mend or remove them; --max_bad_rows says how many may pass",
        ),
        (
            (NOT_RENDERED, True, *_named(_dropped(sources, NOT_RENDERED))),
            "Rows with a part of an answer that the chat template does not write",
            WRITE_IT,
        ),
        (
            ("part of the prompt not rendered", False, *_named(unrendered)),
            "Rows with a part of the prompt that the chat template does not write",
            WRITE_IT,
        ),
        *_of_repeats(audit),
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


def _of_repeats(audit: Audit) -> Iterator[tuple]:
    """Of what trains and evaluates, and, not serious, of what is left out for it or otherwise."""
    leaked = f"with one of {len(audit.repeats.leaked_prompts):,} trained prompts"
    contradict = "that rank two answers the other way round than another one"
    cases = [
        (
            ("contradictory labels", True, lambda found: found.contradictions["training"]),
            f"Training comparisons {contradict}",
            "correct or remove them; --deduplicate prompt keeps the first of each prompt",
        ),
        (
            ("contradictory labels", True, lambda found: found.contradictions["evaluation"]),
            f"Evaluation comparisons {contradict}",
            "correct or remove them in the evaluation data (--eval_data_path)",
        ),
        (
            ("exact duplicates", True, lambda found: found.duplicates["training"]),
            "Training comparisons that repeat an earlier one",
            "--deduplicate exact leaves them out",
        ),
        (
            ("exact duplicates", False, lambda found: found.duplicates["evaluation"]),
            "Evaluation comparisons that repeat an earlier one, which so counts twice",
            "remove them from the evaluation data (--eval_data_path)",
        ),
        (
            ("prompts on both sides", True, lambda found: found.leaks),
            f"Evaluation comparisons {leaked}",
            "--eval_data_path with other prompts has none",
        ),
    ]
    for (kind, serious, get), what, mend in cases:
        matches, left = get(audit.repeats), get(audit.left)
        yield (kind, serious, *_first(left)), what, mend
        gone = "they were removed or cannot be used, and count no more"
        yield (kind, False, *_first(matches.without(left))), f"{what}, left out", gone


def _of_shares(sources: Sequence[SourceAudit]) -> Iterator[Finding]:
    """Of defects that become a problem when a source has many of them."""

    def dropped(*reasons: str) -> list[np.ndarray]:
        none = np.zeros(0, dtype=np.int64)
        rows = [[source.dropped_rows.get(one, none) for one in reasons] for source in sources]
        return [np.sort(np.concatenate(some)) for some in rows]

    longer = "raise --max_seq_len"
    cases = [
        (
            (CUT_IDENTICAL, True, 0.01, dropped(CUT_IDENTICAL)),
            "have answers that are identical once they are cut",
            f"{longer}, or give --overlength truncate_prompt",
        ),
        (
            ("too long", False, 0.1, dropped(TOO_LONG)),
            "are left out because an answer alone is too long",
            f"{longer}, or cut answers with --overlength truncate_end",
        ),
        (
            ("tied or empty", False, 0.1, dropped(TIED, EMPTY, IDENTICAL)),
            "are left out because their answers are tied, empty or identical",
            "look at them in rows.jsonl (--audit_data); ties train with --tie_threshold",
        ),
        (("cut", False, 0.1, [source.cut_rows for source in sources]), "are cut to fit", longer),
    ]
    for (kind, serious, limit, rows), what, mend in cases:
        above = [
            (source.path, some.tolist(), source.figures.rows)
            for source, some in zip(sources, rows, strict=True)
            if len(some) > limit * source.figures.rows
        ]
        if above:
            where = _join(
                f"{path}: {len(some):,} of {of:,}, {percent_text(len(some) / of)}, {_numbers(some)}"
                for path, some, of in above
            )
            sentence = f"More than {100 * limit:.0f} % of the rows {what} ({where}): {mend}"
            first = [(path, row) for path, some, _ in above for row in some[:SHOWN]]
            count = sum(len(some) for _, some, _ in above)
            yield Finding(kind, serious, sentence, count, first[:SHOWN])


def _longer_better(sources: Sequence[SourceAudit]) -> Iterator[Finding]:
    """A share that chance explains, whose interval includes 0.5, is no finding."""
    shares = [(source.path, source.figures.results()["longer_better"]) for source in sources]
    shares = [(path, one) for path, one in shares if one["pairs"]]
    longer = [(path, one["share"], one["low"], one["pairs"]) for path, one in shares]
    shorter = [(path, 1 - one["share"], 1 - one["high"], one["pairs"]) for path, one in shares]
    for word, cases in (("longer", longer), ("shorter", shorter)):
        above = [(path, share, of) for path, share, low, of in cases if share > 0.7 and low > 0.5]
        if above:
            where = _join(f"{path}: {percent_text(share)} of {of:,}" for path, share, of in above)
            sentence = (
                f"The {word} answer is the better one in more than 70 % of the pairs ({where}): "
                "scores may follow length; look at the length table of rw_eval.py's report"
            )
            count = sum(of for *_, of in above)
            yield Finding(f"{word} answers are better", False, sentence, count, [])


def _dropped(sources: Sequence[SourceAudit], reason: str) -> list[tuple[str, np.ndarray]]:
    """The rows of each source that are dropped for a reason."""
    none = np.zeros(0, dtype=np.int64)
    return [(source.path, source.dropped_rows.get(reason, none)) for source in sources]


def _named(groups: Sequence[tuple[str, np.ndarray]]) -> tuple[int, list[tuple[str, int]]]:
    """How many rows there are in groups of rows of a source, and the first of them."""
    rows = [(path, int(row)) for path, some in groups for row in some[:SHOWN]]
    return sum(len(some) for _, some in groups), rows


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
    text = ", ".join(map(str, rows[:SHOWN]))
    return f"row{'s' if len(rows) > 1 else ''} {text}" + (", ..." if len(rows) > SHOWN else "")


def _join(sources: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    texts = list(sources)
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; {more} more" if more > 0 else "")
