"""main.py --audit_data finds each of twelve planted defects with its row, and no other."""

import json

from tests.conftest import make_pairs, run_command, write_jsonl

LONG = " and so on" * 200


def plant(folder):
    """Writes two files.

    Returns:
        Row numbers, counted from 1, of each defect: of the training file, of the evaluation file.
    """
    rows = make_pairs(70)
    lines = [json.dumps(row) for row in rows]
    malformed = {
        3: lines[2][:-9],
        8: json.dumps({"prompt": "Why?", "chosen": "Because."}),
        16: json.dumps({**rows[15], "chosen": "lone \ud800 surrogate"}),
        22: json.dumps({**rows[21], "prompt": "a NUL \0 byte"}),
        30: json.dumps({**rows[29], "rejected": "x" * 10_000_000}),
        31: json.dumps({**rows[30], "margin": float("nan")}),
        41: json.dumps({**rows[40], "chosen": []}),
    }
    for row, line in malformed.items():
        lines[row - 1] = line
    lines[44] = json.dumps({**rows[44], "rejected": rows[44]["chosen"]})
    long = {side: f" It is{LONG} {side}." for side in ("chosen", "rejected")}
    lines[50] = json.dumps({**rows[50], **long})
    lines[59] = json.dumps(rows[9])
    swapped = {"chosen": rows[19]["rejected"], "rejected": rows[19]["chosen"]}
    lines[65] = json.dumps({**rows[19], **swapped})
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    others = [{**row, "prompt": f"{row['prompt']} Please"} for row in rows]
    others[4] = {**rows[33], "chosen": " Forty."}
    write_jsonl(folder / "eval.jsonl", others)
    bad = {
        "malformed": [*malformed],
        "identical answers": [45],
        "identical after truncation": [51],
        "exact duplicate": [60],
        "contradictory labels": [20, 66],
    }
    return bad, {"prompt on both sides": [5]}


def audit(workspace, folder, train, *more):
    return run_command(
        *("python", "main.py", "--model_name_or_path", workspace / "model"),
        *("--data_path", train, "--eval_data_path", folder / "eval.jsonl"),
        *("--data_output_path", folder / "cache", "--output_dir", folder / "output"),
        *("--max_seq_len", 128, "--overlength", "truncate_end", "--audit_data", "--strict", *more),
    )


def test_planted_defects_are_found_with_their_rows_and_none_is_invented(workspace, tmp_path):
    planted = plant(tmp_path)
    done = audit(workspace, tmp_path, tmp_path / "train.jsonl")
    assert done.returncode == 3, done.stderr
    folder = tmp_path / "output" / "audit"
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["audit"]
    found = {"train.jsonl": {}, "eval.jsonl": {}}
    for line in (folder / "rows.jsonl").open(encoding="utf-8"):
        one = json.loads(line)
        name = one["path"].rpartition("/")[2]
        found[name].setdefault(one["defect"], []).append(one["row"])
    assert {d: sorted(rows) for d, rows in found["train.jsonl"].items()} == planted[0]
    assert found["eval.jsonl"] == planted[1]
    assert {path.suffix for path in folder.iterdir()} == {".md", ".json", ".jsonl", ".png"}
    for row in planted[0]["malformed"][:4]:
        assert str(row) in done.stdout
    assert "Estimated time" in done.stdout


def test_clean_data_pass_a_strict_audit(workspace, tmp_path):
    rows = [{**row, "prompt": f"{row['prompt']} Well"} for row in make_pairs(210)]
    train = write_jsonl(tmp_path / "clean.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", make_pairs(210))
    done = audit(workspace, tmp_path, train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "output" / "audit" / "rows.jsonl").read_text() == ""
    report = json.loads((tmp_path / "output" / "audit" / "audit.json").read_text())
    assert not [finding for finding in report["findings"] if finding["serious"]]
