"""The command line of rw_eval.py, in groups, and what can be checked in it alone."""

import argparse
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from utils.data.formats.columns import parse_columns
from utils.data.formats.layouts import FORMATS
from utils.data.settings import ChatTemplateSettings, columns_flag, format_flag
from utils.settings import (
    FREE,
    FlagParser,
    InputError,
    Settings,
    flag,
    layout_flag,
    remote_code_flag,
    user_path,
)

TOKEN_VARIABLE = "REWARD_SERVER_TOKEN"  # holds what clients of --serve must know

MAX_QUEUE = 8192

BENCHMARKS = ("rewardbench", "rewardbench2", "rm-bench", "judgebench", "llmbar")


def parse_batch_size(text: str) -> int | str:
    """A whole number, or the word auto; ValueError if it is neither."""
    return text if text == "auto" else int(text)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def parse_address(text: str) -> Address:
    """The address of --serve, [HOST:]PORT; argparse.ArgumentTypeError if it is none."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end with a port; expected [HOST:]PORT, such as 8000 or "
            "0.0.0.0:8000, with a port up to 65535 (0: a free one)"
        )
    return Address(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings(Settings):
    """The model that scores."""

    title = "model"
    model_name_or_path: str = flag(None, "folder or hub name of the reward model", type=user_path)
    dtype: str = flag(
        None,
        "precision of the model (default: the checkpoint's where the GPU has it; fp32 on a CPU)",
        choices=("fp32", "bf16", "fp16"),
    )
    device_map: str | None = flag(
        None,
        "spread a model that is bigger than a GPU over all GPUs, CPU memory and files",
        choices=("auto",),
        resume=FREE,
    )
    normalize: bool = flag(
        False,
        "subtract the mean of the evaluation scores of training and divide by their standard "
        "deviation, as the checkpoint has them",
    )
    trust_remote_code: bool = remote_code_flag()


@dataclass(frozen=True, kw_only=True)
class InputSettings(Settings):
    """The answers that are scored."""

    title = "what to score"
    prompt: str | None = flag(None, "a prompt; its answers follow in --response", resume=FREE)
    response: list[str] = flag(
        None, "answers to --prompt; may be given several times", action="extend", resume=FREE
    )
    interactive: bool = flag(
        False, "ask for a prompt, then for answers, and score each as it is typed", resume=FREE
    )
    data_path: list[str] | None = flag(
        None,
        "files, folders or hub names (OWNER/NAME[/FOLDER][@REVISION][#CONFIGURATION]) with "
        "comparisons, in any layout that main.py takes, or with prompt and response(s) that "
        "nobody ranked; - reads JSON lines from standard input",
        type=user_path,
    )
    format: str | None = format_flag(FORMATS)
    columns: list[str] | None = columns_flag()

    def _check(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise InputError("--prompt and --response go together")
        parse_columns(self.columns)
        for name in ("format", "columns"):
            if getattr(self, name) and not self.data_path:
                raise InputError(f"--{name} goes with --data_path")
        if self.data_path and self.data_path.count("-") > 1:
            raise InputError("--data_path names standard input (-) more than once")


@dataclass(frozen=True, kw_only=True)
class ServingSettings(Settings):
    """Scores for other programs, over HTTP."""

    title = "server"
    serve: Any = flag(
        None,
        "answer /score, OpenRLHF's /get_reward and vLLM's /classify on this port of 127.0.0.1, or "
        "of another HOST; 0: a free port, which is printed",
        type=parse_address,
        metavar="[HOST:]PORT",
        resume=FREE,
    )
    max_queue: int = flag(
        MAX_QUEUE,
        "answers that may wait for the model: while some wait, a request beyond that gets status "
        "429 at once",
        least=1,
        resume=FREE,
    )

    def _check(self) -> None:
        if not self.serve:
            if self.max_queue != MAX_QUEUE:
                raise InputError("--max_queue goes with --serve")
            return
        if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
            raise InputError(
                f"--serve needs {' and '.join(missing)}: run `source .venv/bin/activate`, or "
                "`pip install -r requirements.txt`"
            )
        token = os.environ.get(TOKEN_VARIABLE, "-")
        if not token or token != token.strip():
            raise InputError(
                f"{TOKEN_VARIABLE} is empty, or has white space around it: give it the token that "
                "--serve asks for, or unset it"
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Settings):
    """What is evaluated beyond the scores."""

    title = "evaluation"
    benchmark: str | None = flag(
        None,
        "a public benchmark, in its own layout and with its own section scores: from the hub, or "
        "from the file or folder in --data_path",
        choices=BENCHMARKS,
    )
    compare: list[str] = flag(
        None,
        "put two evaluations side by side (the folders of two --output_dir on the same data) and "
        "test the difference; needs no model",
        type=user_path,
        nargs=2,
        metavar=("DIR_A", "DIR_B"),
        resume=FREE,
    )
    label: str = flag(
        "hard",
        "what calibration is measured against: which answer is better, or the share of annotators "
        "who said so (columns votes or preference_strength), with its log-loss",
        choices=("hard", "soft"),
    )


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What is written, and where."""

    title = "output"
    output_dir: str = flag(
        None,
        "folder for scores.jsonl (one line a row), report.md, report.json and pictures",
        type=user_path,
        resume=FREE,
    )
    overwrite_output_dir: bool = flag(False, "replace the evaluation in it", resume=FREE)
    resume: bool = flag(
        False,
        "go on after the last line that a run which was cut has written to --output_dir",
        resume=FREE,
    )
    best_of_n: bool = flag(
        False,
        "no report: write the best answer of each row as JSON lines; to standard output, or into "
        "--output_dir",
        exclusive=True,
        resume=FREE,
    )
    as_pairs: bool = flag(
        False,
        "the same with the best answer as chosen and the worst as rejected",
        exclusive=True,
        resume=FREE,
    )
    as_scores: bool = flag(
        False, "the same with all answers and their scores", exclusive=True, resume=FREE
    )

    def _check(self) -> None:
        if self.resume and not self.output_dir:
            raise InputError("--resume needs the --output_dir of the run that was cut")
        if self.resume and self.overwrite_output_dir:
            raise InputError("--resume and --overwrite_output_dir exclude each other")


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(Settings):
    """How many comparisons run at once."""

    title = "batches (no score depends on them)"
    batch_size: Any = flag(
        "auto",
        "comparisons in a batch, or auto: as many as the device runs well",
        type=parse_batch_size,
        least=1,
        resume=FREE,
    )
    batch_layout: str = layout_flag()
    local_rank: int = flag(-1, "set by the launcher", least=None, resume=FREE)


@dataclass(frozen=True, kw_only=True)
class SavedTextSettings(Settings):
    """How text becomes tokens, where it is not to be as the checkpoint says."""

    title = "text to tokens"
    about = "what training used is read from the checkpoint; these override it"
    max_seq_len: int | None = flag(None, "longest sequence in tokens", least=1, resume=FREE)
    score_position: str | None = flag(
        None,
        "the token whose value is the score",
        choices=("end", "first_pad", "mean"),
        resume=FREE,
    )
    add_eot_token: bool = flag(False, "end every answer with <|endoftext|>", resume=FREE)
    apply_chat_template: bool | None = flag(
        None, "take a text prompt as one user message and render it as a conversation", resume=FREE
    )
    answer_end: str | None = flag(
        None,
        "token: cut white space at the end of messages and append the end token, as main.py trains "
        "(a text prompt then stands as it is, without --apply_chat_template); as_written: score "
        "the last token of what the chat template, or for texts the tokenizer, writes (default: as "
        "the checkpoint says; of one that says nothing as_written)",
        choices=("token", "as_written"),
        resume=FREE,
    )
    num_padding_at_beginning: int | None = flag(
        None,
        "as in main.py: found out from the tokenizer, an error if it contradicts it",
        resume=FREE,
    )

    def _check(self) -> None:
        if self.add_eot_token and self.answer_end == "as_written":
            raise InputError("--add_eot_token and --answer_end as_written exclude each other")


@dataclass(frozen=True, kw_only=True)
class ScorerSettings(
    RewardModelSettings,
    InputSettings,
    ServingSettings,
    BenchmarkSettings,
    ReportSettings,
    ScoringSettings,
    SavedTextSettings,
    ChatTemplateSettings,
):
    """All of rw_eval.py's flags, in the order of the help."""

    def _check(self) -> None:
        """Refuse what the groups contradict each other in."""
        if self.compare is None and self.model_name_or_path is None:
            raise InputError("--model_name_or_path is required")
        self._check_sources()

        rows = bool(self.data_path or self.benchmark)
        for name in ("best_of_n", "as_pairs", "as_scores", "resume"):
            if getattr(self, name) and not rows:
                raise InputError(f"--{name} goes with --data_path or --benchmark")
        if self.output_dir and not (rows or self.compare):
            raise InputError("--output_dir goes with --data_path, --benchmark or --compare")
        if self.resume and "-" in (self.data_path or ()):
            raise InputError(
                "--resume cannot go back in standard input: give a file in --data_path"
            )

    def _check_sources(self) -> None:
        asked = {
            "--prompt": self.prompt is not None,
            "--interactive": self.interactive,
            "--data_path": bool(self.data_path),
            "--benchmark": self.benchmark is not None,
            "--serve": self.serve is not None,
            "--compare": self.compare is not None,
        }
        given = [name for name, there in asked.items() if there]
        if len(given) > 1 and given != ["--data_path", "--benchmark"]:
            raise InputError(f"{' and '.join(given)} exclude each other")

        for name in ("format", "columns"):
            if self.benchmark and getattr(self, name):
                raise InputError(
                    f"--benchmark and --{name} exclude each other: a benchmark has its own layout"
                )
        if self.benchmark and self.data_path and len(self.data_path) > 1:
            raise InputError("--benchmark takes one file or folder in --data_path")


def parse_evaluation_arguments(argv: list[str] | None = None) -> ScorerSettings:
    """Parse rw_eval.py's command line; a wrong flag or value exits with code 2."""
    parser = FlagParser(
        ScorerSettings,
        prog="rw_eval.py",
        usage="rw_eval.py --model_name_or_path MODEL [flags; see --help]",
        description="Score answers with a reward model. Without anything to score it scores two "
        "built-in prompts, each with a good and a bad answer.",
        config="as batch_size: 8 or normalize: true",
        removed={"--pad_to_multiple_of": "leave it out; no batch needs it"},
    )
    return parser.parse(argv)
