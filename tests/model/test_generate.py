"""The slow generator: images follow from their requests alone, and every setting matters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import uniform_schedule
from model.generate import generate, generate_bits, generation_order
from model.generator import Generator
from model.sampling import linear_guidance, random_order, token_uniforms, unmasking
from model.token_grid import to_raster_order, tokens_to_cells
from tests.model.tiny import (
    NUM_CLASSES,
    request,
    tiny_config,
    tiny_generator,
    tiny_tokenizer,
)

MIXED = [
    request(class_id=0, seed=1),
    request(class_id=1, seed=2, guidance_scale=1.0),
    request(class_id=2, seed=2, temperature=0.0, unmask_schedule=(4,)),
    request(class_id=3, seed=3, order="random", unmask_schedule=(1, 1, 1, 1)),
    request(class_id=4, seed=4, order="random", guidance_scale=9.0, temperature=2.5),
    request(class_id=0, seed=2**32 - 1, unmask_schedule=(2, 2)),
]


def without_cache(generator: Generator, **settings: Any) -> Tensor:
    """Draw one image by running the whole teacher-forced trunk again for every token."""
    config, image = generator.config, request(**settings)
    sampling, order = image.sampling, generation_order(image, generator.config)[None]
    class_ids = torch.tensor([image.class_id, config.null_class])
    bits = torch.zeros(1, config.num_tokens, config.bits_per_token, dtype=torch.long)
    schedule = unmasking([sampling.unmask_schedule])
    for j in range(config.num_tokens):
        token = torch.tensor([j])
        latents = generator.trunk(bits.repeat(2, 1, 1), class_ids, order.repeat(2, 1))[:, j]
        scale = torch.tensor([sampling.guidance_scale])
        bits[:, j] = generator.head.sample(
            latents[:1],
            latents[1:],
            linear_guidance(scale, token, config.num_tokens),
            torch.tensor([sampling.temperature]),
            schedule,
            token_uniforms(
                torch.tensor([image.seed]), token, schedule.max_rounds, config.bits_per_token
            ),
        )
    return tokens_to_cells(to_raster_order(bits, order), config.patch_size)


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_generation_without_a_cache_gives_the_same_bits(patch_size: int, order: str) -> None:
    """The cache saves work and changes no bit, in either order and for every patch size."""
    generator = tiny_generator(tiny_config(patch_size))
    schedule = uniform_schedule(generator.config.bits_per_token, 3)
    settings: dict[str, Any] = {
        "class_id": 2,
        "seed": 5,
        "unmask_schedule": schedule,
        "order": order,
    }
    bits = generate_bits(generator, [request(**settings)])
    assert (torch.uint8, (1, 16, 4)) == (bits.dtype, tuple(bits.shape))
    assert torch.equal(without_cache(generator, **settings), bits.long())


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    """Neighbours of any class, guidance, temperature, schedule and order change no bit."""
    generator = tiny_generator()
    together = generate_bits(generator, MIXED)
    for image, bits in zip(MIXED, together, strict=True):
        assert torch.equal(generate_bits(generator, [image])[0], bits)


def test_the_same_request_gives_the_same_bits() -> None:
    """Bits follow from the request: torch's own random state is neither read nor moved."""
    generator = tiny_generator()
    torch.manual_seed(1)
    first, state = generate_bits(generator, MIXED), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, generate_bits(generator, MIXED))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "change",
    [
        {"class_id": 1},
        {"seed": 1},
        {"guidance_scale": 1.0},
        {"temperature": 0.0},
        {"unmask_schedule": (4,)},
        {"order": "random"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_matters(change: dict[str, Any]) -> None:
    """Changing any one setting changes the image."""
    generator = tiny_generator()
    before, after = generate_bits(generator, [request(), request(**change)])
    assert not torch.equal(before, after)


def test_seeds_give_different_images() -> None:
    """Twenty seeds give twenty images of one class."""
    bits = generate_bits(tiny_generator(), [request(seed=seed) for seed in range(20)])
    assert 20 == len(bits.unique(dim=0))


def test_without_temperature_the_seed_is_idle() -> None:
    """At temperature 0 in raster order an image depends on its class and guidance alone."""
    first, second = generate_bits(
        tiny_generator(), [request(temperature=0.0, seed=seed) for seed in (1, 2)]
    )
    assert torch.equal(first, second)


def test_without_guidance_the_null_class_is_idle() -> None:
    """At guidance 1 the embedding of "no class" changes nothing; above 1 it does."""
    generator = tiny_generator()
    images = [request(guidance_scale=1.0), request(guidance_scale=4.0)]
    before = generate_bits(generator, images)
    with torch.no_grad():
        generator.trunk.class_embed.weight[-1].neg_()
    after = generate_bits(generator, images)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_guidance_begins_at_one() -> None:
    """An image of a single token is drawn without guidance, whatever its scale."""
    generator = tiny_generator(tiny_config(patch_size=4))
    settings: dict[str, Any] = {"unmask_schedule": (16, 16, 32)}
    first, second = generate_bits(
        generator,
        [request(guidance_scale=1.0, **settings), request(guidance_scale=9.0, **settings)],
    )
    assert torch.equal(first, second)


def test_generation_order_is_that_of_the_request() -> None:
    """Raster order counts up; random order is the one that belongs to the seed."""
    config = tiny_config()
    assert list(range(16)) == generation_order(request(seed=7), config).tolist()
    expected = random_order(7, 16)
    assert torch.equal(expected, generation_order(request(seed=7, order="random"), config))


def test_pixels_are_the_decoded_bits() -> None:
    """`generate` returns what the tokenizer makes of the bits, as an array of uint8 images."""
    generator, tokenizer = tiny_generator(), tiny_tokenizer()
    images = generate(generator, tokenizer, MIXED)
    assert (np.dtype(np.uint8), (6, 8, 8, 3)) == (images.dtype, images.shape)
    expected = tokenizer.decode_uint8(generate_bits(generator, MIXED))
    assert np.array_equal(expected.numpy(), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_models_draw_too(dtype: torch.dtype) -> None:
    """In float32 and bfloat16 the same code draws images of bits."""
    bits = generate_bits(tiny_generator(dtype=dtype), MIXED)
    assert {0, 1} == set(bits.unique().tolist())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([request(class_id=NUM_CLASSES)], "class_id must be an integer between 0 and 4, got 5"),
        ([request(), request(class_id=-1)], "class_id must be an integer between 0 and 4, got -1"),
        ([request(unmask_schedule=(2, 3))], r"\[2, 3\] sums to 5, but .* 4 bits per token"),
        ([], "there is no image to draw"),
    ],
)
def test_requests_that_do_not_fit_are_refused(images: list[Any], message: str) -> None:
    """A class or schedule of another model, and an empty batch, are refused before any work."""
    with pytest.raises(ValueError, match=message):
        generate_bits(tiny_generator(), images)
