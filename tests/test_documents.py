"""What the documents say, done: the commands of README and docs run; flags, files, links exist."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import (
    ROOT,
    TOO_LONG,
    free_port,
    make_pairs,
    save_language_model,
    train_opt_tokenizer,
    write_jsonl,
)
from utils.evaluation.settings import parse_evaluation_arguments
from utils.training.settings import parse_training_arguments

# In this order their commands run, since later ones use what earlier ones wrote.
NAMES = ["README", "data", "training", "evaluation", "scaling", "results", "coming-from"]
NAMES = [*NAMES, "consumers", "serving", "troubleshooting"]
PAGES = {
    page: (ROOT / ("docs" if page != "README" else "") / f"{page}.md").read_text(encoding="utf-8")
    for page in NAMES
}
DOCUMENTS = [
    path for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks") for path in folder.glob("*.md")
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
BLOCKS = [(page, block) for page, text in PAGES.items() for block in BLOCK.finditer(text)]
NOT_RUN = [block for _, block in BLOCKS if block["reason"]]
RUN = [(page, block) for page, block in BLOCKS if not block["reason"]]
# Of the launchers and tools that the documents name.
OTHER_PROGRAMS = {
    *(
        "--critic_model_name_or_path",
        "--num_gpus",
        "--hostfile",
        "--master_port",
        "--no_ssh",
        "--nproc_per_node",
        "--nodes",
    ),
    *("--model", "--not_quantized", "--torch_dtype"),  # rewardbench's
    *(
        "--partition",
        "--signal",
        "--gpus",
        "--rm",
        "--shm-size",
        "--help",
        "--all-files",
        "--build-arg",
    ),
    *("--json", "--reward", "--remote_rm_url", "--runner", "--block-size"),
}
OTHER_TRAINERS = ("TRL", "`openrlhf")  # how headers of tables of their flags begin


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The project, tiny models under the hub names of the pages, and data under its file names."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("main.py", "rw_eval.py", "utils", "training_scripts", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "facebook").mkdir()
    sizes = {"max_position_embeddings": 1024}
    save_language_model(folder / "facebook" / "opt-350m", train_opt_tokenizer(), **sizes)
    pairs = make_pairs(48)
    ranked = [
        {
            "prompt": pair["prompt"],
            "responses": [pair["chosen"], pair["rejected"], " It is red.", " Ask me later."],
            "ranks": [1, 3, 2, 3],
        }
        for pair in pairs
    ]
    (folder / "Dahoas" / "rm-static").mkdir(parents=True)
    questions = [
        {
            "title": pair["prompt"],
            "better": pair["chosen"],
            "worse": pair["rejected"],
            "story": "What happened before is long, and not asked for.",
            "author": "Ada",
        }
        for pair in pairs
    ]
    for name, rows in {
        "comparisons.jsonl": pairs,
        "unseen.jsonl": pairs,
        "questions.jsonl": questions,
        "helpful.jsonl": pairs[:24],
        "harmless.jsonl": pairs[24:],
        "ranked.jsonl": ranked,
        "Dahoas/rm-static/train.jsonl": pairs,
        "Dahoas/rm-static/test.jsonl": pairs[:9],
    }.items():
        write_jsonl(folder / name, rows)
    return folder


@pytest.fixture(scope="module")
def environment(workspace):
    """For commands of the pages: offline, on one thread, with ports of their own."""
    ports = workspace / "bin"
    ports.mkdir()
    python = Path(sys.executable).parent
    for name in ("deepspeed", "torchrun"):
        real = f'exec "{python / name}" --master_port {free_port()} "$@"'
        (ports / name).write_text(f"#!/usr/bin/env bash\n{real}\n")
        (ports / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{ports}:{python}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(workspace / "cache"),
    }


def title(value):
    if isinstance(value, str):
        return value
    return f"line{value.string.count(chr(10), 0, value.start('text')) + 1}-{value['language']}"


@pytest.mark.parametrize(("page", "block"), RUN, ids=title)
def test_block_of_a_page_runs(workspace, environment, page, block):
    """In their order, since later ones use what earlier ones wrote."""
    text = block["text"]

    if block["language"] == "yaml":
        name = re.match(r"# (\S+\.yaml)\n", text).group(1)
        (workspace / name).write_text(text)
        return

    if block["language"] == "python":
        command = [sys.executable, "-c", text]
    else:
        assert block["language"] == "bash"
        command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=TOO_LONG
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if "expected_time.py" in text:
        assert done.stdout in PAGES[page]


def test_what_is_not_run_says_what_stands_in_for_it():
    assert len(NOT_RUN) < len(RUN)
    for block in NOT_RUN:
        assert re.search(r"needs|takes|runs in", block["reason"]), block["reason"]
        for path in re.findall(r"tests/[\w/.]+", block["reason"]):
            assert (ROOT / path).exists(), path


def test_the_command_line_of_deepspeed_chat_is_whole():
    (command,) = (b["text"] for b in NOT_RUN if "--data_output_path /tmp" in b["text"])
    flags = set(re.findall(r"--[a-z_\d]+", command)) - {"--num_gpus"}
    assert len(flags | {"--local_rank"}) == 33


def program_flags() -> set[str]:
    """Every flag of main.py and rw_eval.py."""
    parsers = (parse_training_arguments, parse_evaluation_arguments)
    return {f"--{name}" for parse in parsers for name in vars(parse(["--model_name_or_path", "m"]))}


def own_flags() -> set[str]:
    """Every flag of the programs of this project."""
    flags = program_flags()
    for program in (ROOT / "benchmarks").glob("*.py"):
        flags |= set(re.findall(r'"(--\w+)"', program.read_text()))
    return flags | {"--config", "--disable_dropout"}


def without_other_trainers(text: str) -> str:
    """A document without the columns that hold the flags of other trainers."""
    lines, skipped = [], 0
    for line in text.splitlines():
        if not line.startswith("|"):
            skipped = 0
        elif line.lstrip("| ").startswith(OTHER_TRAINERS):
            skipped = 1
        lines.append("|".join(line.split("|")[1 + skipped :]) if line.startswith("|") else line)
    return "\n".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_and_files_exist(document):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", without_other_trainers(text)))
    unknown = named - own_flags() - OTHER_PROGRAMS
    assert not unknown
    rooms = r"(?:utils|tests|benchmarks|training_scripts|docs)"
    for name in re.findall(rf"(?<![\w/.-]){rooms}/[\w/.-]*\w", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_each_flag_stands_on_a_page():
    text = without_other_trainers("\n".join(PAGES.values()))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert not program_flags() - named - {"--local_rank"}


def test_the_readme_is_short_and_leads_to_each_page():
    readme = PAGES["README"]
    assert len(readme.splitlines()) <= 220
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages == PAGES.keys() - {"README"}
    assert all(f"(docs/{page}.md)" in readme for page in pages)


@pytest.mark.parametrize("program", ["main.py", "rw_eval.py"])
@pytest.mark.parametrize("words", [["--help"], ["--no_such_flag"]])
def test_help_and_bad_flags_load_nothing_heavy(program, words):
    """Importing torch or transformers takes seconds; the answer should come at once."""
    command = [sys.executable, "-X", "importtime", program, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG)
    assert done.returncode == (0 if words == ["--help"] else 2), done.stderr
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "deepspeed", "datasets", "pyarrow"}


def test_version_and_date_are_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    newest = re.search(r"^## (\S+), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.groups() == (version, str(citation["date-released"]))
