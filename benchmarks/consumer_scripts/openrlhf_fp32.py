"""OpenRLHF: its server in fp32, for a comparison of speed; by itself it has 16 bits alone."""

import runpy

import torch
from openrlhf.utils import utils

utils.convert_to_torch_dtype = lambda name: torch.float32
runpy.run_module("openrlhf.cli.serve_rm", run_name="__main__")
