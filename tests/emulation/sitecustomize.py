"""Runs when Python starts with this folder in PYTHONPATH: main.py and others emulate a GPU."""

import importlib.util
import os
import runpy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

TARGET = "utils.model.shared_prefix"


class Emulating(MetaPathFinder):
    """Changes the module after it is loaded, so that nothing else is imported early."""

    def find_spec(self, name, path, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_emulate(module):
            load(module)
            emulated_gpu = runpy.run_path(str(Path(__file__).with_name("emulated_gpu.py")))
            emulated_gpu["emulate"](module, os.environ["EMULATED_GPU"])

        spec.loader.exec_module = load_and_emulate
        return spec


if os.environ.get("EMULATED_GPU"):
    sys.meta_path.insert(0, Emulating())
