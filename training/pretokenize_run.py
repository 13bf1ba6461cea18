"""Turns a data set of pictures into a token store, once, resumable; and the published format.

Behind `bar pretokenize` and the start of a generator's training on pictures. Every picture is
centre-cropped as the published evaluation does, encoded, and encoded again mirrored. A killed run
goes on from the last whole shard.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from model.tokenizer import Tokenizer
from training.errors import TrainingError, TrainingStopped
from training.image_data import BadImageError, BadImages, centre_crop, read_picture, to_pixels
from training.image_sources import ImageSource, fingerprint_of
from training.progress import Progress
from training.run_folder import BAD_IMAGES_FILE
from training.token_store import (
    BAD,
    INDEX_FILE,
    StoreIndex,
    TokenStore,
    TokenStoreWriter,
    open_store,
)
from training.tokenizer_files import fingerprint

SHARD_SIZE = 1024
TRANSFORM = "ADM centre crop"


@dataclass(frozen=True, kw_only=True)
class Pretokenization:
    """What to encode, and how."""

    source: ImageSource
    tokenizer: Tokenizer
    folder: Path
    mirrors: bool = True
    batch_size: int = 32
    num_threads: int = 4

    @property
    def index(self) -> StoreIndex:
        config = self.tokenizer.config
        return StoreIndex(
            num_images=len(self.source.class_ids),
            num_views=2 if self.mirrors else 1,
            num_cells=config.grid_size**2,
            bits_per_latent=config.bits_per_latent,
            class_names=self.source.class_names,
            tokenizer=fingerprint(self.tokenizer),
            data=self.source.fingerprint,
            transform=f"{TRANSFORM} {config.image_size}",
        )


def write_store(
    work: Pretokenization, stream: TextIO, should_stop: Callable[[], bool] = lambda: False
) -> TokenStore:
    """Write the store, or the rest of it; one that is whole is opened as it is.

    Raises TrainingError if the folder holds another store, TrainingStopped between two shards.
    """
    index, bad = work.index, BadImages()
    listed = work.folder / BAD_IMAGES_FILE
    if (work.folder / INDEX_FILE).exists():
        store = open_store(work.folder)
        if store.index != index:
            raise TrainingError(
                f"{work.folder} holds the tokens of other pictures, another tokenizer or other "
                "settings: choose another --output"
            )
        return store
    writer = TokenStoreWriter(work.folder, index, SHARD_SIZE)
    filling = _Filling(writer, index.num_images, bad, stream)
    with ThreadPoolExecutor(work.num_threads) as threads:
        for shard in filling.shards(should_stop):
            for image, views in encoded(work, writer.members(shard), threads, bad):
                class_id = BAD if views is None else int(work.source.class_ids[image])
                writer.write(image, class_id, torch.empty(0) if views is None else views)
                filling.count()
            bad.keep(listed)
            writer.finish_shard(shard)
    writer.finish()
    return open_store(work.folder)


class _Filling:
    """How far a store is, for people: pictures done, before and now."""

    def __init__(
        self, writer: TokenStoreWriter, num_images: int, bad: BadImages, stream: TextIO
    ) -> None:
        self._writer, self._num_images, self._bad = writer, num_images, bad
        self._done = sum(len(writer.members(shard)) for shard in writer.done)
        self._progress = Progress("pretokenize", self._done, num_images, stream)

    def shards(self, should_stop: Callable[[], bool]) -> Iterator[int]:
        """Yield the shards that are yet to be written. Raises TrainingStopped between two."""
        for shard in sorted(set(range(self._writer.num_shards)) - self._writer.done):
            if should_stop():
                raise TrainingStopped(
                    f"stopped after {self._done} of {self._num_images} pictures: the same command "
                    "goes on"
                )
            yield shard

    def count(self) -> None:
        """Count a picture that was written."""
        self._done += 1
        self._progress.show(self._done, {"bad": len(self._bad.found)})


def encoded(
    work: Pretokenization, members: range, threads: ThreadPoolExecutor, bad: BadImages
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield each picture's index and its bits (views, L, bits_per_latent); None for a bad one."""

    def read(image: int) -> Tensor | None:
        try:
            picture = read_picture(work.source, image, bad)
        except BadImageError:
            return None
        return to_pixels(centre_crop(picture, work.tokenizer.config.image_size))

    device = next(work.tokenizer.parameters()).device
    for start in range(members.start, members.stop, work.batch_size):
        images = range(start, min(start + work.batch_size, members.stop))
        read_pixels = list(threads.map(read, images))
        good = [pixels for pixels in read_pixels if pixels is not None]
        if good:
            pixels = torch.stack(good).to(device)
            views = [pixels, pixels.flip(-1)] if work.mirrors else [pixels]
            bits = iter(torch.stack([work.tokenizer.encode(view) for view in views], dim=1).cpu())
        for image, found in zip(images, read_pixels, strict=True):
            yield image, None if found is None else next(bits)


def export_npz(store: TokenStore, source: ImageSource, folder: Path, stream: TextIO) -> int:
    """Write a store in the published format, a file for each picture; return how many.

    Raises TrainingError, before anything is written, if a class name cannot be a folder's.
    """
    names = store.index.class_names
    _check_folder_names(names)
    good = np.flatnonzero(store.class_ids != BAD)
    progress = Progress("npz", 0, len(good), stream)
    for count, image in enumerate(good, start=1):
        views = [
            store.cells(np.array([image]), np.array([view])).flatten().numpy().astype(bool)
            for view in range(store.index.num_views)
        ]
        stem = f"{image:08}_{Path(source.name_of(int(image))).stem}"
        path = folder / "train" / names[store.class_ids[image]] / f"{stem}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, tokens=views[0], tokens_flip=views[-1])
        progress.show(count, {})
    metadata = {"num_samples": len(good), "classes": list(names), **store.index.to_json()}
    text = json.dumps(metadata, indent=2) + "\n"
    (folder / "metadata.json").write_text(text, encoding="utf-8")
    return len(good)


def _check_folder_names(names: Sequence[str]) -> None:
    wrong = [name for name in names if name in ("", ".", "..") or set("/\\\0") & set(name)]
    if wrong:
        raise TrainingError(
            "the published format has a folder for each class, and these names cannot be folders: "
            f"{', '.join(map(repr, wrong))}; rename them in the data to names without / and "
            "\\, and pretokenize it again"
        )


def published_index(tokenizer: Tokenizer, root: Path) -> StoreIndex:
    """Return what a store of the published files `root`/train/<class>/<stem>.npz will hold.

    The files do not say which tokenizer made them: the one given is taken at its word.
    """
    config, files = tokenizer.config, _npz_files(root)
    return StoreIndex(
        num_images=len(files),
        num_views=2,
        num_cells=config.grid_size**2,
        bits_per_latent=config.bits_per_latent,
        class_names=tuple(sorted({path.parent.name for path in files})),
        tokenizer=fingerprint(tokenizer),
        data=fingerprint_of(path.relative_to(root).as_posix() for path in files),
        transform=f"{TRANSFORM} {config.image_size}",
    )


def import_npz(
    root: Path,
    index: StoreIndex,
    folder: Path,
    stream: TextIO,
    should_stop: Callable[[], bool] = lambda: False,
) -> TokenStore:
    """Pack published files into a store of `published_index`, resumable like any other; damaged
    files are listed beside it.

    Raises TrainingError for a file whose bits are not those of the tokenizer, TrainingStopped
    between two shards.
    """
    files, bad = _npz_files(root), BadImages()
    class_ids = {name: class_id for class_id, name in enumerate(index.class_names)}
    writer = TokenStoreWriter(folder, index, SHARD_SIZE)
    filling = _Filling(writer, index.num_images, bad, stream)
    for shard in filling.shards(should_stop):
        for image in writer.members(shard):
            path = files[image]
            try:
                writer.write(image, class_ids[path.parent.name], _read_npz(path, index))
            except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
                reason = f"{type(error).__name__}: {error}"
                bad.add(path.relative_to(root).as_posix(), reason)
                writer.write(image, BAD, torch.empty(0))
            filling.count()
        bad.keep(folder / BAD_IMAGES_FILE)
        writer.finish_shard(shard)
    writer.finish()
    return open_store(folder)


def _npz_files(root: Path) -> list[Path]:
    return sorted((root / "train").glob("*/*.npz"))


def _read_npz(path: Path, index: StoreIndex) -> Tensor:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        views = [arrays["tokens"], arrays["tokens_flip"]]
    if any(view.size != index.num_cells * index.bits_per_latent for view in views):
        raise TrainingError(
            f"{path} holds {views[0].size} bits, and the tokenizer makes {index.num_cells} × "
            f"{index.bits_per_latent}: it is of another tokenizer"
        )
    bits = torch.from_numpy(np.stack(views).astype(np.uint8))
    return bits.reshape(2, index.num_cells, index.bits_per_latent)
