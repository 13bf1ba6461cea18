"""Facts of the fast decoder: the tokenizer's pixels, in batches of one size."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model.fast_decoder import FastDecoder
from model.fp8 import Fp8Linear
from model.quantizer import bits_to_codes
from model.tokenizer import Tokenizer, to_uint8
from tests.model.tiny import tiny_tokenizer, tiny_tokenizer_config

DTYPES = [torch.float32, torch.float64]


def random_bits(count: int) -> Tensor:
    """Draw the bits of images of 16 cells, the same ones each time."""
    rng = torch.Generator().manual_seed(3)
    return torch.randint(0, 2, (20, 16, 4), generator=rng, dtype=torch.uint8)[:count]


def pixels_of(decoder: FastDecoder, bits: Tensor) -> Tensor:
    """Decode `bits` and wait for the pixels."""
    return torch.from_numpy(decoder.start(bits_to_codes(bits)).images())


class SmallMemory(FastDecoder):
    """Runs out of memory for more images at once than `limit`."""

    def __init__(self, tokenizer: Tokenizer, batch_size: int, limit: int, pad: bool = True) -> None:
        super().__init__(tokenizer, torch.float64, batch_size, pad=pad)
        self.limit, self.batches = limit, list[int]()

    def _decode_batch(self, codes: Tensor) -> Tensor:
        self.batches.append(len(codes))
        if len(codes) > self.limit:
            raise torch.OutOfMemoryError
        return super()._decode_batch(codes)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pixels_are_the_tokenizers(count: int, batch_size: int) -> None:
    """Fewer images than a batch, a whole one, and more: the pixels of `decode_uint8`."""
    tokenizer, bits = tiny_tokenizer(), random_bits(count)
    pixels = pixels_of(FastDecoder(tokenizer, torch.float64, batch_size), bits)
    assert torch.equal(tokenizer.decode_uint8(bits), pixels)
    assert len({image.numpy().tobytes() for image in pixels}) == count


@pytest.mark.parametrize("size", [1, 3, 5])
def test_patches_of_any_size_are_laid_out_alike(size: int) -> None:
    """Rectangles of colours end up where the tokenizer's own decoder puts them."""
    config = dataclasses.replace(tiny_tokenizer_config(), image_size=4 * size, patch_size=size)
    tokenizer, bits = tiny_tokenizer(config), random_bits(2)
    pixels = pixels_of(FastDecoder(tokenizer, torch.float64, 1), bits)
    assert (2, 4 * size, 4 * size, 3) == pixels.shape
    assert torch.equal(tokenizer.decode_uint8(bits), pixels)


def test_pixels_do_not_depend_on_company() -> None:
    """In float32, an image is the same pixel for pixel whoever shares its batch."""
    decoder = FastDecoder(tiny_tokenizer(dtype=torch.float32), torch.float32, 4)
    together, alone = (pixels_of(decoder, random_bits(count)) for count in (7, 1))
    assert torch.equal(alone[0], together[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_unknown_bit_lies_half_way(dtype: torch.dtype) -> None:
    """A code of 0 enters the decoder as the mean of what the bit's two values would."""
    tokenizer = tiny_tokenizer(dtype=dtype)
    codes = bits_to_codes(random_bits(1))
    codes[0, 5:] = 0
    expected = to_uint8(tokenizer.decoder(tokenizer.quantizer.embed(codes).to(dtype)))
    decoded = FastDecoder(tokenizer, dtype, 2).start(codes).images().astype(int)
    assert np.abs(expected.numpy().astype(int) - decoded).max() <= (dtype == torch.float32)
    flipped = [codes.clone().index_fill_(1, torch.tensor([5]), value) for value in (-1, 1)]
    low, high = (tokenizer.quantizer.embed(part)[0, 5] for part in flipped)
    torch.testing.assert_close((low + high) / 2, tokenizer.quantizer.embed(codes)[0, 5])


@pytest.mark.parametrize(("linear", "error"), [(None, 2.0), (Fp8Linear, 20.0)])
def test_narrow_dtypes_are_close(linear: type[Fp8Linear] | None, error: float) -> None:
    """bfloat16 is within two levels of 255 on average, fp8 within twenty on these random weights,
    and neither is the same."""
    tokenizer, bits = tiny_tokenizer(dtype=torch.float32), random_bits(6)
    kind = (linear,) if linear else ()
    pixels = pixels_of(FastDecoder(tokenizer, torch.bfloat16, 3, *kind), bits)
    difference = (tokenizer.decode_uint8(bits).int() - pixels.int()).abs().float().mean()
    assert 0 < difference < error


@pytest.mark.parametrize(("limit", "tried"), [(4, [8, 4]), (3, [8, 4, 2]), (1, [8, 4, 2, 1])])
def test_out_of_memory_halves_the_batch(limit: int, tried: list[int]) -> None:
    """It carries on with what fits, at once and from then on, and loses no image."""
    tokenizer, bits = tiny_tokenizer(), random_bits(9)
    decoder = SmallMemory(tokenizer, 8, limit)
    assert torch.equal(tokenizer.decode_uint8(bits), pixels_of(decoder, bits))
    assert tried == list(dict.fromkeys(decoder.batches))
    assert tried[-1] == decoder.batch_size
    decoder.batches.clear()
    pixels_of(decoder, bits)
    assert {decoder.batch_size} == set(decoder.batches)


def test_what_was_tried_is_halved_where_nothing_is_padded() -> None:
    """Ten images of a batch of 64 leave five, and one that does not fit is not tried again."""
    tokenizer, bits = tiny_tokenizer(), random_bits(10)
    decoder = SmallMemory(tokenizer, 64, 5, pad=False)
    assert torch.equal(tokenizer.decode_uint8(bits), pixels_of(decoder, bits))
    assert [10, 5, 5] == decoder.batches
    decoder = SmallMemory(tokenizer, 64, 0, pad=False)
    with pytest.raises(torch.OutOfMemoryError):
        pixels_of(decoder, bits[:1])
    assert [1] == decoder.batches


def test_images_decoded_before_the_memory_ran_out_are_kept() -> None:
    """A batch that succeeded is not decoded again when a later one has to be halved."""
    tokenizer, bits = tiny_tokenizer(), random_bits(8)
    decoder = SmallMemory(tokenizer, 4, 4)
    decode_batch = decoder._decode_batch

    def shrink_after_the_first(codes: Tensor) -> Tensor:
        pixels = decode_batch(codes)
        decoder.limit = 2
        return pixels

    decoder._decode_batch = shrink_after_the_first  # type: ignore[method-assign]
    assert torch.equal(tokenizer.decode_uint8(bits), pixels_of(decoder, bits))
    assert [4, 4, 2, 2] == decoder.batches


def test_not_enough_for_one_image_is_an_error() -> None:
    """At one image a call there is nothing left to halve."""
    decoder = SmallMemory(tiny_tokenizer(), 4, 0)
    with pytest.raises(torch.OutOfMemoryError):
        pixels_of(decoder, random_bits(2))
    assert [4, 2, 1] == decoder.batches
