"""The model that a run ends with: saved, checked, described."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils import distributed
from utils.data.tokenization import ComparisonTokenizer
from utils.model import pretrained
from utils.model.lora import merge_lora, save_adapter
from utils.output.files import write_whole
from utils.training.checkpoint import forget_saved_model
from utils.training.checks import Check, ModelChecks
from utils.training.engine import gather_weights
from utils.training.loop import Trainer
from utils.training.model_card import model_card
from utils.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True, kw_only=True)
class ModelSaver:
    """Writes the model into --output_dir, checked; call it with the result of its evaluation.

    Attributes:
        args: the command line.
        engine: holds the weights.
        encoder: made the rows.
        counts: of the data, for the model card.
        checks: what the saved model must pass.
    """

    args: TrainingSettings
    engine: "DeepSpeedEngine"
    encoder: ComparisonTokenizer
    counts: dict
    checks: ModelChecks

    def __call__(self, result: dict) -> None:
        """Save; every rank takes part in scoring and in gathering the weights."""
        self.checks.score(self.engine)
        state_dict = gather_weights(self.engine)

        if distributed.is_main():
            pretrained.save_model(
                self.engine.module,
                merge_lora(state_dict, self.args.lora_scale),
                self.encoder.tokenizer,
                asdict(self.encoder.settings),
                self.args.output_dir,
                save_more=lambda folder: self._save_more(folder, state_dict, result),
                save_format=self.args.save_format,
                score_statistics={"mean": result["score_mean"], "std": result["score_std"]},
            )
            self._check(result)
        distributed.barrier()

    def _save_more(self, folder: Path, state_dict: dict, result: dict) -> None:
        """What stands beside the weights."""
        args = self.args
        if args.save_adapter:
            rank, alpha, base = args.lora_dim, args.lora_alpha, args.model_name_or_path
            save_adapter(state_dict, rank, alpha, base, folder / "adapter")
        self._write_card(folder, result, [])

    def _check(self, result: dict) -> None:
        """Check the model where it stands: with a large one that takes long, and it is not lost."""
        folder = Path(self.args.output_dir)
        for check in self.checks.run(folder):
            distributed.log(f"check: {check}")

        checks = json.dumps([asdict(check) for check in self.checks.results], indent=2)
        write_whole(folder / "checks.json", checks + "\n")
        self._write_card(folder, result, self.checks.results)

    def _write_card(self, folder: Path, result: dict, checks: list[Check]) -> None:
        settings = asdict(self.encoder.settings)
        card = model_card(self.args, settings, self.counts, result, checks)
        write_whole(folder / "README.md", card)


def conclude(trainer: Trainer, checks: ModelChecks) -> None:
    """Draw the curves, save the last model, and fail if the saved one did not pass its checks.

    Raises:
        CheckError: names the checks that failed.
    """
    args = trainer.args
    trainer.log.finish()

    if args.save_best:
        accuracy, step = trainer.best
        start = ", the untrained start" if step == 0 else ""
        end = f"at the end it was {trainer.result['accuracy']:.4f}"
        distributed.log(f"kept the model of step {step}{start}: accuracy {accuracy:.4f}, {end}")
    else:
        forget_saved_model(args)
        trainer.save_model(trainer.result)

    if skipped := trainer.engine.skipped_steps:
        distributed.log(f"{skipped} steps were skipped by the fp16 loss scaler")
    distributed.log(f"model, metrics.jsonl and training_curves.png are in {args.output_dir}")
    checks.report()
