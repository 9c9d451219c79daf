"""Counts what a step asks of the device: operations, and those for whose result the host waits."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# These return a number, or a tensor of a length that the device has to tell first.
WAITING = {
    *("aten._local_scalar_dense", "aten.bincount", "aten.equal", "aten.masked_select"),
    *("aten.nonzero", "aten._unique2", "aten.unique_dim"),
}

# These only look at memory in another way: nothing runs on the device.
VIEWS = {
    *("aten._unsafe_view", "aten.alias", "aten.as_strided", "aten.detach", "aten.expand"),
    *("aten.lift_fresh", "aten.permute", "aten.select", "aten.slice", "aten.split", "aten.t"),
    *("aten.split_with_sizes", "aten.squeeze", "aten.transpose", "aten.unbind", "aten.unsqueeze"),
    *("aten.view", "aten._to_copy.view", "aten.diagonal"),
}


class Counting(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        operations: those that run on the device, by name.
        waits: those of them for whose result the host waits.

    Args:
        device: if given, of what type all tensors must be but single numbers.
    """

    def __init__(self, device: str = ""):
        super().__init__()
        self.device = device
        self.operations: Counter = Counter()
        self.waits: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func).rpartition(".")[0]

        tensors = [
            part
            for part in torch.utils._pytree.tree_leaves((args, kwargs))
            if torch.is_tensor(part)
        ]
        if self.device:
            elsewhere = {part.device.type for part in tensors if part.dim()} - {self.device}
            assert not elsewhere, f"{name} takes tensors on {elsewhere}"

        if name not in VIEWS:
            self.operations[name] += 1
        if self._waits(func, name, args, kwargs):
            self.waits[name] += 1
        return func(*args, **kwargs)

    def _waits(self, func, name: str, args: tuple, kwargs: dict) -> bool:
        if name in (
            "aten.index",
            "aten.index_put",
            "aten.index_put_",
        ):  # a mask, whose sum is asked
            return any(index is not None and index.dtype == torch.bool for index in args[1])
        if func is torch.ops.aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        return name in WAITING
