"""A run's folder made up for tests of its report: metrics of both kinds, sheets, warnings."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from training.metrics_log import METRICS_FILE, MetricsLog
from training.report import WARNINGS_FILE, Report, RunFacts, StageFacts

HOSTILE = "<script>alert(1)</script>"
NUM_STEPS = 400
CAPTION = "One column for each class"


def made_up_report(folder: Path, last_step: int = 300) -> Report:
    """Write what a run of a generator leaves by `last_step`, and return its report."""
    log = MetricsLog(folder / "generator" / METRICS_FILE)
    for step in range(0, last_step + 1, 10):
        falling = math.exp(-step / 100)
        if step:
            log.append(
                {
                    "step": step, "split": "train", "loss": 0.1 + 0.6 * falling, "grad_norm": 1.0,
                    "learning_rate": 1e-3, "images_per_s": 250.0, "data_wait": 0.02,
                    "memory_mb": 600.0, "elapsed_s": step * 0.5,
                }
            )  # fmt: skip
        if step % 100 == 0:
            quarters = {
                f"bit_loss_{start}_{start + 25}": 0.1 + falling for start in (0, 25, 50, 75)
            }
            held_out = {"step": step, "split": "held_out", "bit_loss": 0.1 + falling, **quarters}
            log.append({**held_out, "elapsed_s": step * 0.5})
            write_sheet(folder / "generator" / "samples", step)
    (folder / WARNINGS_FILE).write_text(f"step 100: {HOSTILE} carries nothing\n", encoding="utf-8")
    (folder / "bad_images.txt").write_text(f"{HOSTILE}.png\tOSError: broken\n", encoding="utf-8")
    facts = RunFacts(
        name=f"generator {HOSTILE}",
        about={"data": f"pictures/{HOSTILE}, 40 images of 2 classes", "processor": "abacus"},
        settings={"name": HOSTILE},
        commands={"Go on": f"bar train generator --data '{HOSTILE}'"},
        class_names=[HOSTILE, 'cat" onmouseover="alert(2)'],
    )
    stages = [
        StageFacts("tokenizer", 100, "l2"),
        StageFacts("generator", NUM_STEPS, "bit_loss", CAPTION),
    ]
    return Report(folder, facts, stages)


def write_sheet(folder: Path, step: int, size: tuple[int, int] = (80, 60)) -> Path:
    """Write a grey sheet of samples, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08}.png"
    Image.fromarray(np.full((size[1], size[0]), step % 256, np.uint8)).save(path)
    return path
