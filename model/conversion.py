"""Published models, installed: downloaded if they are not here, converted once, then a directory.

Called by the command line and the worker before `checkpoint.load_model`, which knows nothing of
pickles or published names. A published file is a pickle: it is read with `weights_only`, which
runs no code, every tensor must fit the preset's architecture, and from then on only safetensors are
read. Its rotary tables are not kept, since they are computed, but a table that differs is refused:
it would mean another architecture under the same shapes.
"""

import fcntl
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from model import zoo
from model.checkpoint import ENCODER_PARTS, check_fit, shapes_of, split_tokenizer, write_model
from model.config import PRESETS, GeneratorConfig, TokenizerConfig
from model.errors import CheckpointError, ModelNotFoundError
from model.generator import Generator
from model.hub import DEFAULT_REVISION, REPO_ID, Hub, OnProgress, PublishedFiles
from model.published import GENERATOR_NAMES, TOKENIZER_NAMES, published_name, rename
from model.rope import rotary_table
from model.tokenizer import Tokenizer

# Tables of another base, order or grid differ by about 1, those of other arithmetic by far less.
ROTARY_TOLERANCE = 1e-3


def install(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    with_encoder: bool = False,
    keep_published: bool = True,
    on_progress: OnProgress | None = None,
) -> zoo.ModelInfo:
    """Return a model that is on this machine, fetching and converting a published one if need be.

    A model that is here is used as it is, without network; `refresh` asks the hub whether its
    branch has moved on. `keep_published=False` frees the disk of the downloaded files once they
    are converted. Raises ModelNotFoundError, DownloadError or CheckpointError.
    """
    if offline and refresh:
        raise ValueError("offline and refresh exclude each other: refreshing needs the network")
    info = zoo.resolve(name_or_dir, revision=revision, cache_dir=cache_dir, offline=offline)
    preset = PRESETS.get(str(name_or_dir))
    if preset is None or preset.generator_file is None:
        return info
    if info.directory is not None and not refresh and (info.has_encoder or not with_encoder):
        return info
    hub = Hub(revision or DEFAULT_REVISION, cache_dir, endpoint)
    wanted = zoo.published_files(info.name)
    files = None if refresh else hub.cached_files(wanted)
    if files is None and offline:
        raise ModelNotFoundError(
            f"the published files of {info.name} are not on this machine, and downloading is "
            f"switched off: run `bar download {info.name}` while online"
        )
    files = files or hub.download(wanted, on_progress)
    installed = convert(info.name, files, hub.converted_dir, with_encoder=with_encoder)
    if not keep_published:
        files.delete()
    return installed


def convert(
    name: str, files: PublishedFiles, converted_dir: Path, *, with_encoder: bool
) -> zoo.ModelInfo:
    """Write the model directory of a published preset, unless another process just did.

    Raises CheckpointError if a file is damaged or of another model.
    """
    directory = converted_dir / name / files.commit
    with _one_at_a_time(directory):
        if (directory / zoo.CONFIG_FILE).is_file():
            info = zoo.read_directory(directory)
            if info.has_encoder or not with_encoder:
                return info
        generator_path, tokenizer_path = files.paths
        info = zoo.describe(name)
        generator = generator_state(
            read_published(generator_path), info.generator, generator_path.name
        )
        tokenizer = tokenizer_state(
            read_published(tokenizer_path), info.tokenizer, tokenizer_path.name, with_encoder
        )
        weights = {zoo.GENERATOR_FILE: generator} | split_tokenizer(tokenizer)
        if not with_encoder:
            del weights[zoo.ENCODER_FILE]
        return write_model(directory, info, weights, source=f"{REPO_ID} at {files.commit}")


def read_published(path: Path) -> dict[str, Tensor]:
    """Read a published `.bin`, a pickled state dict, without running any code in it.

    Raises CheckpointError if the file is not whole, or holds anything but floating-point tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: download it again")
    whole = f"{path.name} ({path.stat().st_size} bytes)"
    if not zipfile.is_zipfile(path):  # the index stands at the end: a cut file has none
        raise CheckpointError(
            f"{whole} is truncated or no PyTorch file: delete {path} and download it again"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{whole} holds more than tensors and was not opened: loading it could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{whole} is damaged: {_first_line(error)}") from error
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{whole} holds a {type(state).__name__}, not a state dict")
    odd = [
        str(name)
        for name, value in state.items()
        if not (isinstance(value, Tensor) and value.is_floating_point())
    ]
    if odd:
        raise CheckpointError(
            f"{whole} is no plain state dict: {len(odd)} entries are no floating-point tensors, "
            f"the first is {odd[0]}"
        )
    return {str(name): value for name, value in state.items()}


def generator_state(
    published: Mapping[str, Tensor], config: GeneratorConfig, source: str
) -> dict[str, Tensor]:
    """Bring a published generator's state dict into ours. Raises CheckpointError if it differs
    from the architecture of `config` in any key, shape or rotary table."""
    renamed = rename(published, GENERATOR_NAMES)
    with torch.device("meta"):
        expected = shapes_of(Generator(config).state_dict())
    check_fit(
        shapes_of(renamed.state),
        expected,
        source,
        unknown=renamed.unknown,
        shown_name=lambda name: published_name(name, GENERATOR_NAMES),
    )
    _check_rotary_tables(renamed.unused, config, source)
    return renamed.state


def tokenizer_state(
    published: Mapping[str, Tensor], config: TokenizerConfig, source: str, with_encoder: bool
) -> dict[str, Tensor]:
    """Bring a published tokenizer's state dict into ours, with or without what only an encoder
    needs. Raises CheckpointError if the rest differs from `config` in any key or shape."""
    renamed = rename(published, TOKENIZER_NAMES)
    state = {
        name: value
        for name, value in renamed.state.items()
        if with_encoder or not name.startswith(ENCODER_PARTS)
    }
    with torch.device("meta"):
        expected = shapes_of(Tokenizer(config, with_encoder).state_dict())
    check_fit(
        shapes_of(state),
        expected,
        source,
        unknown=renamed.unknown,
        shown_name=lambda name: published_name(name, TOKENIZER_NAMES),
    )
    return state


def _check_rotary_tables(
    tables: Mapping[str, Tensor], config: GeneratorConfig, source: str
) -> None:
    cos, sin = rotary_table(config)
    for name, table in tables.items():
        expected = cos if name.endswith("cos") else sin
        if table.shape != expected.shape:
            raise CheckpointError(
                f"{source} is not of this architecture: {name} is {list(table.shape)} for "
                f"{list(expected.shape)}"
            )
        error = (table.float() - expected).abs().max().item()
        if not error <= ROTARY_TOLERANCE:
            raise CheckpointError(
                f"{source} is not of this architecture: {name} differs from the rotary table of "
                f"this grid by {error:.2g}"
            )


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Let one process at a time make `directory`; the others find it made."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = directory.with_name(f"{directory.name}.lock").open("w")
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
    with lock:
        # Some network disks have no locks. There each process does the work, and all end well,
        # since a directory is put in place by a rename.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
