"""What a GPU would run, on a CPU: packed rows take the branch of FlashAttention.

In the place of torch.nn.attention.varlen.varlen_attn stands a slow reference, which demands what
FlashAttention 2 demands (mha_varlen_fwd in flash_api.cpp of Dao-AILab/flash-attention) and what the
signature of a torch release takes.

    EMULATED_GPU=2.13 python -m pytest      # 2.11 or 2.13: all tests, started programs included
"""

import inspect
from types import ModuleType

import torch
from torch.nn.attention import varlen

RELEASES = ("2.11", "2.13")  # of torch; between them varlen_attn has learned arguments

calls: list[tuple[int, int]] = []  # segments and keys of each call so far


def emulate(shared_prefix: ModuleType, release: str) -> None:
    """Let utils.model.shared_prefix take the branch of a GPU, for fp32 as well."""
    assert release in RELEASES, f"EMULATED_GPU is {release}; expected one of {RELEASES}"
    shared_prefix.varlen_attn = varlen_attn if release == "2.13" else varlen_attn_2_11
    shared_prefix.TAKES_ENABLE_GQA = release == "2.13"
    shared_prefix.has_varlen_kernel = takes


def use_the_kernel(monkeypatch, shared_prefix: ModuleType) -> None:
    """Let it call PyTorch's own kernel, which takes tensors without memory, too."""
    known = inspect.signature(varlen.varlen_attn).parameters
    monkeypatch.setattr(shared_prefix, "varlen_attn", varlen.varlen_attn)
    monkeypatch.setattr(shared_prefix, "TAKES_ENABLE_GQA", "enable_gqa" in known)
    monkeypatch.setattr(shared_prefix, "has_varlen_kernel", lambda *_: True)


def takes(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """What the kernel takes but for device, precision and a width that 8 divides."""
    return query.shape[-1] == value.shape[-1] <= 256 and not dropout


def varlen_attn_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
    """The signature of torch 2.11, which finds out by itself that heads are grouped."""
    assert options.keys() <= {"return_aux", "scale", "window_size"}, options
    is_grouped = query.shape[1] != key.shape[1]
    return varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, enable_gqa=is_grouped, **options
    )


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    """Attention of each segment by itself, in float32, after the checks of the kernel."""
    check_shapes(query, key, value, enable_gqa)
    lengths = check_starts(cu_seq_q, len(query), max_q), check_starts(cu_seq_k, len(key), max_k)
    assert len(cu_seq_q) == len(cu_seq_k)
    assert return_aux is None
    calls.append((len(lengths[0]), len(key)))

    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    parts = zip(query.split(lengths[0]), *(p.split(lengths[1]) for p in (key, value)), strict=True)

    outputs = []
    for q, k, v in parts:
        products = torch.einsum("qhd,khd->hqk", q.float(), k.float())
        products = products * (q.shape[-1] ** -0.5 if scale is None else scale)
        seen = visible(len(q), len(k), *window_size).to(q.device)
        weights = products.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v.float()).to(query.dtype))
    return torch.cat(outputs)


def check_shapes(query, key, value, enable_gqa: bool) -> None:
    """[tokens, heads, width], the last dimension contiguous, heads that divide each other."""
    for part in (query, key, value):
        assert part.dim() == 3, part.shape
        assert part.stride(-1) == 1, part.stride()
        assert part.dtype == query.dtype
    assert key.shape == value.shape
    assert key.shape[2] == query.shape[2] <= 256
    assert query.shape[1] % key.shape[1] == 0
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped heads without enable_gqa"


def check_starts(starts: torch.Tensor, tokens: int, longest: int) -> list[int]:
    """The lengths that int32 starts mean; they fill all tokens, and the longest is as given."""
    assert starts.dtype == torch.int32
    assert starts.is_contiguous()
    assert type(longest) is int
    lengths = starts.diff().tolist()
    assert int(starts[0]) == 0
    assert int(starts[-1]) == tokens
    assert min(lengths) > 0
    assert max(lengths) == longest
    return lengths


def visible(queries: int, keys: int, left: int, right: int) -> torch.Tensor:
    """Which keys a query sees: bool [queries, keys], aligned at the last query and the last key."""
    distance = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if right >= 0:
        seen &= distance <= right
    if left >= 0:
        seen &= distance >= -left
    return seen
