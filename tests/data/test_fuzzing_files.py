"""Whatever a file holds or a command line says: a clean error, or comparisons that can train."""

import contextlib
import gzip
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_pairs
from tests.data.loading import make_encoder
from utils.data.batch import NO_INPUTS
from utils.data.row_selection import choose_rows, join_rows
from utils.settings import InputError
from utils.training.settings import parse_training_arguments

SETTINGS = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROWS = make_pairs(12)
LINES = [json.dumps(row) for row in ROWS]

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["\ud800", "a\0b", "</s>", "", " ", "1e400", "x" * 2000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
columns = st.sampled_from(["prompt", "chosen", "rejected", "source", "margin", "votes", "weight"])
changes = st.lists(st.tuples(st.integers(0, 11), columns, values), max_size=4)
contents = st.one_of(
    st.tuples(st.just("bytes"), st.binary(max_size=300)),
    *[st.tuples(st.just("rows"), changes)] * 3,
    st.tuples(st.just("damage"), st.tuples(st.integers(0, 2000), st.binary(max_size=8))),
    st.tuples(st.just("lines"), st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=40)))),
)
names = st.sampled_from(
    [
        "a.jsonl",
        "a.json",
        "a.csv",
        "a.parquet",
        "a.jsonl.gz",
        "a.csv.gz",
        "a.yaml",
        "a.txt",
        "a.pkl",
    ]
)


def write_content(path, kind, content):
    """A file with some of it as it should be."""
    if kind == "bytes":
        data = content
    elif kind == "lines":
        data = "\n".join(content).encode("utf-8", "surrogatepass")
    else:
        rows = [dict(row) for row in ROWS]
        if kind == "rows":
            for number, column, value in content:
                rows[number][column] = value
        if path.suffix == ".json":
            data = json.dumps(rows).encode()
        elif path.suffix == ".csv":
            cells = [[str(value) for value in row.values()] for row in rows]
            lines = ["prompt,chosen,rejected", *(",".join(row) for row in cells)]
            data = "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            data = "\n".join(map(json.dumps, rows)).encode()
        if kind == "damage":
            place, garbage = content
            data = data[:place] + garbage + data[place:]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_random_files(tmp_path, opt_tokenizer, capsys):
    encoder = make_encoder(opt_tokenizer)
    outcomes = {"loaded": 0, "refused": 0}

    @SETTINGS
    @given(name=names, content=contents, limit=st.sampled_from(["0.001", "1", "1", "1"]))
    def load(name, content, limit):
        path = tmp_path / name
        write_content(path, *content)
        words = ["--model_name_or_path", "m", "--data_output_path", str(tmp_path / "cache")]
        words += ["--data_path", str(path), "--max_bad_rows", limit, "--eval_fraction", "0.3"]
        try:
            with contextlib.suppress(SystemExit):
                args = parse_training_arguments(words)
                splits = choose_rows(args, encoder, NO_INPUTS, args.seed)
                data = join_rows(args, splits, NO_INPUTS)
                for row in (*data.train, *data.evaluation):
                    assert len(row["input_ids"]) == len(row["answers"]) >= 2
                    assert all(ids[-1] == opt_tokenizer.eos_token_id for ids in row["input_ids"])
                outcomes["loaded"] += 1
                return
            outcomes["refused"] += 1
        except InputError as error:
            assert str(tmp_path) in str(error)
            outcomes["refused"] += 1

    load()
    # How many of each follows from the code that Hypothesis sees, so the bound is a low one.
    assert outcomes["loaded"] > 10 and outcomes["refused"] > 10, outcomes


SWITCHES = ("--audit_data", "--strict", "--apply_chat_template")
FLAGS = (
    *("--data_path", "--eval_data_path", "--format", "--eval_fraction", "--data_split"),
    *("--data_output_path", "--num_workers", "--deduplicate", "--max_bad_rows", "--max_seq_len"),
    *("--overlength", "--max_steps", "--chat_template", "--num_padding_at_beginning", "--seed"),
)
words = st.one_of(
    st.sampled_from(["a:0.5", "b:3", "a:nan", "a:0", "1,2", "0", "-1", "nan", "inf", "1e999"]),
    st.sampled_from(["pairs", "exact", "off", "none.yaml", "x" * 5000, "drop", "8", "0.5", ""]),
    st.text(max_size=10).filter(lambda text: "\0" not in text),
)
given_flags = st.one_of(
    st.tuples(st.sampled_from(FLAGS), words), st.tuples(st.sampled_from(SWITCHES))
)


def test_random_command_lines(capsys):
    outcomes = {0: 0, 2: 0, "parsed": 0}

    @SETTINGS
    @given(st.lists(given_flags, max_size=4), st.lists(words, max_size=1))
    def parse(flags, more):
        command = [word for flag in flags for word in flag]
        try:
            parse_training_arguments(["--model_name_or_path", "m", *command, *more])
            outcomes["parsed"] += 1
        except SystemExit as stop:
            outcomes[stop.code] += 1  # KeyError: another code

    parse()
    assert outcomes["parsed"] > 10 and outcomes[2] > 100, outcomes
