"""Public benchmarks of reward models: where they are and how their rows are read."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from utils.benchmarks import scores
from utils.benchmarks.scores import LLMBAR, PRIOR_SETS, STYLES, TIES
from utils.data.comparison import Comparison
from utils.data.formats.layouts import Reader, find_reader
from utils.data.sources.files import BUILDERS, Rows, open_splits
from utils.data.sources.names import parse_place
from utils.evaluation.rows import OpenSource
from utils.settings import InputError

_read_ranked = find_reader(["prompt", "responses", "ranks"], "")


class Benchmark(NamedTuple):
    """A public benchmark.

    Attributes:
        hub: its data set on the hub; None if only a loading script is there.
        split: which split of it.
        download: what to get and name in --data_path where the hub cannot be reached.
        files: pattern of the names of its files in such a folder; others there are no part of it.
        read: `read(row, source) -> Comparison`, whose source is the subset. `source` is the file's
            path within the folder without its suffix. ValueError: the row is no row of the
            benchmark; KeyError: it lacks a column.
        score: `score(records) -> dict` of the records of scores.jsonl: name; sections (score
            by name, 0 to 1) and overall, None where they do not exist; subsets (accuracy,
            comparisons and unscored of each); incomplete (for a subset or section with another
            number of comparisons than the benchmark has: the two numbers); unknown (comparisons in
            subsets that the benchmark does not have, which are in no section). rewardbench2 adds
            ties, the parts of the score of Ties; rm-bench adds difficulties, by section.
    """

    hub: str | None
    split: str | None
    download: str
    read: Reader
    score: Callable[[Iterable[dict]], dict]
    files: str = "*"


def _read_rewardbench(row: dict, source: str) -> Comparison:
    """prompt, chosen, rejected, subset; the prior sets go by the name of their file."""
    file = re.sub(r"-\d+-of-\d+$", "", Path(source).name)
    return _pair(row, file if file in PRIOR_SETS else _text(row, "subset"))


def _read_rewardbench2(row: dict, source: str) -> Comparison:
    """prompt, chosen [1; more in Ties], rejected [3 or more], subset, id."""
    subset = _text(row, "subset")
    if subset == TIES and not re.fullmatch(r"(ref|tied):\d+", _text(row, "id")):
        raise ValueError(f"id is {row['id']!r}; expected ref:N or tied:N in the subset {TIES}")
    return _comparison(row["prompt"], _answers(row, "chosen"), _answers(row, "rejected"), subset)


def _read_rm_bench(row: dict, source: str) -> Comparison:
    """prompt, chosen [3], rejected [3], from plain to fancy; domain, or a file of each domain."""
    right, wrong = _answers(row, "chosen"), _answers(row, "rejected")
    if len(right) != STYLES or len(wrong) != STYLES:
        raise ValueError(f"{len(right)} chosen, {len(wrong)} rejected; expected {STYLES} of each")
    file = Path(source).name.removesuffix("_filtered")
    subset = _text(row, "domain") if "domain" in row else file
    return _comparison(row["prompt"], right, wrong, subset)


def _read_judgebench(row: dict, source: str) -> Comparison:
    """question, response_A, response_B, label, source; or prompt, chosen, rejected, subset."""
    if "question" not in row:
        return _pair(row, _text(row, "subset"))
    right, wrong = _judged(row, {"A>B": "response_A", "B>A": "response_B"})
    return _comparison(row["question"], right, wrong, _text(row, "source"))


def _read_llmbar(row: dict, source: str) -> Comparison:
    """input, output_1, output_2, label, the folder is the subset; or as in RewardBench."""
    if "input" not in row:
        return _pair(row, _llmbar_subset(_text(row, "subset")))
    if "evaluators" in Path(source).parts:
        raise ValueError("this is what an LLM answered, not the data set (evaluators/)")
    right, wrong = _judged(row, {1: "output_1", 2: "output_2"})
    return _comparison(row["input"], right, wrong, _llmbar_subset(row.get("subset") or source))


def _llmbar_subset(name: str) -> str:
    """Adversarial/GPTInst/dataset, llmbar-adver-GPTInst: one name for one subset."""
    words = re.split("[^a-z]+", name.lower())
    return next((subset for subset in LLMBAR if subset.split("-")[-1] in words), name)


def _judged(row: dict, columns: dict) -> tuple[list, list]:
    """The right and the wrong one of two answers: the label says whose column is right."""
    labels = list(columns)
    if row["label"] not in labels:
        raise ValueError(f"label is {row['label']!r}; expected {labels[0]} or {labels[1]}")
    first, second = ([row[column]] for column in columns.values())
    return (first, second) if row["label"] == labels[0] else (second, first)


def _pair(row: dict, subset: str) -> Comparison:
    return _comparison(row["prompt"], [row["chosen"]], [row["rejected"]], subset)


def _comparison(prompt: str | list, right: list, wrong: list, subset: str) -> Comparison:
    """Right answers first, rank 0. A prompt of text is one user message, as in RewardBench."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    ranks = [0] * len(right) + [1] * len(wrong)
    return _read_ranked({"prompt": prompt, "responses": right + wrong, "ranks": ranks}, subset)


def _text(row: dict, column: str) -> str:
    if not isinstance(row[column], str) or not row[column]:
        raise ValueError(f"{column} is {row[column]!r:.60}; expected text")
    return row[column]


def _answers(row: dict, column: str) -> list:
    if not isinstance(row[column], list) or not row[column]:
        raise ValueError(f"{column} is {row[column]!r:.60}; expected a list of answers")
    return row[column]


PUBLIC_BENCHMARKS = {
    "rewardbench": Benchmark(
        hub="allenai/reward-bench",
        split="filtered",
        download="data/filtered-00000-of-00001.parquet of the hub data set",
        read=_read_rewardbench,
        score=scores.rewardbench,
    ),
    "rewardbench2": Benchmark(
        hub="allenai/reward-bench-2",
        split="test",
        download="data/test-00000-of-00001.parquet of the hub data set",
        read=_read_rewardbench2,
        score=scores.rewardbench2,
    ),
    "rm-bench": Benchmark(
        hub="THU-KEG/RM-Bench",
        split="train",
        download="total_dataset.json of the hub data set",
        read=_read_rm_bench,
        score=scores.rm_bench,
    ),
    "judgebench": Benchmark(
        hub="ScalerLab/JudgeBench",
        split="gpt",
        download="data/gpt-00000-of-00001.jsonl of the hub data set, or data/claude-...",
        read=_read_judgebench,
        score=scores.judgebench,
    ),
    "llmbar": Benchmark(
        hub=None,
        split=None,
        download="the folder Dataset/LLMBar of https://github.com/princeton-nlp/LLMBar",
        read=_read_llmbar,
        score=scores.llmbar,
        files="dataset.json",  # others beside it hold what judges said
    ),
}


def open_benchmark(name: str, path: str | None) -> list[OpenSource]:
    """Open a benchmark, each file of a local folder on its own.

    Args:
        name: of PUBLIC_BENCHMARKS.
        path: local file or folder, or hub name, as `parse_place` reads it; None: where it is on
            the hub.

    Raises:
        InputError: it cannot be read.
    """
    benchmark = PUBLIC_BENCHMARKS[name]
    path = path or benchmark.hub
    if path is None:
        raise InputError(
            f"--benchmark {name} is not on the hub as plain data: download {benchmark.download}, "
            "and give its place in --data_path"
        )

    if not os.path.exists(path):
        place = parse_place(path)
        splits = open_splits(place.path, place.subset, place.revision)
        if benchmark.split not in splits:
            raise InputError(
                f"{path}: has the splits {', '.join(splits)}; expected {benchmark.split}"
            )
        return [OpenSource(path, path, splits[benchmark.split], benchmark.read)]

    root = Path(path)
    files = sorted(root.rglob(benchmark.files)) if root.is_dir() else [root]
    files = [f for f in files if Path(f.name.removesuffix(".gz")).suffix in BUILDERS]
    if not files:
        raise InputError(
            f"{path}: no file {benchmark.files} that ends in {', '.join(BUILDERS)} (or .gz)"
        )

    sources = []
    for file in files:
        within = file.relative_to(root) if root.is_dir() else Path(file.name)
        source = str(within.with_name(within.name.split(".")[0]))
        sources.append(OpenSource(str(file), source, Rows(str(file), (str(file),)), benchmark.read))
    return sources
