"""What a training run raises for people to read.

    TrainingError            the run cannot start or go on
    ├── TrainingDiverged     the loss or the gradient is not finite; the last checkpoint is kept
    └── TrainingStopped      the run was asked to stop, and saved where it was

Each message says what happened, at which step, and what to do.
"""


class TrainingError(Exception):
    """The run cannot start or go on."""


class TrainingDiverged(TrainingError):
    """The loss or the gradient is not finite."""


class TrainingStopped(TrainingError):
    """The run was asked to stop, and saved where it was."""
