"""How long training will take, from the time that small parts of it take on this device."""

import copy
import timeit
from argparse import Namespace
from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from utils.model.hub import DTYPES, new_model

ROUNDS = 3


def estimate_seconds(
    args: Namespace,
    config: PreTrainedConfig,
    device: torch.device,
    tokens: int,
    comparisons: int,
    length: float,
    world_size: int,
) -> float:
    """Seconds of all epochs, without evaluations and communication.

    The model is built with one layer and with two, and a micro-batch runs forward and backward
    through both: what the second one adds, every further layer adds. The optimiser's time grows
    with the number of weights.

    Args:
        args: the command line.
        config: of the model.
        device: where it will train.
        tokens: of an epoch, packed.
        comparisons: of an epoch.
        length: of an average sequence in tokens.
        world_size: number of such devices.
    """
    if args.max_tokens_per_micro_batch:
        an_epoch = tokens / args.max_tokens_per_micro_batch / world_size
    else:
        an_epoch = comparisons / args.per_device_train_batch_size / world_size
    micro_batches = args.num_train_epochs * an_epoch
    rows = max(round(tokens / world_size / an_epoch / length), 1)
    ids = torch.randint(config.vocab_size, (rows, max(round(length), 1)), device=device)
    one, weights, update = _time_layers(args, config, 1, ids)
    two, more_weights, _ = _time_layers(args, config, 2, ids)
    layers = config.num_hidden_layers - 1
    update *= (weights + layers * (more_weights - weights)) / weights
    steps = micro_batches / args.gradient_accumulation_steps
    return micro_batches * (one + layers * max(two - one, 0.0)) + steps * update


def _time_layers(
    args: Namespace, config: PreTrainedConfig, layers: int, ids: torch.Tensor
) -> tuple[float, int, float]:
    """Seconds of a micro-batch with so many layers, its weights, and seconds of the optimiser."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    model = new_model(config, args.trust_remote_code)
    model.to(ids.device, DTYPES[args.dtype]).train()
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    backbone = getattr(model, model.base_model_prefix)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = _best(lambda: backbone(ids, use_cache=False).last_hidden_state.float().sum().backward())
    update = _best(optimizer.step)
    return batch, sum(p.numel() for p in model.parameters()), update


def _best(run: Callable[[], object]) -> float:
    """Shortest time of a few rounds in seconds; the first one also warms up."""

    def run_to_the_end() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return min(timeit.repeat(run_to_the_end, number=1, repeat=ROUNDS))
