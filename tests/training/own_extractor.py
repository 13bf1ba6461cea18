"""An extractor of a user's own: eight features of coarse pixels, at once, for fast tests."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_FEATURES = 8


class Coarse(nn.Module):
    """Random projections of 4 × 4 pixels; four classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.project = nn.Linear(48, NUM_FEATURES)
            self.classify = nn.Linear(NUM_FEATURES, 4)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        coarse = F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        pool = self.project(coarse)
        return {"pool": pool, "spatial": coarse[:, :16], "logits": self.classify(pool)}


def coarse(device: torch.device) -> Coarse:
    """Return the extractor on a device."""
    return Coarse().to(device)


def misshapen(device: torch.device) -> object:
    """Return one that forgets the batch."""
    return lambda images: images.float().mean(dim=(0, 2, 3)).to(device)


def misnamed(device: torch.device) -> object:
    """Return one whose features have a name of their own."""
    return lambda images: {"features": images.float().flatten(1).to(device)}
