"""TRL's side of quality.py: RewardTrainer for one epoch, looked at after a number of seconds.

    python benchmarks/trl_trainer.py --model START --data_path PAIRS --output_dir OUT --seconds 60

What is not named below has TRL's own default: the schedule is linear, without warm-up. The model
of that moment is in OUT/at_seconds, the last one in OUT/at_end.
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
    add("--seconds", type=float, required=True, help="of training, after which it is looked at")
    add("--cut", action="store_true", help="end there")
    return parser.parse_args()


class Clock(transformers.TrainerCallback):
    """Sums the seconds of the steps, and saves the model when they are over.

    Args:
        args: the command line.
        tokenizer: saved beside the model.
    """

    def __init__(self, args, tokenizer):
        self.args, self.tokenizer = args, tokenizer
        self.seconds = 0.0
        self.saved = False

    def on_step_begin(self, *_, **__):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, _, state, control, model, **__):
        """Stop it, and see whether the time is over."""
        self.seconds += time.perf_counter() - self.started
        if self.seconds >= self.args.seconds and not self.saved:
            self.save(model, state.global_step, "at_seconds")
            control.should_training_stop = self.args.cut

    def on_train_end(self, _, state, __, model, **___):
        """Save the last model."""
        if not self.args.cut:
            self.save(model, state.global_step, "at_end")

    def save(self, model, step: int, name: str) -> None:
        """Write the model of this moment, and what it took."""
        self.saved = True
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
