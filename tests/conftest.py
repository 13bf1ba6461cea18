"""What has to be settled before any test module is imported."""

import os
from pathlib import Path

# Triton reads this when it is first imported, by whomever: without a GPU its kernels are
# interpreted. Torch cannot be asked for a GPU here, since it may be the one to import Triton.
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"
