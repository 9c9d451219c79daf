"""What precision rw_eval.py takes where nobody says so."""

import pytest
import torch
from transformers import OPTConfig

from utils.model.pretrained import scoring_dtype


@pytest.mark.parametrize("has_bf16", [False, True], ids=["V100", "A100"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("saved", "name"),
    [(None, "fp32"), (torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")],
)
def test_the_checkpoints_where_the_device_has_it(monkeypatch, has_bf16, device, saved, name):
    def is_bf16_supported(including_emulation=True):
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    found = scoring_dtype(OPTConfig(dtype=saved), torch.device(device))
    slow = device == "cpu" or (name == "bf16" and not has_bf16)
    assert found == ("fp32" if slow else name)
