"""The engine on a GPU: captured graphs, its own decode stream, and memory that really runs out.

What can be known without a GPU is tested beside the engine's other tests; these are the rest.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.config import GeneratorConfig, HeadKind, ImageRequest, uniform_schedule
from model.engine import Engine
from model.fast_decoder import FastDecoder
from model.generate import generate
from model.generator import Generator
from model.precision import PRECISIONS
from model.quality import measure_quality
from model.quantizer import bits_to_codes
from model.tokenizer import Tokenizer
from tests.model.pretend_graphs import PretendGraphs
from tests.model.tiny import (
    NUM_CLASSES,
    request,
    tiny_config,
    tiny_generator,
    tiny_tokenizer,
    tiny_tokenizer_config,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

Images = list[NDArray[np.uint8]]
EXACT = ["float32", "bfloat16"]
ONE_ROUND = request(temperature=1.5, unmask_schedule=(4,)).sampling


@pytest.fixture(autouse=True)
def clean_memory() -> Iterator[None]:
    """Leave the device's memory to the next test."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


def build(config: GeneratorConfig | None = None) -> tuple[Generator, Tokenizer]:
    """Build the tiny model on the GPU."""
    generator = tiny_generator(config, torch.float32).to("cuda")
    return generator, tiny_tokenizer(dtype=torch.float32).to("cuda")


def tiny_engine(
    num_slots: int = 4,
    precision: str = "float32",
    batch_invariant: bool = True,
    config: GeneratorConfig | None = None,
) -> Engine:
    """Build an engine on the GPU."""
    return Engine(
        *build(config),
        num_slots=num_slots,
        precision=PRECISIONS[precision],
        batch_invariant=batch_invariant,
    )


def random_images(count: int, num_bits: int = 4, seed: int = 0) -> list[ImageRequest]:
    """Draw requests of all kinds."""
    rng = Random(seed)
    return [
        request(
            class_id=rng.randrange(NUM_CLASSES),
            seed=rng.randrange(2**32),
            guidance_scale=rng.choice([1.0, 2.5, 9.6]),
            temperature=rng.choice([0.0, 1.0, 2.5]),
            unmask_schedule=uniform_schedule(num_bits, rng.choice([1, 2, 3, 4, 9])),
            order=rng.choice(["raster", "random"]),
        )
        for _ in range(count)
    ]


def draw(engine: Engine, images: list[ImageRequest], arrivals_per_step: int = 1) -> Images:
    """Draw all images, some arriving at each step; decode beside the steps, as the service does."""
    waiting, slots = list(enumerate(images)), dict[int, int]()
    pixels, decodings = dict[int, NDArray[np.uint8]](), []
    while waiting or slots:
        for _ in range(min(arrivals_per_step, len(waiting), engine.free_slots)):
            number, image = waiting.pop(0)
            slots[engine.admit(image)] = number
        if full := engine.step():
            decodings.append(([slots.pop(slot) for slot in full], engine.start_decode(full)))
    for numbers, decoding in decodings:
        pixels.update(zip(numbers, decoding.images(), strict=True))
    return [pixels[number] for number in range(len(images))]


@pytest.mark.parametrize("batch_invariant", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "fp8"])
def test_captured_steps_are_eager_steps(precision: str, batch_invariant: bool) -> None:
    """With the same plans, replayed graphs draw the pixels of steps that simply run."""
    if precision == "fp8" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("eight-bit products with a scale for each row need compute capability 9.0")
    images = random_images(20)
    captured, eager = (tiny_engine(4, precision, batch_invariant) for _ in range(2))
    eager._run_step = PretendGraphs(eager._token_step)
    assert np.array_equal(draw(eager, images), draw(captured, images))
    assert any(graph is not None for graph in captured._run_step._graphs.values())


@pytest.mark.parametrize("precision", EXACT)
@pytest.mark.parametrize("head", ["linear", "bit"])
def test_other_heads_are_captured_and_alone_what_they_are_in_company(
    head: HeadKind, precision: str
) -> None:
    """Replayed graphs draw what eager steps draw, and an image is the same without the others."""
    config = tiny_config(head=head)
    images = [replace(image, sampling=ONE_ROUND) for image in random_images(12)]
    captured, eager = (tiny_engine(4, precision, config=config) for _ in range(2))
    eager._run_step = PretendGraphs(eager._token_step)
    together = draw(captured, images)
    assert np.array_equal(draw(eager, images), together)
    (alone,) = draw(tiny_engine(4, precision, config=config), images[5:6])
    assert np.array_equal(alone, together[5])


def test_float32_images_are_the_slow_generators() -> None:
    """Rounding may decide a bit once in a while: at most one image of forty differs, and the
    others only where it decides a pixel's level."""
    images = random_images(40)
    expected = generate(*build(), images).astype(int)
    drawn = np.stack(draw(tiny_engine(8), images)).astype(int)
    differs = np.abs(expected - drawn).max((1, 2, 3)) > 1
    assert differs.sum() <= 1


@pytest.mark.parametrize("precision", EXACT)
def test_an_image_is_the_same_alone_and_in_company(precision: str) -> None:
    """In a batch-invariant engine: bit for bit, in any slot, whoever is beside it."""
    image, others = random_images(1, seed=5)[0], random_images(12, seed=6)
    (alone,) = draw(tiny_engine(6, precision), [image])
    for position in (0, 3, 12):
        company = [*others[:position], image, *others[position:]]
        drawn = draw(tiny_engine(6, precision), company, arrivals_per_step=2)
        assert np.array_equal(alone, drawn[position])


@pytest.mark.parametrize("precision", EXACT)
@pytest.mark.parametrize("num_images", [1, 2, 4, 8])
def test_neighbours_within_a_bucket_do_not_matter(precision: str, num_images: int) -> None:
    """In an engine that follows the load: bit for bit with any neighbours in the same bucket."""
    image = random_images(1, seed=5)[0]
    drawn = []
    for seed in range(3):
        engine = tiny_engine(8, precision, batch_invariant=False)
        neighbours = [request(seed=seed + n, guidance_scale=4.0) for n in range(num_images - 1)]
        drawn.append(draw(engine, [image, *neighbours], arrivals_per_step=8)[0])
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


def test_forgotten_graphs_are_captured_again() -> None:
    """After the graphs and their memory pool are gone, new ones draw the same images."""
    engine, images = tiny_engine(), random_images(6)
    engine.warm_up()
    first = draw(engine, images)
    engine._run_step.forget()
    assert np.array_equal(first, draw(engine, images))
    assert np.array_equal(first, draw(engine, images))


def test_pixels_are_the_tokenizers() -> None:
    """The decoder on its own stream gives the tokenizer's pixels, to one level of rounding."""
    tokenizer = tiny_tokenizer(dtype=torch.float32).to("cuda")
    bits = torch.randint(0, 2, (11, 16, 4), device="cuda", dtype=torch.uint8)
    decoding = FastDecoder(tokenizer, torch.float32, 4).start(bits_to_codes(bits))
    assert decoding.arrived is not None
    assert decoding.pixels.is_pinned()
    expected = tokenizer.decode_uint8(bits).numpy(force=True).astype(int)
    assert np.abs(expected - decoding.images()).max() <= 1


def test_slots_may_be_used_again_before_their_pixels_arrive() -> None:
    """Images admitted and drawn while others are being decoded do not change those."""
    images = random_images(8, seed=1)
    expected = draw(tiny_engine(4), images)
    engine = tiny_engine(4)
    decodings = []
    for first in (0, 4):
        slots = [engine.admit(image) for image in images[first : first + 4]]
        while engine.progress(slots[0]) < 1:
            engine.step()
        decodings.append(engine.start_decode(slots))
    drawn = [image for decoding in decodings for image in decoding.images()]
    assert np.array_equal(expected, drawn)


def test_an_engine_that_does_not_fit_says_so_and_leaves_nothing() -> None:
    """Too many slots raise torch's own error, and the memory is free again."""
    generator, tokenizer = build()
    before = torch.cuda.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError):
        Engine(generator, tokenizer, num_slots=200_000_000)
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 1 << 20


WIDE = GeneratorConfig(
    grid_size=4,
    patch_size=2,
    bits_per_latent=4,
    width=256,
    depth=2,
    num_heads=4,
    num_classes=NUM_CLASSES,
    class_repeat=3,
    head_width=1024,
    head_depth=3,
)


def test_memory_that_runs_out_during_steps_costs_no_image() -> None:
    """With half of what a step takes, the engine halves its steps and draws every image."""
    num_slots, images = 1024, random_images(1024, 16)
    engine = tiny_engine(num_slots, config=WIDE)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    expected = np.stack(draw(engine, images, num_slots))
    needed = torch.cuda.max_memory_reserved() - held
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    engine = tiny_engine(num_slots, config=WIDE)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + needed // 2
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        drawn = np.stack(draw(engine, images, num_slots))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.num_out_of_memory > 0
    # Smaller products round otherwise, which decides a bit once in a while.
    assert (expected == drawn).all((1, 2, 3)).mean() > 0.95


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="eight-bit products with a scale for each row need compute capability 9.0",
)
def test_eight_bits_cost_what_the_emulation_says() -> None:
    """On the GPU every error of fp8 is within a factor of two of the processor's emulation."""
    images = [request(class_id=n, seed=n) for n in range(4)]
    on_gpu, on_cpu = (
        measure_quality(
            tiny_generator(dtype=torch.float32).to(device),
            tiny_tokenizer(dtype=torch.float32).to(device),
            PRECISIONS["fp8"],
            images,
        )
        for device in ("cuda", "cpu")
    )
    for name in ("latent_error", "logit_error", "pixel_error"):
        assert 0.5 < getattr(on_gpu, name) / getattr(on_cpu, name) < 2
    assert on_gpu.bit_flip_rate < 0.1


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_after_warming_up_nothing_is_captured(batch_invariant: bool) -> None:
    """The first images find every graph that they need, whatever their number."""
    engine = tiny_engine(8, batch_invariant=batch_invariant)
    engine.warm_up()
    graphs = dict(engine._run_step._graphs)
    for count in range(1, 9):
        draw(engine, random_images(count, seed=count), arrivals_per_step=8)
    assert graphs == dict(engine._run_step._graphs)
    assert None not in graphs.values()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_any_gpu_will_do() -> None:
    """On the second device, captured and replayed, images are those of the first."""
    images = random_images(12)
    expected = draw(tiny_engine(4), images)
    try:
        generator, tokenizer = build()
        engine = Engine(
            generator.to("cuda:1"),
            tokenizer.to("cuda:1"),
            num_slots=4,
            precision=PRECISIONS["float32"],
        )
        assert np.array_equal(expected, draw(engine, images))
    finally:
        torch.cuda.set_device(0)


GROWING: dict[str, Callable[[], int]] = {
    "allocated": torch.cuda.memory_allocated,
    "reserved": torch.cuda.memory_reserved,
}


@pytest.mark.parametrize("name", GROWING)
def test_three_hundred_images_leave_memory_flat(name: str) -> None:
    """Once every prefix was seen, the device holds as many bytes as before."""
    engine = tiny_engine(8, config=tiny_config(2))
    draw(engine, random_images(200, 16))
    before = GROWING[name]()
    draw(engine, random_images(300, 16, seed=1))
    assert before == GROWING[name]()


def test_tokenizers_of_other_sizes_decode_too() -> None:
    """Seventeen positions or sixty-five: no size needs to fit a kernel's tile."""
    tokenizer = tiny_tokenizer(tiny_tokenizer_config(8), torch.float32).to("cuda")
    bits = torch.randint(0, 2, (3, 64, 4), device="cuda", dtype=torch.uint8)
    for precision in EXACT:
        images = FastDecoder(tokenizer, PRECISIONS[precision].dtype, 2).start(bits_to_codes(bits))
        assert (3, 16, 16, 3) == images.images().shape
