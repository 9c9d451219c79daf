"""main.py, whose second rank waits before step PAUSE for a signal: a test knows where it is."""

import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0], sys.argv[0] = str(ROOT), "main.py"

from utils import distributed
from utils.training.loop import Trainer

step = Trainer._step


def wait_and_step(trainer, batches):
    pauses = distributed.rank() == 1 and trainer.progress.step + 1 == int(os.environ["PAUSE"])
    while pauses and not trainer.stop.code:
        time.sleep(0.05)
    step(trainer, batches)


Trainer._step = wait_and_step
runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
