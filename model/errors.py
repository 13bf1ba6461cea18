"""What `model/` raises besides ValueError and KeyError.

    CheckpointError          a file or directory does not hold the model that it should
    ├── ModelNotFoundError   there is no such model, or it is not on this machine
    └── DownloadError        the hub did not deliver: network, access, name, revision, disk

Each message is one line for whoever typed the command: what was wrong, and what to do about it.
Class look-ups have their own KeyErrors, in `class_labels.py`.
"""


class CheckpointError(Exception):
    """A model's files are missing, damaged, or of another model."""


class ModelNotFoundError(CheckpointError):
    """No such model, or one that is not on this machine."""


class DownloadError(CheckpointError):
    """The hub did not deliver a file."""
