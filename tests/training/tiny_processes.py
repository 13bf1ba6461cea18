"""One of several processes that train a tiny model: started by torchrun in a test.

`torchrun … tests/training/tiny_processes.py FOLDER OPTIONS`; the options are JSON: `stage`, whose
function in `tiny_runs.py` makes it, changes to the trainer's `settings`, and `fatal_step`, in which
every process kills itself with SIGKILL.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training import tiny_runs
from tests.training.tiny_runs import Dying, make_trainer, trainer_config
from training.processes import find_processes

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    stage = getattr(tiny_runs, options["stage"])()
    if "fatal_step" in options:
        stage.__class__ = Dying
        Dying.fatal_step = options["fatal_step"]
    config = trainer_config()
    config = config.model_validate({**config.to_json(), **options["settings"]})
    processes = find_processes("cpu")
    assert processes.count > 1
    model = make_trainer(stage, folder, config, processes=processes).fit()
    if processes.is_main:
        torch.save(model.state_dict(), folder / "finished.pt")
