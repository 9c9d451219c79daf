"""What a saved model must pass before it is trusted: checks on a fixed sample."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from utils import distributed
from utils.data.packing import make_collator
from utils.data.tokenization import ComparisonTokenizer
from utils.evaluation.scoring import score_batches
from utils.model import pretrained
from utils.model.reward_model import RewardModel
from utils.settings import InputError
from utils.training.settings import TrainingSettings

COMPARISONS = 32
BATCH_SIZE = 4  # comparisons; so small that no batch needs more memory than training did

# Largest difference of two scores that should be equal, as a share of the largest score. Rounding
# alone made 1e-6, 0.02 and 0.003 of it between layouts, in 24 random layers of OPT and Llama.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


class CheckError(Exception):
    """A model was saved, but does not do what it should; main.py exits with code 1."""


@dataclass(frozen=True)
class Check:
    """One check of a saved model.

    Attributes:
        name: what was checked.
        finding: what was found, with figures.
        passed: whether it is as it should be.
    """

    name: str
    finding: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.finding}: {'ok' if self.passed else 'FAILED'}"


class ModelChecks:
    """Checks each model that a run saves, while the model that was trained is still there.

    Attributes:
        results: of the model saved last; none before, and none on other ranks than the first.

    Args:
        args: batch_layout and trust_remote_code count.
        rows: tokenised comparisons, of which a fixed sample is taken.
        encoder: made them.
        device: of this rank.
    """

    def __init__(
        self,
        args: TrainingSettings,
        rows: Dataset,
        encoder: ComparisonTokenizer,
        device: torch.device,
    ):
        chosen = np.random.default_rng(0).permutation(len(rows))[:COMPARISONS]
        self.rows = rows.select(chosen).to_list()
        self.args, self.encoder, self.device = args, encoder, device
        self.results: list[Check] = []

    def score(self, model: torch.nn.Module) -> None:
        """Score the sample with the model being trained; every rank calls it and runs all of it."""
        self.dtype = next(model.parameters()).dtype
        self.trained = self._score(model, self.device, self.args.batch_layout)

    def run(self, folder: Path) -> list[Check]:
        """Check the model that was saved after `score`; the first rank alone calls it.

        Args:
            folder: where it is.

        Returns:
            The results: the folder, loaded afresh, gives the trained model's scores; layout,
            padding and batch do not change them.
        """
        layout, device = self.args.batch_layout, self._device(folder)
        try:
            model = self._load(folder).to(device)
        except InputError as error:
            self.results = [Check("reload", str(error), False)]
            return self.results
        scores = self._score(model, device, layout)
        self.results = [self._compare("reload", "saved and trained model", scores, self.trained)]
        if layout == "packed":
            model.model.set_attn_implementation("sdpa")
            padded = self._score(model, device, "padded")
            self.results.append(self._compare("layout", "packed and padded", scores, padded))
            scores = padded
        alone = self._score(model, device, "padded", batch_size=1)
        what = f"{BATCH_SIZE} comparisons and 1 at a time"
        self.results.append(self._compare("batch", what, scores, alone))
        return self.results

    def report(self) -> None:
        """Fail on every rank if the model saved last did not pass.

        Raises:
            CheckError: names the checks and what they found.
        """
        failed = distributed.from_main([str(check) for check in self.results if not check.passed])
        if failed:
            raise CheckError(
                f"the model was saved in {self.args.output_dir}, but do not trust it; "
                + "; ".join(failed)
            )

    def _device(self, folder: Path) -> torch.device:
        """This rank's device, or the CPU where a second model does not fit beside the first."""
        if self.device.type == "cpu":
            return self.device
        torch.cuda.empty_cache()
        files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        weights = sum(file.stat().st_size for file in files)
        fits = torch.cuda.mem_get_info(self.device)[0] > 1.5 * weights
        return self.device if fits else torch.device("cpu")

    def _load(self, folder: Path) -> RewardModel:
        path, trust = str(folder), self.args.trust_remote_code
        model, _ = pretrained.load_model(
            path,
            pretrained.load_config(path, trust),
            self.encoder.tokenizer,
            dtype=self.dtype,
            layout=self.args.batch_layout,
            trust_remote_code=trust,
        )
        return model

    def _score(self, model, device, layout: str, batch_size: int = BATCH_SIZE) -> torch.Tensor:
        """Scores of the sample, float32 [N] in CPU memory."""
        collate = make_collator(self.encoder, layout)
        parts = [self.rows[i : i + batch_size] for i in range(0, len(self.rows), batch_size)]
        batches = [collate(part, [1.0] * len(part)) for part in parts]
        scored = score_batches(model, batches, device, "Checking")
        return torch.cat([scores.cpu() for scores, _ in scored])

    def _compare(self, name: str, what: str, first: torch.Tensor, second: torch.Tensor) -> Check:
        difference = float((first - second).abs().max())
        allowed = TOLERANCES[self.dtype] * float(first.abs().max())
        finding = f"scores of {what} differ by at most {difference:.2g} (allowed {allowed:.2g})"
        return Check(name, finding, difference <= allowed)  # not, where they are NaN
