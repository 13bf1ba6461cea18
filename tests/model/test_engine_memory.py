"""The engine and its memory: running out of it costs no image, and using it leaves nothing behind.

The memory that runs out here is pretended, by head, trunk and decoder that raise for more than so
many slots at once; what the engine does about it is real.
"""

import gc
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.batch_limit import BatchLimit
from model.config import ImageRequest
from model.engine import Engine
from model.generate import generation_order
from model.precision import Precision
from tests.model.tiny import request, tiny_config, tiny_generator, tiny_tokenizer

IMAGES = [
    request(class_id=n % 5, seed=n, guidance_scale=1 + n % 4, unmask_schedule=schedule)
    for n, schedule in enumerate(
        [(16,), (4, 4, 8), (1,) * 16, (8, 8), (2, 2, 5, 7), (16,), (3, 13)]
    )
]


def tiny_engine(num_slots: int, batch_invariant: bool = True) -> Engine:
    """Build an engine that draws four tokens of 16 bits."""
    return Engine(
        tiny_generator(tiny_config(2)),
        tiny_tokenizer(),
        num_slots=num_slots,
        precision=Precision(torch.float64),
        batch_invariant=batch_invariant,
    )


def random_order(seed: int) -> ImageRequest:
    """Return a request of the first image's class whose order belongs to the seed."""
    return request(class_id=0, seed=seed, unmask_schedule=(16,), order="random")


class Limited:
    """Stands before a method, and raises as torch does when `is_too_much` says so."""

    def __init__(self, owner: Any, name: str, is_too_much: Callable[..., bool]) -> None:
        self.method, self.is_too_much, self.num_failures = getattr(owner, name), is_too_much, 0
        setattr(owner, name, self)

    def __call__(self, *args: Any) -> Any:
        if self.is_too_much(*args):
            self.num_failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return self.method(*args)


def limit_head(engine: Engine, limit: int) -> Limited:
    """Let the head draw for `limit` slots at once."""
    return Limited(engine._head, "sample", lambda latents, *_: latents.shape[1] > limit)


def limit_trunk(engine: Engine, limit: int) -> Limited:
    """Let the trunk read for `limit` slots at once; by then the head has drawn."""
    return Limited(engine._trunk, "decode_step", lambda bits, *_: len(bits) > limit)


def limit_decoder(engine: Engine, limit: int) -> Limited:
    """Let the decoder decode `limit` images at once."""
    return Limited(engine._decoder, "_decode_batch", lambda codes: len(codes) > limit)


LIMITS = {"head": limit_head, "trunk": limit_trunk}


def draw(engine: Engine, images: list[ImageRequest]) -> list[NDArray[np.uint8]]:
    """Draw all images, one more arriving at each step, and return their pixels in order."""
    waiting, slots, pixels = list(enumerate(images)), dict[int, int](), {}
    while waiting or slots:
        if waiting and engine.free_slots:
            number, image = waiting.pop(0)
            slots[engine.admit(image)] = number
        full = engine.step()
        for slot, image_pixels in zip(full, engine.decode(full) if full else [], strict=True):
            pixels[slots.pop(slot)] = image_pixels
    return [pixels[number] for number in range(len(images))]


@pytest.mark.parametrize("batch_invariant", [True, False])
@pytest.mark.parametrize(("num_slots", "limit"), [(4, 3), (4, 1), (7, 2), (2, 1)])
@pytest.mark.parametrize("part", LIMITS)
def test_a_step_that_is_too_large_is_halved(
    part: str, num_slots: int, limit: int, batch_invariant: bool
) -> None:
    """However little fits, the engine carries on with it, and every image is, to the last pixel,
    that of an engine with memory enough."""
    engine = tiny_engine(num_slots, batch_invariant)
    limited = LIMITS[part](engine, limit)
    expected = draw(tiny_engine(num_slots, batch_invariant), IMAGES)
    assert np.array_equal(expected, draw(engine, IMAGES))
    assert engine.num_out_of_memory == limited.num_failures > 0


def test_halving_is_remembered() -> None:
    """Once halved, later steps do not try the larger size again."""
    engine = tiny_engine(8)
    limited = limit_head(engine, 2)
    draw(engine, IMAGES)
    assert 2 == limited.num_failures  # eight slots, then four
    draw(engine, IMAGES)
    assert 2 == limited.num_failures


def test_steps_grow_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without a failure more slots are computed at once, up to all, if they fit."""
    monkeypatch.setattr("model.batch_limit.PATIENCE", 5)
    engine = tiny_engine(8)
    limited = limit_head(engine, 2)
    draw(engine, IMAGES)
    assert limited.num_failures > 2  # it tried four slots again, in vain
    assert engine.slots_at_once < 8
    limited.is_too_much = lambda *_: False
    for _ in range(20):
        assert np.array_equal(draw(tiny_engine(8), IMAGES), draw(engine, IMAGES))
    assert 8 == engine.slots_at_once


def test_changes_of_size_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps and of decodes, fewer at once and more again."""
    monkeypatch.setattr("model.batch_limit.PATIENCE", 2)
    engine = tiny_engine(2)
    engine._decoder._limit = BatchLimit(2)
    limited = limit_head(engine, 1), limit_decoder(engine, 1)
    slot = engine.admit(IMAGES[0])
    engine.step()
    assert (1, 1) == (engine.num_changes, engine.slots_at_once)
    engine.preview([slot])
    assert (2, 1) == (engine.num_changes, engine._decoder.batch_size)
    for part in limited:
        part.is_too_much = lambda *_: False
    for expected in (2, 3):
        engine.step()
        assert expected == engine.num_changes
    assert 2 == engine.slots_at_once
    engine.preview([slot])
    assert (4, 2) == (engine.num_changes, engine._decoder.batch_size)


def test_a_step_that_failed_is_none_without_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one such step would be enough to grow here, and it does not count."""
    monkeypatch.setattr("model.batch_limit.PATIENCE", 1)
    engine = tiny_engine(4)
    limit_head(engine, 2)
    engine.admit(IMAGES[0])
    engine.step()
    assert 2 == engine.slots_at_once


def test_memory_that_runs_out_at_any_time_costs_no_image() -> None:
    """Failures here and there, in the middle of steps that were halved before."""
    engine, calls = tiny_engine(8), count()
    Limited(engine._trunk, "decode_step", lambda bits, *_: len(bits) > 1 and next(calls) % 4 == 3)
    Limited(
        engine._head, "sample", lambda latents, *_: latents.shape[1] > 1 and next(calls) % 7 == 6
    )
    assert np.array_equal(draw(tiny_engine(8), IMAGES), draw(engine, IMAGES))
    assert engine.num_out_of_memory >= 3


@pytest.mark.parametrize("part", LIMITS)
@pytest.mark.parametrize("num_slots", [1, 3])
def test_too_little_for_one_slot_is_an_error(part: str, num_slots: int) -> None:
    """When one slot alone does not fit, the error reaches the caller."""
    engine = tiny_engine(num_slots)
    LIMITS[part](engine, 0)
    slot = engine.admit(IMAGES[0])
    with pytest.raises(torch.OutOfMemoryError):
        engine.step()
    assert 0 == engine.progress(slot)
    engine.cancel(slot)
    assert num_slots == engine.free_slots


def test_prefixes_make_room() -> None:
    """Out of memory drops the prefixes that no image needs to be shared, and they come back."""
    engine = tiny_engine(4)
    for image in IMAGES[:4]:
        engine.admit(image)
    assert 5 == len(engine.prefixes)
    limited = limit_head(engine, 2)
    engine.step()
    assert 1 == len(engine.prefixes)
    assert 1 == limited.num_failures
    engine.cancel(0)
    engine.admit(IMAGES[0])
    assert 2 == len(engine.prefixes)


def test_prefixes_of_random_orders_are_the_rare_ones() -> None:
    """They go first; those of images in raster order stay, and those without a class, which come
    again with every class."""
    engine = tiny_engine(4)
    engine.admit(IMAGES[0])
    seed = next(n for n in range(9) if generation_order(random_order(n), engine.config)[0] > 0)
    engine.admit(random_order(seed))
    assert 4 == len(engine.prefixes)
    engine.prefixes.evict()
    misses = engine.prefixes.misses
    engine.admit(IMAGES[0])
    assert misses == engine.prefixes.misses
    engine.admit(random_order(seed))
    assert misses + 1 == engine.prefixes.misses


def test_an_engine_of_one_slot_gives_up_its_prefixes_first() -> None:
    """With nothing left to halve, a step is tried again without them."""
    engine = tiny_engine(1)
    limited = Limited(engine._head, "sample", lambda *_: len(engine.prefixes) > 1)
    assert np.array_equal(draw(tiny_engine(1), IMAGES), draw(engine, IMAGES))
    assert limited.num_failures > 0


def test_admitting_makes_room_too() -> None:
    """A prefix that does not fit is computed after others are dropped."""
    engine = tiny_engine(2)
    draw(engine, IMAGES)
    assert 6 == len(engine.prefixes)
    engine.prefixes.evict()
    Limited(engine._trunk, "prefill", lambda *_: len(engine.prefixes) > 2)
    assert np.array_equal(draw(tiny_engine(2), IMAGES), draw(engine, IMAGES))
    assert engine.num_out_of_memory > 0


def test_an_image_that_cannot_be_admitted_takes_no_slot() -> None:
    """When no prefix can be computed at all, the error reaches the caller and slots stay free."""
    engine = tiny_engine(2)
    limited = Limited(engine._trunk, "prefill", lambda *_: True)
    with pytest.raises(torch.OutOfMemoryError):
        engine.admit(IMAGES[0])
    assert (2, 2) == (engine.free_slots, limited.num_failures)
    limited.is_too_much = lambda *_: False
    assert np.array_equal(draw(tiny_engine(2), IMAGES), draw(engine, IMAGES))


def test_a_decode_that_is_halved_is_counted() -> None:
    """Beside the steps' own failures."""
    engine = tiny_engine(2)
    engine._decoder._limit = BatchLimit(4)
    limited = limit_decoder(engine, 1)
    assert np.array_equal(draw(tiny_engine(2), IMAGES), draw(engine, IMAGES))
    assert 2 == limited.num_failures == engine.num_out_of_memory


def test_images_survive_a_decoder_without_memory() -> None:
    """A decode that fails keeps its slots full, so that it can be asked for again."""
    engine = tiny_engine(2)
    limited = limit_decoder(engine, 0)
    slot = engine.admit(IMAGES[0])
    while engine.progress(slot) < 1:
        engine.step()
    with pytest.raises(torch.OutOfMemoryError):
        engine.decode([slot])
    assert 1 == engine.progress(slot)
    limited.is_too_much = lambda codes: False
    (expected,) = draw(tiny_engine(2), IMAGES[:1])
    assert np.array_equal(expected, engine.decode([slot])[0])


def live_tensors() -> tuple[int, int]:
    """Count the tensors that are alive, and their bytes."""
    gc.collect()
    # By type, not isinstance: asking some objects for their class imports half of torch.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)


def random_images(seed: int, number: int) -> list[ImageRequest]:
    """Draw requests of every class, schedule and order."""
    rng = Random(seed)
    schedules = [image.sampling.unmask_schedule for image in IMAGES]
    return [
        request(
            class_id=rng.randrange(5),
            seed=rng.randrange(2**32),
            guidance_scale=rng.choice([1.0, 4.0]),
            unmask_schedule=rng.choice(schedules),
            order=rng.choice(["raster", "random"]),
        )
        for _ in range(number)
    ]


def resident_bytes() -> int:
    """Return how much of this process is in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return 4096 * pages


def test_three_hundred_images_leave_no_tensor_behind() -> None:
    """Once every prefix was seen, as many tensors of as many bytes are alive as before."""
    engine = tiny_engine(8)
    draw(engine, random_images(0, 200))
    before = live_tensors()
    draw(engine, random_images(1, 300))
    assert before == live_tensors()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_ten_thousand_images_leave_memory_flat() -> None:
    """No tensor is left behind, and the process has grown by less than 16 MiB."""
    engine = tiny_engine(16, batch_invariant=False)
    draw(engine, random_images(0, 500))
    before, resident = live_tensors(), resident_bytes()
    for seed in range(20):
        draw(engine, random_images(seed, 500))
    assert before == live_tensors()
    assert resident_bytes() - resident < 16 << 20
