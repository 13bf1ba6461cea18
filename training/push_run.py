"""A model directory to a repository on the Hugging Face hub: `bar push`.

A dry run unless told otherwise, and private unless told otherwise: what is uploaded is seen by
others, and cannot be taken back from who has fetched it. Who may write is the hub client's affair
(`hf auth login`). Weights are verified against their checksums first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from model import zoo
from training.errors import TrainingError


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> Any: ...


@dataclass(frozen=True)
class Upload:
    """What would be, or is, uploaded."""

    info: zoo.ModelInfo
    files: Sequence[Path]

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def prepare(directory: Path) -> Upload:
    """Read and verify a model directory. Raises CheckpointError if it is not whole."""
    info = zoo.read_directory(directory)
    zoo.verify(info)
    return Upload(info, sorted(path for path in directory.iterdir() if path.is_file()))


def push(upload: Upload, repo: str, hub: Hub, *, is_public: bool) -> str:
    """Upload and return the address. Raises TrainingError with what the hub said."""
    assert upload.info.directory is not None
    try:
        created = hub.create_repo(repo, private=not is_public, exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=upload.info.directory,
            allow_patterns=[path.name for path in upload.files],
            commit_message=f"{upload.info.name} {upload.info.revision}",
        )
    except LocalTokenNotFoundError as error:
        raise TrainingError("the hub does not know you: run `hf auth login` first") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(f"the hub refused {repo}: {reason}") from error
    return str(created)
