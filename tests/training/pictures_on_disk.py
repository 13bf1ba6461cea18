"""Small data sets of pictures on the disk, for tests of everything that reads them."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Draw smooth colours that belong to `seed`."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def picture_folder(root: Path, classes: dict[str, int], suffix: str = ".png") -> Path:
    """Write so many pictures for each class, and return the root."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index).save(root / name / f"{index:03}{suffix}")
    return root
