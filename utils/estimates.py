"""What a run will need, before it begins: memory by DeepSpeed's estimators, and time."""

import copy
import timeit
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig

from utils import distributed
from utils.model.pretrained import DTYPES, new_model
from utils.output.tables import TextTable, print_table
from utils.training.settings import TrainingSettings

GIB = 2**30


class Need(NamedTuple):
    """Bytes that the states of a model need.

    Attributes:
        stage: ZeRO stage.
        offload: whether states (in stage 3 parameters too) are in the memory of the node.
        device: on each device.
        host: in the memory of each node, also while the model loads.
    """

    stage: int
    offload: bool
    device: int
    host: int


def estimate_needs(
    parameters: int, largest_layer: int, devices: int, nodes: int = 1
) -> Iterator[Need]:
    """DeepSpeed's estimates for mixed precision and Adam, stage by stage.

    They count 20 bytes a parameter: weights and gradients in 16 bits and in 32, two moments; in
    fp32 the former have 32 bits too.
    DeepSpeed has estimators for the stages 2 and 3. Stage 0 is stage 2 on a single device; stage 1
    is stage 2 with whole 16-bit gradients on each device.

    Args:
        parameters: of the model.
        largest_layer: parameters of its largest layer, which stage 3 gathers.
        devices: on each node.
        nodes: number of nodes.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as stage3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as stage2

    where = {"num_gpus_per_node": devices, "num_nodes": nodes}
    host, device = stage2(parameters, cpu_offload=False)
    yield Need(0, False, device, host * devices)

    gradients = 2 * parameters
    for offload in (False, True):
        host, device = stage2(parameters, cpu_offload=offload, **where)
        there = 0 if offload else gradients // (devices * nodes)
        yield Need(1, offload, device + gradients - there, host)
        yield Need(2, offload, device, host)
        flags = {"cpu_offload": offload, "cpu_offload_params": offload}
        host, device, _ = stage3(parameters, largest_layer, **flags, **where)
        yield Need(3, offload, device, host)


def print_estimate(model: nn.Module) -> None:
    """Print what each stage needs for a model (on any device, also meta), and whether it fits."""
    if not distributed.is_main():
        return

    devices = distributed.local_world_size()
    nodes = distributed.world_size() // devices
    parameters = sum(p.numel() for p in model.parameters())
    layers = (sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())

    host_memory, device_memory = psutil.virtual_memory().total, None
    if torch.cuda.is_available():
        device_memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    rows = []
    for need in sorted(estimate_needs(parameters, max(layers), devices, nodes)):
        if device_memory is None:  # the processes share the memory of the node
            fits = need.device * devices + need.host <= host_memory
        else:
            fits = need.device <= device_memory and need.host <= host_memory
        sizes = (f"{size / GIB:.2f}" for size in (need.device, need.host))
        offload = "cpu" if need.offload else ""
        rows.append((str(need.stage), offload, *sizes, "yes" if fits else "no"))

    header = ("ZeRO stage", "offload", "GiB a device", "GiB a node's memory", "fits")
    print_table(TextTable("Memory by ZeRO stage", "", header, rows))

    has = f"{host_memory / GIB:.1f} GiB a node"
    if device_memory is not None:
        has = f"{device_memory / GIB:.1f} GiB a device, {has}"
    print(
        f"{parameters:,} parameters, {nodes} node(s) of {devices} device(s); there are {has}. "
        "Estimates of DeepSpeed for 16-bit training with Adam, without activations and buffers: "
        "leave room. Training in fp32 takes up to 4 bytes a parameter more; frozen weights "
        "(--only_optimize_lora) take 2 alone."
    )


ROUNDS = 3


def estimate_seconds(
    args: TrainingSettings,
    config: PreTrainedConfig,
    tokens: int,
    comparisons: int,
    length: float,
    *,
    device: torch.device,
    world_size: int,
) -> float:
    """Seconds of all epochs, without evaluations and communication.

    The model is built with one layer and with two, and a micro-batch runs forward and backward
    through both: what the second one adds, every further layer adds. The optimiser's time grows
    with the number of weights.

    Args:
        args: the command line.
        config: of the model.
        tokens: of an epoch, packed.
        comparisons: of an epoch.
        length: of an average sequence in tokens.
        device: where it will train.
        world_size: number of such devices.
    """
    an_epoch = comparisons / args.per_device_train_batch_size / world_size
    steps = args.num_train_epochs * an_epoch / args.gradient_accumulation_steps
    if limit := args.max_tokens_per_micro_batch:
        an_epoch = max(tokens / limit / world_size, an_epoch / args.gradient_accumulation_steps)
    micro_batches = args.num_train_epochs * an_epoch

    rows = max(round(tokens / world_size / an_epoch / length), 1)
    ids = torch.randint(config.vocab_size, (rows, max(round(length), 1)), device=device)
    one, weights, update = _time_layers(args, config, 1, ids)
    two, more_weights, _ = _time_layers(args, config, 2, ids)

    layers = config.num_hidden_layers - 1
    update *= (weights + layers * (more_weights - weights)) / weights
    return micro_batches * (one + layers * max(two - one, 0.0)) + steps * update


def _time_layers(
    args: TrainingSettings, config: PreTrainedConfig, layers: int, ids: torch.Tensor
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
