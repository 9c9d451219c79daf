import json
import warnings

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.data.auditing import make_row, make_split, malformed, read
from utils.audit import audit as audit_module
from utils.audit.findings import find_findings
from utils.audit.report import write_audit
from utils.audit.results import audit_results, lengths_of

SECONDS = 7200.0
SETTINGS = {"max_seq_len": 40, "overlength": "truncate_prompt"}


def clean_rows(number, name="", first=0):
    """Comparisons of their own, in every second of which the longer answer is the better one."""
    return [
        make_row(f"{name} {i}", (f"{name} {i}", f"{name} {i}, or not"), (i % 2, 1 - i % 2))
        for i in range(first, first + number)
    ]


def planted():
    """Three files, and the (path, row, defect) of all that is wrong in them."""
    train, more, evaluation = clean_rows(60), clean_rows(40, "b"), clean_rows(300, "e")
    train[2] = malformed("chosen is 3; expected text")
    train[4] = make_row("t", ranks=(0, 0), dropped="tied")
    train[6] = make_row("i", ("a", "a"), dropped="identical answers")
    train[8] = make_row("c", dropped="identical after truncation", cut=30)
    train[10] = make_row("x", ("a", ""), dropped="empty answer")
    train[30] = {**train[20], "answers": [1, 0], "answer_tokens": train[20]["answer_tokens"][::-1]}
    more[5] = dict(train[21])
    more[7] = make_row("k", ("a", "b", "c"), (0, 1, 2))
    more[9] = make_row("k", ("c", "x", "b"), (0, 1, 1))
    evaluation[11] = make_row("k", ("new", "answer"))
    expected = {
        ("a.jsonl", 3, "malformed"),
        ("a.jsonl", 5, "tied"),
        ("a.jsonl", 7, "identical answers"),
        ("a.jsonl", 9, "identical after truncation"),
        ("a.jsonl", 11, "empty answer"),
        ("a.jsonl", 31, "exact duplicate"),
        ("b.jsonl", 6, "exact duplicate"),
        ("b.jsonl", 8, "contradictory labels"),
        ("b.jsonl", 10, "contradictory labels"),
        ("e.jsonl", 12, "prompt on both sides"),
    }
    splits = [make_split(train, "a.jsonl", chunks=3), make_split(more, "b.jsonl")]
    return read(splits, [make_split(evaluation, "e.jsonl")]), expected


def findings_of(data):
    return find_findings(data, audit_results(data))


def write(folder, data, seconds=None):
    results = audit_results(data)
    findings = find_findings(data, results)
    write_audit(folder, data, results, findings, settings=SETTINGS, seconds=seconds)


def kinds(findings):
    return [(finding.kind, finding.serious) for finding in findings]


def read_rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_every_planted_defect_is_found_and_none_is_invented(tmp_path):
    audit, expected = planted()
    write(tmp_path, audit)
    rows = read_rows(tmp_path)
    found = [(row["path"], row["row"], row["defect"]) for row in rows]
    assert len(found) == len(set(found)) and set(found) == expected
    details = {(row["path"], row["row"]): row["detail"] for row in rows}
    assert details["a.jsonl", 3] == "chosen is 3; expected text"
    assert details["a.jsonl", 31] == "repeats row 21 of a.jsonl"
    assert details["b.jsonl", 6] == "repeats row 22 of a.jsonl"
    assert details["b.jsonl", 8].startswith("row 10 of b.jsonl")
    assert details["b.jsonl", 10].startswith("row 8 of b.jsonl")
    assert details["e.jsonl", 12].startswith("row 8 of b.jsonl trains its prompt")


def test_findings_of_the_planted_defects():
    findings = findings_of(planted()[0])
    assert kinds(findings) == [
        ("malformed", True),
        ("contradictory labels", True),
        ("exact duplicates", True),
        ("identical after truncation", True),
        ("prompts on both sides", False),
    ]
    assert [finding.count for finding in findings] == [1, 2, 2, 1, 1]
    assert findings[2].rows == [("a.jsonl", 31), ("b.jsonl", 6)]
    named = ["row 3 of a.jsonl", "rows 8, 10 of b.jsonl", "row 31 of a.jsonl; row 6 of b.jsonl"]
    named += ["a.jsonl: 1 of 60, 1.7 %, row 9", "row 12 of e.jsonl"]
    flags = ["--max_bad_rows", "--deduplicate", "--deduplicate", "--max_seq_len", "left out"]
    for finding, rows, flag in zip(findings, named, flags, strict=True):
        assert rows in finding.sentence and flag in finding.sentence


@pytest.mark.parametrize(
    ("mode", "serious"),
    [
        ("off", ["contradictory labels", "exact duplicates"]),
        ("exact", ["contradictory labels"]),
        ("prompt", []),
    ],
)
def test_what_is_removed_is_shown_but_not_serious(tmp_path, mode, serious):
    train, evaluation = clean_rows(60), clean_rows(300, "e")
    train[30] = dict(train[20])  # a duplicate
    train[40] = train[10] | {"ranks": train[10]["ranks"][::-1]}  # a contradiction
    train[50:52] = [make_row("t", ranks=(0, 0), dropped="tied")] * 2  # equal, but none trains
    evaluation[11] = dict(train[3])  # a leak
    audit = read([make_split(train)], [make_split(evaluation, "e.jsonl")], mode)
    findings = findings_of(audit)
    assert [one.kind for one in findings if one.serious] == serious
    shown = {one.kind: one for one in findings if not one.serious}
    assert shown["prompts on both sides"].rows == [("e.jsonl", 12)]
    assert ("a.jsonl", 52) in shown["exact duplicates"].rows
    assert "left out" in shown["exact duplicates"].sentence
    write(tmp_path, audit)
    details = {(row["row"], row["defect"]): row["detail"] for row in read_rows(tmp_path)}
    end = "" if mode == "off" else "; left out"
    assert details[31, "exact duplicate"] == f"repeats row 21 of a.jsonl{end}"
    assert details[52, "exact duplicate"] == "repeats row 51 of a.jsonl; left out"
    assert details[12, "prompt on both sides"] == "row 4 of a.jsonl trains its prompt; left out"
    assert details[41, "contradictory labels"].endswith("left out") == (mode == "prompt")
    # Tokens to train are those of what is left.
    assert (
        audit.rows["used"][audit.rows["training"]].sum()
        == {"off": 58, "exact": 57, "prompt": 56}[mode]
    )


def test_clean_rows_have_no_findings(tmp_path):
    audit = read([make_split(clean_rows(400))], [make_split(clean_rows(300, "e"))])
    assert findings_of(audit) == []
    write(tmp_path, audit)
    assert read_rows(tmp_path) == []
    assert "Nothing crossed a threshold." in (tmp_path / "audit.md").read_text()


def with_rows(number, **changes):
    """An audit of 100 rows, so many of them changed, and enough to evaluate."""
    rows = clean_rows(100)
    rows[:number] = [row | changes for row in rows[:number]]
    return read([make_split(rows)], [make_split(clean_rows(300, "e"))])


@pytest.mark.parametrize(
    ("kind", "serious", "limit", "changes"),
    [
        ("cut", False, 10, {"cut": 3}),
        ("tied or empty", False, 10, {"dropped": "tied"}),
        ("tied or empty", False, 10, {"dropped": "empty answer"}),
        ("too long", False, 10, {"dropped": "longer than max_seq_len"}),
        ("identical after truncation", True, 1, {"dropped": "identical after truncation"}),
    ],
)
def test_thresholds_of_shares(kind, serious, limit, changes):
    assert kinds(findings_of(with_rows(limit, **changes))) == []
    (finding,) = findings_of(with_rows(limit + 1, **changes))
    assert (finding.kind, finding.serious, finding.count) == (kind, serious, limit + 1)
    assert f"More than {limit} % of the rows" in finding.sentence
    assert f"a.jsonl: {limit + 1} of 100, {limit + 1}.0 %, rows 1, 2" in finding.sentence
    assert finding.rows == [("a.jsonl", row) for row in range(1, min(limit + 1, 5) + 1)]


@pytest.mark.parametrize("better", ["longer", "shorter"])
@pytest.mark.parametrize(("pairs", "number", "found"), [(100, 70, 0), (100, 71, 1), (3, 3, 0)])
def test_the_longer_answer_is_better_too_often(better, pairs, number, found):
    """Three of three may be chance."""
    long, short = (0, 1) if better == "longer" else (1, 0)
    rows = [make_row(f"{i}", ("long one", "x"), (long, short)) for i in range(number)]
    rows += [make_row(f"-{i}", ("long one", "x"), (short, long)) for i in range(pairs - number)]
    audit = read([make_split(rows)], [make_split(clean_rows(300, "e"))])
    assert kinds(findings_of(audit)) == [(f"{better} answers are better", False)] * found


@pytest.mark.parametrize(("pairs", "found"), [(199, 1), (200, 0)])
def test_few_pairs_to_evaluate(pairs, found):
    audit = read([make_split(clean_rows(50))], [make_split(clean_rows(pairs, "e"))])
    assert kinds(findings_of(audit)) == [("few pairs to evaluate", False)] * found


def test_repeats_on_the_evaluation_side():
    rows = clean_rows(300, "e")
    rows[5] = dict(rows[4])
    rows[9] = rows[8] | {"ranks": rows[8]["ranks"][::-1]}
    audit = read([make_split(clean_rows(50))], [make_split(rows, "e.jsonl")])
    findings = findings_of(audit)
    assert kinds(findings) == [("contradictory labels", True), ("exact duplicates", False)]
    assert [one.rows for one in findings] == [
        [("e.jsonl", 9), ("e.jsonl", 10)],
        [("e.jsonl", 6)],
    ]


def test_many_defects_are_all_written_and_five_are_named(tmp_path):
    rows = [make_row("p", ("a", "b"))] * 3000
    audit = read([make_split(rows)], [make_split(clean_rows(300, "e"))])
    write(tmp_path, audit)
    assert [row["row"] for row in read_rows(tmp_path)] == list(range(2, 3001))
    (finding,) = findings_of(audit)
    assert finding.count == 2999 and "rows 2, 3, 4, 5, 6 of a.jsonl, ..." in finding.sentence


def test_files_of_the_audit(tmp_path):
    audit, _ = planted()
    write(tmp_path / "audit", audit, SECONDS)
    names = {"audit.md", "audit.json", "rows.jsonl", "lengths.png", "length_gap.png"}
    assert {path.name for path in (tmp_path / "audit").iterdir()} == names
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert report["results"] == audit_results(audit)
    assert report["estimated_seconds"] == SECONDS and report["settings"] == SETTINGS
    total = {result["path"]: result for result in report["results"]}["all (training)"]
    assert (total["rows"], total["duplicates"], total["contradictions"]) == (100, 2, 2)
    text = (tmp_path / "audit" / "audit.md").read_text()
    assert "Estimated time: 2 hours for all epochs" in text
    for finding in report["findings"]:
        assert finding["sentence"] in text
    tables = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    for row, line in zip(tables, tables[1:], strict=False):
        assert len(row) == len(line) or line[1].strip() == "path"


@pytest.mark.parametrize("names", [["a.jsonl"], ["x" * 90, "a.jsonl", "a.jsonl"]])
def test_summary_fits_80_columns(capsys, monkeypatch, names):
    monkeypatch.setenv("COLUMNS", "80")
    splits = [make_split(clean_rows(30, name), name) for name in names]
    splits.append(make_split(clean_rows(9, "e")))
    splits[-1].trains = False
    serious = audit_module.audit(splits, SETTINGS, estimate=lambda *amount: SECONDS)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert serious == ("!!" in printed) == (len(names) > 1)  # two of the files are the same
    assert "! Pairs to evaluate: 9. With fewer than 200" in printed
    assert "Estimated time: 2 hours" in printed


def test_paths_of_results_are_different_ones():
    splits = [make_split(clean_rows(5, name)) for name in "ab"]
    results = audit_results(read(splits, [make_split(clean_rows(5, "e"))]))
    paths = ["a.jsonl", "a.jsonl (training, 2)", "all (training)", "a.jsonl (evaluation, 1)"]
    assert [result["path"] for result in results] == paths


def skewed_rows():
    """Lengths as people's texts have them, one of them very long."""
    generator = np.random.default_rng(0)
    tokens = (generator.lognormal(4, 1, (500, 3)) + 1).astype(int)
    tokens[7] = 100_000
    return [
        make_row(f"{i}", prompt_tokens=int(prompt), answer_tokens=[int(a), int(b)])
        for i, (prompt, a, b) in enumerate(tokens)
    ]


CASES = {
    "skewed": skewed_rows(),
    "one row": clean_rows(1),
    "one length": [make_row(f"{i}") for i in range(10)],
    "only ties": [make_row(ranks=(0, 0))],
}


@pytest.mark.parametrize("case", CASES)
def test_pictures(tmp_path, monkeypatch, case):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k))
    )
    audit = read([make_split(CASES[case])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, audit)
    pictures = sorted(tmp_path.glob("*.png"), reverse=True)
    has_gaps = bool(audit_results(audit)[0]["longer_better"]["gaps"])
    assert [path.name for path in pictures] == ["lengths.png", "length_gap.png"][: 1 + has_gaps]
    for path in pictures:
        assert min(matplotlib.image.imread(path).shape[:2]) > 300
    lengths = lengths_of(audit, "training")
    prompts, answers, sequences = figures[0].axes
    shown = (prompts, "prompt", 0), (answers, "better", 0), (answers, "worse", 2)
    for axes, name, patch in (*shown, (sequences, "sequence", 0)):
        values = lengths[name]
        if not len(values):
            assert not axes.patches
            continue
        data = axes.patches[patch].get_data()
        np.testing.assert_array_equal(
            np.histogram(values[values < data.edges[-1]], data.edges)[0], data.values
        )
        assert data.values.sum() >= 0.98 * len(values)
        assert axes.get_xlabel() and axes.get_ylabel()
    assert sequences.lines[0].get_xdata() == [40, 40]
    notes = [text.get_text() for text in prompts.texts]
    assert notes == (["2 beyond, up to 100,000"] if case == "skewed" else [])


def test_nothing_to_draw(tmp_path):
    audit = read([make_split([malformed("bad")] * 2)])
    (tmp_path / "lengths.png").write_text("of an audit before")
    write(tmp_path, audit)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.md", "audit.json", "rows.jsonl"}


def test_what_the_chat_template_does_not_write_is_found(tmp_path):
    rows = clean_rows(400)
    lost = "not rendered by the chat template"
    rows[3] = make_row("l", kept=[], dropped=lost, problem="answer 1: tool_calls (assistant)")
    rows[5]["unrendered"] = "tools"
    audit = read([make_split(rows)], [make_split(clean_rows(300, "e"))])
    found = {finding.kind: finding for finding in findings_of(audit)}
    assert found[lost].serious and found[lost].rows == [("a.jsonl", 4)]
    (passed,) = (finding for kind, finding in found.items() if kind.startswith("part of"))
    assert not passed.serious and passed.count == 1 and passed.rows == [("a.jsonl", 6)]
    write(tmp_path, audit)
    defects = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [(d["row"], d["detail"]) for d in defects] == [
        (4, "answer 1: tool_calls (assistant)"),
        (6, "tools"),
    ]
