"""Processes that take turns, and those of throughput.py: our layouts and TRL."""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from utils import distributed
from utils.data.comparison import ranked_pairs
from utils.data.packing import PackedCollator, PaddedCollator
from utils.model import pretrained
from utils.model.reward_model import RewardModel
from utils.model.shared_prefix import SHARED_PREFIX
from utils.training.engine import build_engine, deepspeed_config
from utils.training.loss import pairwise_loss
from utils.training.settings import parse_training_arguments
from utils.training.throughput import Throughput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKED, UNSHARED = "packed", "packed, nothing shared"
PADDED_KEPT = "padded to the longest, memory kept"
LAYOUTS = ("padded to the maximum", "padded to the longest", PADDED_KEPT, UNSHARED, PACKED)
TRL = "TRL RewardTrainer"


def make_model(args, work, layout: str = "padded") -> RewardModel:
    """That of --model with a new head, or one of the wanted shape with random weights."""
    if args.model:
        transformers.set_seed(0)
        options = {"layout": layout, "new_head": True}
        config, tokenizer = make_config(args, work), work["tokenizer"]
        return pretrained.load_model(args.model, config, tokenizer, **options)[0]
    return RewardModel(random_model(args, work, SHARED_PREFIX if layout == "packed" else None))


def make_config(args, work):
    """The config of that model."""
    return pretrained.load_config(args.model) if args.model else shape_config(args, work)


def random_model(args, work, attention: str | None = None):
    """A model of the wanted shape with random weights and a scalar head."""
    transformers.set_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(
        shape_config(args, work), attn_implementation=attention
    )


def add_shape_flags(parser: argparse.ArgumentParser, hidden_size: int) -> None:
    """The flags of a model's shape, with this default width."""
    add = parser.add_argument
    add("--family", choices=("opt", "llama"), default="opt", help="of the model")
    add("--hidden_size", type=int, default=hidden_size, help="width; the MLP is 4 times as wide")
    add("--num_layers", type=int, default=4, help="decoder layers")


def shape_config(args, work):
    """The config of a model of the wanted shape."""
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
        return transformers.OPTConfig(**shape, **width, dropout=0.0)

    heads = max(1, args.hidden_size // 256)
    width = {"intermediate_size": 4 * args.hidden_size, "num_key_value_heads": heads}
    return transformers.LlamaConfig(**shape, **width)


class Contestant:
    """A process that answers what it is asked.

    Args:
        name: for messages.
        life: what the process does; called with the arguments, and its end of the pipe at last.
        arguments: what can be pickled.
    """

    def __init__(self, name: str, life, *arguments: object):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=life, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()  # if the process dies, whoever waits for its answer learns of it

    def ask(self, message: object):
        """Its answer to a message; SystemExit if it has died."""
        try:
            self.pipe.send(message)
        except BrokenPipeError:
            self.report_death()
        return self.answer()

    def answer(self):
        """What it says next; SystemExit if it has died."""
        try:
            return self.pipe.recv()
        except (ConnectionResetError, EOFError):
            self.report_death()

    def dismiss(self) -> None:
        """Say that everyone is done, and wait until it has ended."""
        self.pipe.send(None)
        self.process.join()

    def report_death(self) -> NoReturn:
        """End the program."""
        self.process.join()
        sys.exit(
            f"{self.name}: ended with exit code {self.process.exitcode} (-9 is mostly too little "
            "memory: let fewer take part in a run, or make the batches smaller)"
        )


def contest(args, name: str, work: dict, pipe) -> None:
    """The life of a contestant: get ready, then a step for each number that comes."""
    pretrained.quieten_libraries()
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
    is_packed = name in (PACKED, UNSHARED)
    if is_packed or name == PADDED_KEPT:
        distributed.keep_freed_memory()

    device = distributed.initialize()
    flags = {
        "model_name_or_path": "random",
        "per_device_train_batch_size": args.batch_size,
        "dtype": args.dtype,
        "zero_stage": int(args.dtype == "bf16"),  # as main.py chooses
    }
    training = parse_training_arguments([f"--{name}={value}" for name, value in flags.items()])

    model = make_model(args, work, "packed" if is_packed else "padded")
    engine = build_engine(model, deepspeed_config(training, 1), training, 10 * args.rounds)
    engine.train()
    layout = PackedCollator if is_packed else PaddedCollator
    collate = layout(work["pad_token_id"])
    throughput = Throughput(engine.module, device, args.dtype, 1, ends_only=collate.ends_only)

    def step(number: int) -> dict:
        rows = batch_of(work["rows"], number, args.batch_size)
        if name == UNSHARED:
            rows = [{**row, "shared": 0} for row in rows]
        batch = collate(rows, [1 / len(rows)] * len(rows))
        if name == "padded to the maximum":
            batch = pad_to(batch, args.max_seq_len, work["pad_token_id"])

        work_done = batch.work()
        batch = batch.to(device)
        engine.backward(pairwise_loss(engine(batch), batch.pairs, batch.weight))
        engine.step()

        return {
            "comparisons": len(rows),
            "tokens": float(work_done[1]),
            "model_flops": throughput.flops(work_done, len(batch.end_index)),
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
            model=make_model(args, work).model,
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
