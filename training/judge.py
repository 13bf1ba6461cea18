"""The judge of generated digits: a small classifier that never saw a training image.

Used by the evaluation alone. It is fitted to the held-out digits, so that a generator which
copied its training set would gain nothing by it. Its last hidden layer gives the features in which
sets of images are compared.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.digits_data import LabelledImages
from training.randomness import batch_indices

INPUT_SIZE = 32  # pixels a side that the judge looks at
NUM_FEATURES = 32
NUM_STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
MAX_TURN = 0.15  # radians; with a little scaling and shifting it stands for other hands
MAX_SCALE = 0.12
MAX_SHIFT = 0.12  # of half an image


class Judge(nn.Module):
    """Three convolutions, then features, then class logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.3)
        self.to_features = nn.Linear(64 * (INPUT_SIZE // 8) ** 2, NUM_FEATURES)
        self.classify = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Return features (N, 32) of pixels (N, 3, size, size) in [-1, 1]."""
        grey = F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), INPUT_SIZE)
        features: Tensor = self.to_features(self.dropout(self.convolutions(grey)))
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """Return class logits (N, C)."""
        logits: Tensor = self.classify(F.gelu(self.features(pixels)))
        return logits


def train_judge(
    images: LabelledImages, num_classes: int, num_steps: int = NUM_STEPS, seed: int = 0
) -> Judge:
    """Fit a judge to `images`, the same one for the same images and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(num_classes)
        optimiser = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, LEARNING_RATE, total_steps=num_steps
        )
        for step in range(num_steps):
            batch = batch_indices(seed, step, len(images.pixels), BATCH_SIZE)
            logits = judge(_vary(images.pixels[batch]))
            loss = F.cross_entropy(logits, images.class_ids[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return judge.eval()


def _vary(pixels: Tensor) -> Tensor:
    """Turn, scale and shift each image a little."""
    count = len(pixels)
    turn, scale = _within(MAX_TURN, count), 1 + _within(MAX_SCALE, count)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    matrix = torch.stack(
        [cos, -sin, _within(MAX_SHIFT, count), sin, cos, _within(MAX_SHIFT, count)], dim=1
    )
    grid = F.affine_grid(matrix.reshape(count, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _within(limit: float, count: int) -> Tensor:
    return (torch.rand(count) * 2 - 1) * limit
