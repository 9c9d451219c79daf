"""TRL's side of quality.py: RewardTrainer for one epoch, with its model of several moments.

    python benchmarks/trl_trainer.py --model START --data_path PAIRS --output_dir OUT --seconds 9 99

What is not named below has TRL's own default: the schedule is linear, without warm-up. The models
after so many seconds of training are in OUT/at_0 and OUT/at_1, the last one is in OUT/at_end; a
JSON file beside each says what it took.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import transformers
from datasets import load_dataset
from trl import RewardConfig, RewardTrainer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a reward model with TRL.")
    add = parser.add_argument
    add("--model", required=True, help="folder with a scalar head")
    add("--data_path", required=True, help="JSON lines of chosen and rejected texts")
    add("--output_dir", required=True, type=Path, help="where the models are written")
    add("--batch_size", type=int, default=16, help="pairs a step")
    add("--micro_batch", type=int, default=4, help="pairs at a time")
    add("--max_seq_len", type=int, default=512, help="tokens; longer pairs are left out")
    add("--learning_rate", type=float, default=2e-5, help="peak rate")
    add("--seed", type=int, default=1, help="of the data's order")
    add("--seconds", type=float, nargs="+", required=True, help="of training, ascending")
    add("--cut", action="store_true", help="end after the last of --seconds")
    return parser.parse_args()


class Clock(transformers.TrainerCallback):
    """Sums the seconds of the steps, and saves the model of each moment.

    Args:
        args: the command line.
        tokenizer: saved beside the model.
    """

    def __init__(self, args, tokenizer):
        self.args, self.tokenizer = args, tokenizer
        self.seconds, self.saved = 0.0, 0

    def on_step_begin(self, *_, **__):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, _, state, control, model, **__):
        """Stop it, and see whether a moment has come."""
        self.seconds += time.perf_counter() - self.started
        moments = self.args.seconds
        while self.saved < len(moments) and self.seconds >= moments[self.saved]:
            self.save(model, state.global_step, f"at_{self.saved}")
            self.saved += 1
        control.should_training_stop = self.args.cut and self.saved == len(moments)

    def on_train_end(self, _, state, __, model, **___):
        """Save the last model."""
        if not self.args.cut:
            self.save(model, state.global_step, "at_end")

    def save(self, model, step: int, name: str) -> None:
        """Write the model of this moment, and what it took."""
        folder = self.args.output_dir / name
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # it counts KiB
        figures = {"seconds": round(self.seconds, 1), "steps": step, "peak_gib": round(peak, 2)}
        folder.with_suffix(".json").write_text(json.dumps(figures) + "\n", encoding="utf-8")


def main(args) -> None:
    """Train."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    config = RewardConfig(
        output_dir=str(args.output_dir),
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.batch_size // args.micro_batch,
        learning_rate=args.learning_rate,
        num_train_epochs=1,
        max_length=args.max_seq_len,
        bf16=False,  # its default, far slower on a CPU
        use_cpu=True,
        gradient_checkpointing=False,  # its default trades a third more time for memory
        seed=args.seed,
        report_to="none",
        save_strategy="no",
    )
    RewardTrainer(
        model=args.model,
        args=config,
        train_dataset=load_dataset("json", data_files=args.data_path, split="train"),
        processing_class=tokenizer,
        callbacks=[Clock(args, tokenizer)],
    ).train()


if __name__ == "__main__":
    main(parse_arguments())
