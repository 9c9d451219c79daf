"""Time and memory of a training step: padded to the maximum, padded to the longest, and packed.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --tokenizer facebook/opt-350m --data_path comparisons.jsonl \
        --family llama --hidden_size 2048 --num_layers 16 --dtype bf16 --peer trl

A model of the given shape with random weights takes full training steps (forward, backward,
clipping, AdamW) on the same random batches in each layout. Every contestant lives in a process of
its own, and they run in turn: what else the machine does hits all of them alike. On a CPU main.py
keeps the memory that tensors free. The padded layouts stand for other trainers, which do not;
a line more shows the padded layout with it, so that what the layout gains can be seen by itself.
`--peer trl` adds TRL's RewardTrainer, its own loop and collator, where trl is installed; it gets
ranked data exploded into pairs, since it takes no others.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from utils import distributed
from utils.arguments import parse_training_arguments
from utils.data.batching import PackedCollator, PaddedCollator
from utils.data.comparison import ranked_pairs
from utils.data.demo import write_demo
from utils.data.sources import load_source
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import NAME as SHARED_PREFIX
from utils.training.engine import build_engine, deepspeed_config
from utils.training.loss import pairwise_loss
from utils.training.throughput import Throughput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKED, PADDED_KEPT = "packed", "padded to the longest, memory kept"
LAYOUTS = ("padded to the maximum", "padded to the longest", PADDED_KEPT, PACKED)
TRL = "TRL RewardTrainer"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Time a training step in each batch layout, side by side in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data_path", help="comparisons, in any layout that main.py takes (default: the demo's)")
    add("--tokenizer", help="folder or hub name (default: the demo's)")
    add("--family", choices=("opt", "llama"), default="opt", help="of the model")
    add("--hidden_size", type=int, default=256, help="width; the MLP is four times as wide")
    add("--num_layers", type=int, default=4, help="decoder layers")
    add("--batch_size", type=int, default=16, help="comparisons in a step")
    add("--peer_batch_size", type=int, default=16, help="pairs in a step of the peer")
    add("--max_seq_len", type=int, default=512, help="tokens of prompt and answer")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="precision")
    add("--rounds", type=int, default=5, help="measured steps of each contestant")
    add("--peer", choices=("trl",), help="another trainer to time in the same run")
    add("--threads", type=int, help="CPU threads of each contestant (default: torch's)")
    add("--output", help="JSON file for all figures")
    return parser.parse_args()


def main(args) -> None:
    """Tokenise once, let the contestants run in turn, print the table."""
    names = [*LAYOUTS, TRL] if args.peer else list(LAYOUTS)
    if torch.cuda.is_available():
        names.remove(PADDED_KEPT)  # there all of them keep it
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(args, Path(folder))
    rounds = measured = take_turns(args, names, work)
    if not torch.cuda.is_available():
        # The C library keeps freed memory for later, which is fast but hides what is in use: for
        # two more rounds, which are not timed, it gives everything back at once.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
        few = argparse.Namespace(**{**vars(args), "rounds": 2})
        measured = take_turns(few, names, work)
    report(args, work, rounds, measured)


def take_turns(args, names: list[str], work: dict) -> list[dict]:
    """The rounds; in each, every contestant takes a step twice, the second time measured."""
    context = multiprocessing.get_context("spawn")
    contestants, rounds = {}, []
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=contest, args=(args, name, work, theirs), daemon=True)
        process.start()
        theirs.close()
        ours.recv()  # it is ready; the next one starts in peace
        contestants[name] = ours, process
    for number in range(args.rounds):
        results = {}
        for name, (pipe, _) in contestants.items():
            pipe.send(number)
            results[name] = pipe.recv()
        packed = results[PACKED]
        packed["matmul_rate"] = matmul_rate(args, work, int(packed["tokens"]))
        rounds.append(results)
    for pipe, process in contestants.values():
        pipe.send(None)
        process.join()
    return rounds


def prepare(args, folder: Path) -> dict:
    """Tokenised comparisons of all rounds, in random order."""
    tokenizer_path = args.tokenizer
    if args.tokenizer is None or args.data_path is None:
        write_demo(folder / "demo")
        tokenizer_path = args.tokenizer or str(folder / "demo" / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
    end_token, _ = prepare_tokenizer(tokenizer, add_eot_token=False)
    encoder = ComparisonTokenizer(tokenizer, TextSettings(end_token, args.max_seq_len))
    path = args.data_path or str(folder / "demo" / "data" / "train.jsonl")
    rows = load_source(path, encoder, str(folder / "cache"))["train"]
    kept = np.flatnonzero(np.asarray(rows["dropped"]) == "")
    order = np.random.default_rng(0).permutation(kept)[: args.batch_size * args.rounds]
    return {
        "rows": rows.select(order).to_list(),
        "vocabulary": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "tokenizer": tokenizer,
    }


def make_model(args, work, attention: str | None = None):
    """A model of the wanted shape with random weights and a scalar head."""
    shape = {
        "vocab_size": work["vocabulary"],
        "pad_token_id": work["pad_token_id"],
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.hidden_size // 64,
        "max_position_embeddings": max(2048, args.max_seq_len),
        "num_labels": 1,
    }
    if args.family == "opt":
        width = {"word_embed_proj_dim": args.hidden_size, "ffn_dim": 4 * args.hidden_size}
        config = transformers.OPTConfig(**shape, **width, dropout=0.0)
    else:
        heads = max(1, args.hidden_size // 256)
        width = {"intermediate_size": 4 * args.hidden_size, "num_key_value_heads": heads}
        config = transformers.LlamaConfig(**shape, **width)
    transformers.set_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation=attention
    )


def contest(args, name: str, work: dict, pipe) -> None:
    """The life of a contestant: get ready, then a step for each number that comes."""
    transformers.utils.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    if name == TRL:
        run_trl(args, work, pipe)
    else:
        run_layout(args, name, work, pipe)
    pipe.recv()  # None: everyone is done
    distributed.leave(0)


def run_layout(args, name: str, work: dict, pipe) -> None:
    """Train with DeepSpeed as main.py does, in one of our layouts."""
    if name in (PACKED, PADDED_KEPT):
        distributed.keep_freed_memory()
    device = distributed.initialize()
    flags = {
        "model_name_or_path": "random",
        "per_device_train_batch_size": args.batch_size,
        "dtype": args.dtype,
        "zero_stage": int(args.dtype == "bf16"),  # as main.py chooses
    }
    training = parse_training_arguments([f"--{name}={value}" for name, value in flags.items()])
    model = RewardModel(make_model(args, work, SHARED_PREFIX if name == PACKED else None))
    engine = build_engine(model, deepspeed_config(training, 1), training, 10 * args.rounds)
    engine.train()
    layout = PackedCollator if name == PACKED else PaddedCollator
    collate = layout(work["pad_token_id"])
    throughput = Throughput(engine.module, device, args.dtype, 1)

    def step(number: int) -> dict:
        rows = batch_of(work["rows"], number, args.batch_size)
        batch = collate(rows, [1 / len(rows)] * len(rows))
        if name == "padded to the maximum":
            batch = pad_to(batch, args.max_seq_len, work["pad_token_id"])
        work_done = batch.work()
        batch = batch.to(device)
        engine.backward(pairwise_loss(engine(batch), batch.pairs, batch.weight))
        engine.step()
        tokens, slots, _, attended = work_done.tolist()
        return {
            "comparisons": len(rows),
            "tokens": slots,
            "model_flops": throughput.flops(tokens, attended),
            "peak_flops": throughput.peak,
        }

    pipe.send("ready")
    for _ in range(args.rounds):
        number = pipe.recv()
        with FlopCounterMode(display=False) as counter:
            step(number)  # not timed: who waited for long finds caches and memory cold
        synchronize(device)
        at_rest = reset_peak(device)
        started = time.perf_counter()
        values = step(number)
        synchronize(device)
        values["seconds"] = time.perf_counter() - started
        values |= {"at_rest": at_rest, "peak_memory": peak(device)}
        pipe.send({**values, "matmul_flops": counter.get_total_flops()})


def run_trl(args, work: dict, pipe) -> None:
    """Train with TRL; its callbacks wait for their turn."""
    import datasets
    from trl import RewardConfig, RewardTrainer

    pairs = explode(work["rows"])
    per_comparison = len(pairs) / len(work["rows"])
    if per_comparison > 1:  # else the pairs of a comparison would stand together
        pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    size = args.peer_batch_size
    pairs = (pairs * (1 + size * args.rounds // len(pairs)))[: size * args.rounds]
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Turns(transformers.TrainerCallback):
        """In each turn a step to warm up and one that counts, both on the same pairs."""

        def on_train_begin(self, *_, **__):
            pipe.send("ready")
            pipe.recv()

        def on_step_end(self, _, state, *__, **___):
            synchronize(device)
            if state.global_step % 2:
                self.at_rest = reset_peak(device)
                self.started = time.perf_counter()
                return
            seconds = time.perf_counter() - self.started
            batch = batches[state.global_step // 2 - 1]
            longest = max(len(ids) for pair in batch for ids in pair.values())
            values = {"comparisons": size / per_comparison, "tokens": 2 * size * longest}
            memory = {"at_rest": self.at_rest, "peak_memory": peak(device)}
            pipe.send({**values, **memory, "seconds": seconds})
            if state.global_step < 2 * len(batches):
                pipe.recv()

    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            max_steps=2 * len(batches),
            max_length=args.max_seq_len,
            bf16=args.dtype == "bf16",
            gradient_checkpointing=False,  # its default trades a third more time for memory
            train_sampling_strategy="sequential",
            use_cpu=device.type == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        RewardTrainer(
            model=make_model(args, work),
            args=config,
            train_dataset=datasets.Dataset.from_list([p for b in batches for p in b + b]),
            processing_class=work["tokenizer"],
            callbacks=[Turns()],
        ).train()


def explode(rows) -> list[dict]:
    """All pairs of ranked comparisons, as TRL's RewardTrainer takes them tokenised."""
    return [
        {"chosen_ids": row["input_ids"][better], "rejected_ids": row["input_ids"][worse]}
        for row in rows
        for better, worse in ranked_pairs(
            [row["ranks"][i] for i in row["answers"]], row["input_ids"]
        )
    ]


def batch_of(rows: list[dict], number: int, size: int) -> list[dict]:
    """The comparisons of a round, the same for every layout."""
    return [rows[(number * size + i) % len(rows)] for i in range(size)]


def pad_to(batch, width: int, pad_token_id: int):
    """A padded batch with longer rows."""
    old = batch.input_ids.shape[1]
    more = (0, width - old)
    batch.input_ids = torch.nn.functional.pad(batch.input_ids, more, value=pad_token_id)
    batch.attention_mask = torch.nn.functional.pad(batch.attention_mask, more)
    batch.position_ids = torch.arange(width).expand_as(batch.input_ids)
    batch.end_index = batch.end_index // old * width + batch.end_index % old
    return batch


def synchronize(device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device) -> int:
    """Begin to measure peak memory, and return what is in use now, in bytes.

    On a GPU that of tensors, on a CPU that of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    return resident("VmRSS")


def peak(device) -> int:
    """Peak memory in bytes since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """Bytes of this process in memory, by the name that the kernel gives the figure."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def matmul_rate(args, work: dict, tokens: int) -> float:
    """FLOP/s of the plain products of a layer, forward and backward, for so many tokens."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.device("meta"):
        model = make_model(args, work)
    decoder = model.model.decoder if args.family == "opt" else model.model
    flops = seconds = 0.0
    for linear in decoder.layers[0].modules():
        if isinstance(linear, torch.nn.Linear):
            shapes = (
                (tokens, linear.in_features),
                linear.weight.shape,
                (tokens, linear.out_features),
            )
            options = {"device": device, "dtype": DTYPES[args.dtype]}
            x, weight, gradient = (torch.randn(shape, **options) for shape in shapes)
            for product in (
                lambda x=x, weight=weight: x @ weight.T,
                lambda gradient=gradient, weight=weight: gradient @ weight,
                lambda gradient=gradient, x=x: gradient.T @ x,
            ):
                product()
                synchronize(device)
                started = time.perf_counter()
                product()
                synchronize(device)
                seconds += time.perf_counter() - started
                flops += 2 * tokens * weight.numel()
    return flops / seconds


def report(args, work: dict, rounds: list[dict], measured: list[dict]) -> None:
    """Print the medians as a Markdown table; write everything to --output.

    Args:
        args: the command line.
        work: what `prepare` made.
        rounds: of each contestant a step, timed.
        measured: the same for memory.
    """
    summary = {}
    for name in rounds[0]:
        results = [results[name] for results in rounds]
        rates = [r["comparisons"] / r["seconds"] for r in results]
        packed = [r[PACKED]["comparisons"] / r[PACKED]["seconds"] for r in rounds]
        summary[name] = {
            "seconds_per_step": statistics.median(r["seconds"] for r in results),
            "comparisons_per_step": results[0]["comparisons"],
            "comparisons_per_second": statistics.median(rates),
            "packed_is_faster_by": statistics.median(
                p / r for p, r in zip(packed, rates, strict=True)
            ),
            "tokens_per_comparison": statistics.mean(
                r["tokens"] / r["comparisons"] for r in results
            ),
            "peak_gib": max(r[name]["peak_memory"] for r in measured) / 2**30,
            "step_gib": max(r[name]["peak_memory"] - r[name]["at_rest"] for r in measured) / 2**30,
        }
    print(f"\n{describe(args, work)}\n")
    print(
        "| | s a step | comparisons/s | packed is faster by | tokens a comparison "
        "| peak GiB | of it the step's |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, line in summary.items():
        print(
            f"| {name} | {line['seconds_per_step']:.2f} | {line['comparisons_per_second']:.2f} | "
            f"{line['packed_is_faster_by']:.2f} | {line['tokens_per_comparison']:.0f} | "
            f"{line['peak_gib']:.2f} | {line['step_gib']:.2f} |"
        )
    shares = packed_shares([results[PACKED] for results in rounds])
    for name, value in shares.items():
        print(f"{name}: {value:.1%}")
    if args.output:
        record = {"arguments": vars(args), "machine": machine(), "summary": summary}
        Path(args.output).write_text(
            json.dumps({**record, "packed": shares, "rounds": rounds, "memory": measured}, indent=1)
            + "\n"
        )


def packed_shares(steps: list[dict]) -> dict[str, float]:
    """What the packed step makes of the machine."""

    def share(flops, rate):
        return statistics.median(s[flops] / s["seconds"] / s[rate] for s in steps)

    shares = {
        "model FLOP/s against torch.matmul of the same shapes": share("model_flops", "matmul_rate"),
        "products really run against it": share("matmul_flops", "matmul_rate"),
    }
    if steps[0]["peak_flops"]:
        shares["model FLOP/s against the device's peak (MFU)"] = share("model_flops", "peak_flops")
    return shares


def machine() -> dict:
    """What ran this."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    names = ("torch", "transformers", "deepspeed", "trl")
    versions = {name: version(name) for name in names if find_spec(name)}
    return {"cpu": platform.processor(), "cores": os.cpu_count(), "gpu": gpu, **versions}


def describe(args, work: dict) -> str:
    """One line on what was measured."""
    answers = statistics.mean(len(row["input_ids"]) for row in work["rows"])
    return (
        f"{args.family} of {args.num_layers} layers, width {args.hidden_size}, {args.dtype}; "
        f"{args.batch_size} comparisons a step of {answers:.1f} answers, at most "
        f"{args.max_seq_len} tokens; medians of {args.rounds} rounds; {machine()}"
    )


if __name__ == "__main__":
    main(parse_arguments())
