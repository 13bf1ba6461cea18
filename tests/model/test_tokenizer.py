"""The tokenizer as a whole: pixels to bits and back."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.quantizer import codes_to_bits
from model.tokenizer import Tokenizer, to_uint8
from tests.model.tiny import tiny_tokenizer, tiny_tokenizer_config


def pixels(size: int = 8, batch: int = 2) -> Tensor:
    """Draw images (B, 3, size, size) in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, size, size, generator=rng, dtype=torch.float64) * 2 - 1


def bits(batch: int = 2) -> Tensor:
    """Draw bits (B, L, bits_per_latent)."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (batch, 16, 4), generator=rng, dtype=torch.uint8)


def test_encode_and_decode_have_each_others_shapes() -> None:
    """Pixels become uint8 bits of every cell, and bits become pixels of the same size."""
    tokenizer = tiny_tokenizer()
    encoded = tokenizer.encode(pixels())
    assert (torch.uint8, (2, 16, 4)) == (encoded.dtype, tuple(encoded.shape))
    assert {0, 1} >= set(encoded.unique().tolist())
    decoded = tokenizer.decode(encoded)
    assert (torch.float64, (2, 3, 8, 8)) == (decoded.dtype, tuple(decoded.shape))
    assert (2, 8, 8, 3) == tuple(tokenizer.decode_uint8(encoded).shape)


def test_forward_is_encoding_and_decoding() -> None:
    """What training sees are the codes that encode gives and the pixels that decode gives."""
    tokenizer = tiny_tokenizer()
    output = tokenizer(pixels())
    assert torch.equal(tokenizer.encode(pixels()), codes_to_bits(output.codes))
    assert torch.equal(tokenizer.decode(tokenizer.encode(pixels())), output.reconstruction)
    assert torch.equal(tokenizer.encode_features(pixels()), output.features)
    assert output.clip_prediction is None


def test_gradient_passes_through_the_bits() -> None:
    """A loss on the pixels moves every parameter, those of the encoder included."""
    tokenizer = tiny_tokenizer()
    torch.nn.init.constant_(tokenizer.quantizer.in_proj.bias, -3.8)  # where bits are undecided
    tokenizer(pixels()).reconstruction.square().sum().backward()
    still = [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()]
    assert [] == still


def test_encode_and_decode_keep_no_gradient() -> None:
    """Outside training no graph is built."""
    tokenizer = tiny_tokenizer()
    assert not tokenizer.decode(bits()).requires_grad
    assert not tokenizer.encode(pixels().requires_grad_()).requires_grad


def test_every_bit_reaches_the_picture() -> None:
    """Flipping any one bit changes the pixels: no two images of this tokenizer look the same."""
    tokenizer, original = tiny_tokenizer(), bits(1)
    image = tokenizer.decode_uint8(original)
    for cell in range(16):
        for bit in range(4):
            flipped = original.clone()
            flipped[0, cell, bit] ^= 1
            assert not torch.equal(image, tokenizer.decode_uint8(flipped))


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 3, 16, 16), (1, 1, 8, 8), (3, 8, 8)])
def test_pixels_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    """Pixels that are not the tokenizer's are refused with both shapes."""
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)\), got \(") as error:
        tiny_tokenizer().encode(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_without_encoder_it_decodes_and_nothing_else() -> None:
    """A tokenizer built for serving decodes alike, and says why it cannot encode."""
    whole, config = tiny_tokenizer(), tiny_tokenizer_config()
    serving = Tokenizer(config, with_encoder=False).double()
    state = whole.state_dict()
    serving.load_state_dict({k: v for k, v in state.items() if not k.startswith("encoder.")})
    assert torch.equal(whole.decode(bits()), serving.decode(bits()))
    with pytest.raises(ValueError, match="loaded for decoding: load it with its encoder"):
        serving.encode(pixels())
    with pytest.raises(ValueError, match="loaded for decoding: load it with its encoder"):
        serving(pixels())


def test_uint8_truncates_and_clamps() -> None:
    """A pixel x is clamp((x + 1) / 2, 0, 1) · 255, rounded down, colour last."""
    values = [-7.0, -1.0, -0.9999, 0.0, 0.9999, 1.0, 7.0]
    expected = [0, 0, 0, 127, 254, 255, 255]
    image = torch.tensor(values)[None, None, None, :].repeat(1, 3, 1, 1)
    image[:, 1] = -1
    result = to_uint8(image)
    assert (torch.uint8, (1, 1, 7, 3)) == (result.dtype, tuple(result.shape))
    assert expected == result[0, 0, :, 0].tolist() == result[0, 0, :, 2].tolist()
    assert not result[..., 1].any()


def test_uint8_of_a_bfloat16_decoder() -> None:
    """A bfloat16 decoder's pixels are scaled in float32: 255 levels would not survive otherwise."""
    image = torch.linspace(-1, 1, 300).bfloat16().reshape(1, 3, 10, 10)
    assert torch.equal(to_uint8(image.float()), to_uint8(image))


def test_a_bfloat16_tokenizer_decodes() -> None:
    """With bfloat16 weights bits still become an image, close to that of float32."""
    exact = tiny_tokenizer().decode(bits())
    rounded = tiny_tokenizer(dtype=torch.bfloat16).decode(bits())
    assert torch.bfloat16 == rounded.dtype
    assert (rounded.double() - exact).abs().mean() < 0.05


def test_siglip2_tokenizer_predicts_the_clip_features() -> None:
    """With a SigLIP2 encoder, training also sees a prediction as wide as the frozen features."""
    pytest.importorskip("transformers")
    config = replace(tiny_tokenizer_config(), encoder_kind="siglip2", clip_layer=1)
    output = Tokenizer(config)(pixels().float())
    assert output.clip_prediction is not None
    assert output.features.shape == output.clip_prediction.shape


def test_serving_a_siglip2_tokenizer_needs_no_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without its encoder a SigLIP2 tokenizer decodes where transformers is missing."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = replace(tiny_tokenizer_config(), encoder_kind="siglip2", clip_layer=1)
    serving = Tokenizer(config, with_encoder=False)
    assert (2, 3, 8, 8) == tuple(serving.decode(bits()).shape)
    with pytest.raises(ValueError, match=r"pip install 'bar-serve\[siglip2\]'"):
        Tokenizer(config)
