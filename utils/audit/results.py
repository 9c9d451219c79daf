"""Numbers of each source for the tables of the audit: lengths, cuts, repeats, longer answers."""

import numpy as np
import pandas as pd
import scipy  # loads its parts when they are first used

from utils.audit.rows import CONTRADICTION, EVALUATION, TRAINING, AuditedData
from utils.data.token_rows import UNUSABLE, Reason
from utils.output.tables import TOTAL

# Edges of the bins of the difference of two lengths, in tokens.
GAP_EDGES = (0, 5, 10, 20, 50, 100, 200, np.inf)


def audit_results(data: AuditedData) -> list[dict]:
    """All numbers of each source, and of each side that has several, with `path` and `side`.

    A number that does not exist is None. Paths are different ones: a second one of the same name
    is numbered.
    """
    results: list[dict] = []
    for side in (TRAINING, EVALUATION):
        paths = {number: path for number, (s, path) in enumerate(data.splits) if s == side}
        total, named = total_path(side), [result["path"] for result in results]
        for count, (number, path) in enumerate(paths.items(), 1):
            if path in (*named, total):
                path = f"{path} ({side}, {count})"
            named.append(path)
            results.append({"path": path, "side": side, **_results(data, side, number)})
        if len(paths) > 1:
            results.append({"path": total, "side": side, **_results(data, side)})
    return results


def total_of(results: list[dict], side: str) -> dict | None:
    """What `audit_results` says of a whole side, its last entry; None if nothing is on it."""
    return next((result for result in reversed(results) if result["side"] == side), None)


def total_path(side: str) -> str:
    """What stands for the path of all sources of a side together."""
    return f"{TOTAL} ({side})"


def lengths_of(data: AuditedData, side: str, split: int | None = None) -> dict[str, np.ndarray]:
    """Tokens before any cutting, of the comparisons that a side uses.

    Returns:
        int64 [N] each: of the prompt, of the better and of the worse answer of each ranked pair,
        and of the sequence of each answer.
    """
    rows = data.rows["used"] & _are_of(data, side, split)
    return _lengths(data, rows, *_kept(data, rows))


def _lengths(
    data: AuditedData, rows: pd.Series, answers: pd.DataFrame, pairs: pd.DataFrame
) -> dict[str, np.ndarray]:
    prompt = data.rows["prompt_tokens"].to_numpy()
    return {
        "prompt": prompt[rows],
        "better": pairs["better_tokens"].to_numpy(),
        "worse": pairs["worse_tokens"].to_numpy(),
        "sequence": prompt[answers["comparison"]] + answers["tokens"].to_numpy(),
    }


def _longer_better(pairs: pd.DataFrame) -> dict:
    """How often the longer answer is the better one, over pairs of different lengths.

    The 95 % interval is Wilson's, with one trial a comparison: its pairs share their answers.
    """
    gap = (pairs["better_tokens"] - pairs["worse_tokens"]).to_numpy()
    comparison = pairs["comparison"].to_numpy()[gap != 0]
    comparisons = np.count_nonzero(np.diff(comparison, prepend=-1))  # pairs of one stand together
    gap = gap[gap != 0]
    is_won = gap > 0

    result: dict = {"pairs": len(gap), "share": None, "low": None, "high": None}
    if len(gap):
        share = float(is_won.mean())
        trials = scipy.stats.binomtest(round(share * comparisons), comparisons)
        low, high = trials.proportion_ci(method="wilson")
        result.update(share=share, low=min(float(low), share), high=max(float(high), share))

    place = np.digitize(np.abs(gap), GAP_EDGES[1:-1], right=True)
    total, won = (np.bincount(p, minlength=len(GAP_EDGES) - 1) for p in (place, place[is_won]))
    edges = zip(GAP_EDGES[:-1], GAP_EDGES[1:], total.tolist(), won.tolist(), strict=True)
    result["gaps"] = [
        {
            "above": above,
            "up_to": int(up_to) if np.isfinite(up_to) else None,
            "pairs": number,
            "share": wins / number,
        }
        for above, up_to, number, wins in edges
        if number
    ]
    return result


def _are_of(data: AuditedData, side: str, split: int | None) -> pd.Series:
    """Which rows are of a split, or of a side: bool [n]."""
    if split is not None:
        return data.rows["split"] == split
    return data.rows["training"] == (side == TRAINING)


def _kept(data: AuditedData, rows: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tokens of the answers of some rows, bool [n], and of their pairs, but for dropped answers."""
    chosen, answers, pairs = rows.to_numpy(), data.answers, data.pairs
    is_kept = (pairs["better_tokens"] >= 0) & (pairs["worse_tokens"] >= 0)
    return (
        _filter(answers, chosen[answers["comparison"]] & (answers["tokens"] >= 0)),
        _filter(pairs, chosen[pairs["comparison"]] & is_kept),
    )


def _filter(table: pd.DataFrame, lines: pd.Series) -> pd.DataFrame:
    # Without the numbers of the lines, which pandas keeps and which are as large as the rest.
    columns = {name: table[name].to_numpy()[lines.to_numpy()] for name in table}
    return pd.DataFrame(columns, copy=False)


def _results(data: AuditedData, side: str, split: int | None = None) -> dict:
    # Column by column: a table of millions of rows is not copied.
    own = _are_of(data, side, split)
    number = int(own.sum())
    rows, is_used = data.rows, own & data.rows["used"]
    answers, pairs = _kept(data, is_used)
    lengths = _lengths(data, is_used, answers, pairs)
    spreads = {name: _spread(lengths.pop(name)) for name in [*lengths]}

    packed = int(rows["tokens"][is_used].sum())
    repeated = rows["shared"][is_used] * (rows["kept"][is_used] - 1)

    reasons = rows["reason"][own].value_counts()
    dropped = {str(reason): int(reasons[reason]) for reason in UNUSABLE if reasons[reason]}
    cut = rows["cut"][own & (rows["cut"] > 0)]
    defects = data.defects["defect"][own.to_numpy()[data.defects["comparison"]]]
    repeats = {"duplicates": Reason.DUPLICATE, "contradictions": CONTRADICTION}
    repeats |= {"leaks": Reason.LEAK} if side == EVALUATION else {}
    return {
        "rows": number,
        "comparisons": number - sum(dropped.values()),
        "dropped": dropped,
        "sources": rows["source"][own].value_counts().loc[lambda n: n > 0].to_dict(),
        "cut": {"rows": len(cut), "tokens": _spread(cut.to_numpy())},
        "lengths": spreads,
        "pairs": len(pairs),
        "longer_better": _longer_better(pairs),
        "tokens": {
            "packed": packed,
            "separate": packed + int(repeated.sum()),
        },
        **{name: int((defects == defect).sum()) for name, defect in repeats.items()},
    }


def _spread(values: np.ndarray) -> dict | None:
    """Mean, median, 95th percentile and largest value; None if there is no value."""
    if not len(values):
        return None
    median, p95 = np.percentile(values, [50, 95], method="inverted_cdf").tolist()
    return {"mean": float(values.mean()), "median": median, "p95": p95, "max": int(values.max())}
