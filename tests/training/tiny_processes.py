"""One of several processes that train the tiny generator: started by torchrun in a test.

`torchrun … tests/training/tiny_processes.py FOLDER [FATAL_STEP]`; every process kills itself with
SIGKILL in FATAL_STEP.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.tiny_runs import Dying, generator_stage, make_trainer
from training.processes import find_processes

if __name__ == "__main__":
    torch.set_num_threads(1)
    stage = generator_stage()
    if len(sys.argv) > 2:
        stage.__class__ = Dying
        Dying.fatal_step = int(sys.argv[2])
    processes = find_processes("cpu")
    assert processes.count == 2
    make_trainer(stage, Path(sys.argv[1]), processes=processes).fit()
