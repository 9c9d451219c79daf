"""TRL: RewardTrainer evaluates the pairs; the figures are loss, accuracy and margin."""

import tempfile

from datasets import Dataset
from exchange import FOLDER, answer, wholes
from trl import RewardConfig, RewardTrainer


def evaluate(rows):
    """All pairs in one batch, since it averages over batches."""
    whole = wholes(rows)
    pairs = [
        {"chosen": better, "rejected": worse}
        for better, worse in zip(whole[::2], whole[1::2], strict=True)
    ]
    data = Dataset.from_list(pairs)

    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            folder,
            per_device_eval_batch_size=len(pairs),
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = RewardTrainer(FOLDER, args=arguments, train_dataset=data, eval_dataset=data)
        result = trainer.evaluate()
    return [result["eval_loss"], result["eval_accuracy"], result["eval_margin"]]


answer(evaluate)
