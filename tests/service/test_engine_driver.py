"""Facts of the engine's thread: what a turn does, when a preview is due, which errors are final."""

import pytest

from model.config import PRESETS, ImageRequest
from service.engine_driver import MAX_TURN_S, EngineDriver, is_lost
from service.images import Pixels
from service.jobs import Job
from service.scheduler import Image
from tests.service.fakes import FakeEngine, as_engine, fake_pixels

SAMPLING = PRESETS["digits"].sampling


class OutOfMemoryError(RuntimeError):
    """Stands for torch's error of that name."""


class AcceleratorError(RuntimeError):
    """Stands for torch's error of that name."""


def make_image(seed: int = 0, partial_images: int = 0, num_steps: int = 16) -> Image:
    """Make the only image of a job."""
    request = ImageRequest(class_id=seed, seed=seed, sampling=SAMPLING)
    job = Job(
        id=f"job {seed}",
        images=(request,),
        num_steps=num_steps,
        output_format="png",
        timeout_s=60,
        partial_images=partial_images,
    )
    return Image(job, 0)


@pytest.mark.parametrize(("error", "expected"), [
    (AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
    (AcceleratorError("launch failed"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("CUDA is only a word here"), False),
])  # fmt: skip
def test_only_a_broken_device_is_final(error: Exception, expected: bool) -> None:
    """After CUDA's errors nothing works in this process, except when memory ran out."""
    assert expected is is_lost(error)


def test_a_turn_frees_fills_steps_and_decodes() -> None:
    """One call does all that happens between two step boundaries, in that order."""
    driver = EngineDriver(as_engine(FakeEngine(num_slots=2, num_steps=2)))
    first, second, third = (make_image(seed, num_steps=2) for seed in range(3))
    turn = driver.turn([], [first, second])
    assert {first: 0.5, second: 0.5} == turn.shares
    turn = driver.turn([first], [third])  # which takes the slot that is freed
    assert {second: 1.0, third: 0.5} == turn.shares
    assert [second] == turn.full
    assert turn.pixels is not None
    assert (fake_pixels(second.request) == turn.pixels.image(0)).all()
    assert [third] == driver.turn([], []).full
    assert {} == driver.turn([], []).shares


def test_a_turn_reads_the_engines_counters() -> None:
    """What metrics show is read in the engine's thread, after the step."""
    engine = FakeEngine(num_slots=4)
    engine.num_out_of_memory = 7
    driver = EngineDriver(as_engine(engine))
    counters = driver.turn([], [make_image(1), make_image(1), make_image(2)]).counters
    assert (1, 2, 7) == (counters.prefix_hits, counters.prefix_misses, counters.out_of_memory)
    assert {"trunk": 1.0} == counters.stage_s


@pytest.mark.parametrize(("partial_images", "expected"), [
    (0, []), (1, [8]), (2, [6, 11]), (3, [4, 8, 12]),
])  # fmt: skip
def test_previews_are_evenly_spaced(partial_images: int, expected: list[int]) -> None:
    """A preview is made at the first token beyond each even share, and none when all is drawn."""
    driver = EngineDriver(as_engine(FakeEngine()))
    turns = [driver.turn([], [make_image(1, partial_images)])]
    turns += [driver.turn([], []) for _ in range(15)]
    previews = [preview for turn in turns for preview in turn.previews]
    assert expected == [preview.pixels[0, 0, 0] for preview in previews]
    assert [drawn / 16 for drawn in expected] == [preview.share for preview in previews]
    assert turns[-1].full


def test_a_failed_decoding_leaves_the_others() -> None:
    """Only the images that were full are lost; their slots are free and the others go on."""
    engine = FakeEngine(num_slots=2, num_steps=2)

    def explode() -> None:
        raise RuntimeError("no pixels")

    engine.decode_fault = explode
    driver = EngineDriver(as_engine(engine))
    early, late = make_image(1), make_image(2)
    driver.turn([], [early])
    turn = driver.turn([], [late])
    assert [early] == turn.full
    assert turn.pixels is not None
    with pytest.raises(RuntimeError, match="no pixels"):
        turn.pixels.image(0)
    assert 1 == engine.free_slots
    engine.decode_fault = lambda: None
    assert [late] == driver.turn([], []).full


def test_clearing_frees_every_slot() -> None:
    """Also those that a failed turn filled without anybody's knowing."""
    engine = FakeEngine(num_slots=3)
    driver = EngineDriver(as_engine(engine))
    driver.turn([], [make_image(1)])
    engine.admit(make_image(2).request)
    driver.clear()
    assert 3 == engine.free_slots
    assert {} == driver.turn([], []).shares


def draw_canary(driver: EngineDriver, request: ImageRequest) -> Pixels:
    """Go on with a known image until it is there."""
    while (pixels := driver.step_canary(request)) is None:
        pass
    return pixels


def test_a_known_image_leaves_nothing_behind() -> None:
    """It uses a slot, gives it back, and is what its request says."""
    engine, request = FakeEngine(num_slots=2), make_image(3).request
    pixels = draw_canary(EngineDriver(as_engine(engine)), request)
    assert (fake_pixels(request) == pixels).all()
    assert (2, [1] * 16) == (engine.free_slots, engine.batch_sizes)


def test_a_known_image_that_was_rounded_in_two_ways_is_begun_again() -> None:
    """What the engine computes at once changes at its third step and, once more, with its last."""
    engine, request = FakeEngine(num_slots=1), make_image(3).request

    def change() -> None:
        engine.num_changes += len(engine.batch_sizes) in (2, 31)

    engine.fault = change
    driver = EngineDriver(as_engine(engine))
    assert (fake_pixels(request) == draw_canary(driver, request)).all()
    assert (1, 2, 3 * 16) == (engine.free_slots, driver.num_changes, len(engine.batch_sizes))


def test_a_known_image_gives_way_and_begins_again() -> None:
    """Whoever comes has its slot at once; afterwards it is drawn from its first token on."""
    engine, request = FakeEngine(num_slots=1, step_s=2 * MAX_TURN_S), make_image(3).request
    driver = EngineDriver(as_engine(engine))
    assert driver.step_canary(request) is None
    driver.turn([], [])  # in which nobody comes
    assert 0 == engine.free_slots
    engine.step_s = 0.0
    driver.turn([], [make_image(1)])
    while not driver.turn([], []).full:
        pass
    assert (fake_pixels(request) == draw_canary(driver, request)).all()
    assert 1 + 16 + 16 == len(engine.batch_sizes)


def test_a_turn_goes_on_while_there_is_no_news() -> None:
    """Without news steps follow each other in one call, up to the next full image or preview."""
    engine = FakeEngine()
    driver = EngineDriver(as_engine(engine))
    turn = driver.turn([], [make_image(1, partial_images=1)], lambda: False)
    assert 8 == len(turn.step_times_s) == len(engine.batch_sizes)
    assert [0.5] == [preview.share for preview in turn.previews]
    turn = driver.turn([], [], lambda: False)
    assert (8, 1) == (len(turn.step_times_s), len(turn.full))


def test_news_end_a_turn_after_the_running_step() -> None:
    """Who comes during a step joins at its end."""
    engine = FakeEngine()
    turn = EngineDriver(as_engine(engine)).turn(
        [], [make_image(1)], lambda: len(engine.batch_sizes) == 3
    )
    assert 3 == len(turn.step_times_s)


def test_a_turn_is_short() -> None:
    """Long steps are told of one by one, so that a cancelled job is noticed in time."""
    engine = FakeEngine(step_s=2 * MAX_TURN_S)
    turn = EngineDriver(as_engine(engine)).turn([], [make_image(1)], lambda: False)
    assert 1 == len(turn.step_times_s)
