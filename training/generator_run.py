"""`bar train generator`: from pictures or tokens to a model that `bar serve --model DIR` loads.

Pictures are turned into tokens first, once, in the run's folder. The data decides how many classes
there are and what they are called; the names travel with the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from model import zoo
from model.checkpoint import load_model, save_model
from model.class_labels import ClassLabels
from model.generator import Generator
from model.tokenizer import Tokenizer
from training.config_files import to_yaml
from training.data_path import open_source
from training.errors import TrainingError
from training.freezing import freeze
from training.generator_stage import GeneratorStage
from training.held_out import stratified_split
from training.image_sources import ImageSource
from training.initialise import initialise_generator
from training.memory_estimate import estimate_generator
from training.model_card import card_files
from training.pretokenize_run import Pretokenization, write_store
from training.run_config import GeneratorRun
from training.run_folder import MODEL_FOLDER, claim
from training.run_stage import Session, check_room, fit, seeded
from training.token_store import BAD, StoredTokens, TokenStore, is_store, open_store
from training.tokenizer_files import fingerprint, load_tokenizer
from training.transplant import plain, transplant

TOKENS_FOLDER = "tokens"


@dataclass(frozen=True)
class _Data:
    """What the path holds: a store, or pictures that have to become one."""

    store: TokenStore | None
    source: ImageSource | None
    class_names: tuple[str, ...]
    class_ids: NDArray[np.int64]


def class_names(run: GeneratorRun) -> tuple[str, ...]:
    """Return what the classes of the run's data are called."""
    return _open(run).class_names


def with_classes(run: GeneratorRun) -> GeneratorRun:
    """Return the run with as many classes as its data has."""
    return run.but(generator=replace(run.generator, num_classes=len(class_names(run))))


def plan(run: GeneratorRun, session: Session) -> None:
    """Say what `train_generator` would do; check data, memory and disk, and change nothing."""
    data = _open(run)
    _describe(run, data, load_checked_tokenizer(run), session)
    starting_generator(run, data.class_names, session)


def train_generator(run: GeneratorRun, session: Session) -> Path:
    """Train in the session's folder, or go on there; return the directory of the finished model.

    Raises TrainingError if the folder, the data or the tokenizer do not fit; see `Trainer.fit`.
    """
    data, tokenizer = _open(run), load_checked_tokenizer(run)
    with session.main_first() as is_main:
        if is_main:
            claim(session.folder, to_yaml(run))
    _describe(run, data, tokenizer, session)
    tokenizer = tokenizer.to(session.device)
    with session.main_first():  # the others find it whole
        store = data.store or _pretokenized(run, data, tokenizer, session)
    _check_store(store, tokenizer, run)
    generator = starting_generator(run, data.class_names, session)
    stage = _stage(run, generator.to(session.device), tokenizer, store)
    generator = cast(Generator, fit(session, stage, run.training, run.seed))
    directory = session.folder / MODEL_FOLDER
    if session.processes.is_main:
        save_model(
            directory,
            generator,
            tokenizer,
            run.sampling,
            class_labels(data.class_names),
            name=run.name,
            extra_files=card_files(run, session.folder / stage.name, data.class_names),
            source=f"trained by bar-serve on {run.data.path.name}",
        )
    return directory


def starting_generator(run: GeneratorRun, names: Sequence[str], session: Session) -> Generator:
    """Return the generator before its first step: another model's, or one with random weights."""
    with seeded(run.seed, "generator"):
        if run.start_from is None:
            generator = Generator(run.generator, run.dropout)
            initialise_generator(generator)
        else:
            info = zoo.resolve(run.start_from)
            old_names = [label.name for label in info.class_labels]
            donor, _ = load_model(info)
            generator = transplant(donor, old_names, run.generator, names, run.dropout)
            num_known = len(set(map(plain, names)) & set(map(plain, old_names)))
            session.say(
                f"from {info.name} {info.revision}: {num_known} of {len(names)} classes are "
                "known to it by name"
            )
    if run.frozen:
        trained, num_all = freeze(generator, run.frozen)
        session.say(f"trained: {trained:,} of {num_all:,} parameters")
    return generator


def _stage(
    run: GeneratorRun, generator: Generator, tokenizer: Tokenizer, store: TokenStore
) -> GeneratorStage:
    good = np.flatnonzero(store.class_ids != BAD)
    train, held_out = stratified_split(
        store.class_ids[good], run.data.held_out_share, run.data.max_held_out, run.data.split_seed
    )
    patch = run.generator.patch_size
    return GeneratorStage(
        generator,
        StoredTokens(store, good[train], patch, run.data.flip),
        StoredTokens(store, good[held_out], patch, flip=False),
        run.masking,
        tokenizer,
        run.sampling,
        run.training.held_out_batch,
    )


def load_checked_tokenizer(run: GeneratorRun) -> Tokenizer:
    """Load the run's tokenizer. Raises TrainingError if it does not fit the generator."""
    tokenizer = load_tokenizer(run.tokenizer)
    try:
        run.check_tokenizer(tokenizer.config)
    except ValueError as error:
        raise TrainingError(f"tokenizer {run.tokenizer}: {error}") from error
    return tokenizer


def _open(run: GeneratorRun) -> _Data:
    path = run.data.path
    if is_store(path):
        store = open_store(path)
        return _Data(store, None, store.index.class_names, store.class_ids)
    source = open_source(path)
    return _Data(None, source, source.class_names, source.class_ids)


def _pretokenized(
    run: GeneratorRun, data: _Data, tokenizer: Tokenizer, session: Session
) -> TokenStore:
    assert data.source is not None
    work = Pretokenization(
        source=data.source,
        tokenizer=tokenizer,
        folder=session.folder / TOKENS_FOLDER,
        mirrors=run.data.flip,
        num_threads=run.data.threads,
    )
    return write_store(work, session.stream, session.should_stop)


def _check_store(store: TokenStore, tokenizer: Tokenizer, run: GeneratorRun) -> None:
    mine = fingerprint(tokenizer)
    if store.index.tokenizer != mine:
        raise TrainingError(
            f"{store.folder} was written with another tokenizer, {store.index.tokenizer}, than "
            f"{run.tokenizer}, {mine}: its bits mean something else; pretokenize again"
        )


def _describe(run: GeneratorRun, data: _Data, tokenizer: Tokenizer, session: Session) -> None:
    size, num_images = run.generator, int((data.class_ids != BAD).sum())
    steps, batch = run.training.num_steps, run.training.batch_size
    session.say(
        f"generator {run.name}: {size.num_tokens} tokens of {size.bits_per_token} bits, width "
        f"{size.width}, depth {size.depth}; images of {tokenizer.config.image_size} px\n"
        f"data: {run.data.path}, {num_images} images of {len(data.class_names)} classes ("
        f"{_some(data.class_names)})\n"
        f"training: {steps} steps of {batch} on {session.device}, {steps * batch / num_images:.1f} "
        "epochs"
    )
    check_room(session, estimate_generator(run.generator, run.training), run.training)


def class_labels(names: Sequence[str]) -> ClassLabels:
    """Return the labels of classes by name; folders named as ImageNet's are ImageNet's classes."""
    imagenet = ClassLabels.imagenet()
    if sorted(names) == sorted(str(label.wordnet_id) for label in imagenet):
        return imagenet
    return ClassLabels.from_names(names)


def _some(names: tuple[str, ...], limit: int = 8) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f", and {more} more" if more > 0 else "")
