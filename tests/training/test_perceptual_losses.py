"""Losses that look through a network, here with random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import CheckpointError
from model.tokenizer import Tokenizer, TokenizerOutput
from tests.model.tiny import tiny_tokenizer
from training import perceptual_losses
from training.errors import TrainingError
from training.perceptual_losses import (
    GramLoss,
    LogitsLoss,
    LpipsLoss,
    build_losses,
    gram,
    normalise,
)
from training.perceptual_networks import ConvNext, Vgg16
from training.pretrained import NetworksConfig, PretrainedFile
from training.tokenizer_loss import TokenizerLossWeights, tokenizer_loss

WIDTHS = ((4, 4), (5, 5), (6, 6, 6), (7, 7, 7), (8, 8, 8))


@pytest.fixture
def vgg() -> Vgg16:
    """Return a narrow VGG16 with random weights."""
    torch.manual_seed(0)
    return Vgg16(WIDTHS).requires_grad_(False)


def output(pixels: Tensor) -> TokenizerOutput:
    """Return a tokenizer's output of which only the pixels matter."""
    return TokenizerOutput(pixels, torch.empty(0), torch.empty(0), None)


def pictures() -> tuple[Tensor, Tensor]:
    """Return a reconstruction and its picture."""
    generator = torch.Generator().manual_seed(1)
    one, other = torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1
    return one, other


def test_vgg16_has_the_published_layers() -> None:
    """Thirteen convolutions under the published names, read after ReLUs and poolings."""
    network = Vgg16()
    state = network.state_dict()
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert {f"features.{n}.{part}" for n in numbers for part in ("weight", "bias")} == set(state)
    assert (512, 512, 3, 3) == tuple(state["features.28.weight"].shape)
    stages, pooled = Vgg16(WIDTHS)(torch.zeros(1, 3, 32, 32))
    assert [2, 2, 3, 3, 3] == [len(stage) for stage in stages]
    assert [16, 8, 4, 2, 1] == [x.shape[-1] for x in pooled]


def test_convnext_is_that_of_transformers() -> None:
    """With the same weights the logits are those of another implementation."""
    transformers = pytest.importorskip("transformers", reason="pip install 'bar-serve[siglip2]'")
    widths, depths = (8, 12, 16, 20), (1, 2, 1, 1)
    torch.manual_seed(0)
    ours = ConvNext(widths, depths, num_classes=7).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = transformers.ConvNextConfig(
        hidden_sizes=list(widths), depths=list(depths), num_labels=7
    )
    theirs = transformers.ConvNextForImageClassification(config).eval()
    # Both are built in call order: stem, then each stage's downsampling and blocks, then the head.
    mine = sorted(ours.state_dict().items(), key=lambda item: _order(item[0]))
    keys = list(theirs.state_dict())
    state = {
        key: value.reshape(theirs.state_dict()[key].shape)
        for key, (_, value) in zip(keys, mine, strict=True)
    }
    theirs.load_state_dict(state)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(pixels).logits, ours(pixels), atol=1e-4)


def _order(name: str) -> tuple[int, ...]:
    """Sort as the other implementation lists: by layer, a block's scale before its layers."""
    head = 1 if name.startswith("classifier") else 0
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    scale = [-1] if name.endswith("layer_scale") else []
    return (head, *numbers, *scale, 0 if name.endswith("weight") else 1)


def test_lpips_is_the_published_formula(vgg: Vgg16) -> None:
    """Unit-normalised features, squared difference, learned weights, spatial mean, summed."""
    weights = [torch.rand(1, width, 1, 1) for width in (4, 5, 6, 7, 8)]
    one, other = pictures()
    expected = torch.zeros(())
    features = [vgg(normalise(x, perceptual_losses.LPIPS_INPUT))[0] for x in (one, other)]
    for stage, weight in enumerate(weights):
        a, b = (F.normalize(each[stage][-1], dim=1, eps=1e-10) for each in features)
        expected += (weight * (a - b) ** 2).sum(1).mean()
    loss = LpipsLoss(vgg, weights)
    assert torch.allclose(expected, loss(output(one), other), rtol=1e-4)
    assert 0.0 == loss(output(one), one).item()


@pytest.mark.parametrize("kind", ["lpips", "gram", "convnext"])
def test_gradients_reach_the_reconstruction(vgg: Vgg16, kind: str) -> None:
    """Each loss has a finite gradient, and none where the pictures are equal."""
    torch.manual_seed(0)
    losses: dict[str, Callable[[TokenizerOutput, Tensor], Tensor]] = {
        "lpips": LpipsLoss(vgg, [torch.ones(1, width, 1, 1) for width in (4, 5, 6, 7, 8)]),
        "gram": GramLoss(vgg),
        "convnext": LogitsLoss(ConvNext((4, 4, 4, 4), (1, 1, 1, 1), 5).requires_grad_(False)),
    }
    loss = losses[kind]
    one, other = pictures()
    one.requires_grad_(True)
    value = loss(output(one), other)
    value.backward()
    assert value.item() > 0
    assert one.grad is not None
    assert one.grad.isfinite().all()
    assert one.grad.abs().sum() > 0


def test_gram_counts_relus_twice(vgg: Vgg16) -> None:
    """Thirteen ReLUs with weight two and five poolings with weight one."""
    one, other = pictures()
    grams = GramLoss(vgg)._grams(one)
    assert [2] * 13 + [1] * 5 == [times for times, _ in grams]
    features = torch.rand(2, 3, 4, 5)
    by_hand = torch.einsum("bchw,bdhw->bcd", features, features) / (3 * 4 * 5)
    assert torch.allclose(by_hand, gram(features))
    expected = sum(
        times * F.mse_loss(a, b)
        for (times, a), (_, b) in zip(grams, GramLoss(vgg)._grams(other), strict=True)
    )
    assert torch.allclose(torch.as_tensor(expected), GramLoss(vgg)(output(one), other))


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Return the tiny tokenizer."""
    return tiny_tokenizer(dtype=torch.float32)


@pytest.mark.parametrize(
    ("loss", "file"),
    [("lpips", "vgg16-397923af"), ("gram", "vgg16-397923af"), ("convnext", "convnext_small")],
)
def test_missing_weights_say_how_to_go_on(
    tmp_path: Path, tokenizer: Tokenizer, loss: str, file: str
) -> None:
    """The file, its size, its source, where to put it, and which weight to set to 0."""
    weights = TokenizerLossWeights(**{loss: 1.0})
    message = rf"losses\.{loss} needs {file}.*MB; torchvision.*{tmp_path}.*set losses\.{loss} to 0"
    with pytest.raises(TrainingError, match=message):
        build_losses(weights, tokenizer, NetworksConfig(folder=tmp_path))


def test_file_of_another_content_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A file whose checksum is not the publisher's is not used."""
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="damaged or of another training"):
        build_losses(TokenizerLossWeights(gram=1.0), tokenizer, NetworksConfig(folder=tmp_path))


def test_all_losses_together(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files to a weighted sum: every loss is named, and the sum has a gradient."""
    narrow = partial(ConvNext, (4, 4, 4, 4), (1, 1, 1, 1), 5)
    files = {
        "VGG16": ("vgg16.pth", Vgg16(WIDTHS).state_dict() | {"classifier.0.weight": torch.ones(2)}),
        "LPIPS_VGG": (
            "vgg.pth",
            {f"lin{i}.model.1.weight": torch.ones(1, 4 + i, 1, 1) for i in range(5)},
        ),
        "CONVNEXT_SMALL": ("convnext.pth", narrow().state_dict()),
    }
    for name, (file, state) in files.items():
        torch.save(state, tmp_path / file)
        monkeypatch.setattr(perceptual_losses, name, PretrainedFile(file, "", "", ""))
    monkeypatch.setattr(perceptual_losses, "Vgg16", partial(Vgg16, WIDTHS))
    monkeypatch.setattr(perceptual_losses, "ConvNext", narrow)
    weights = TokenizerLossWeights(lpips=1.0, convnext=0.1, gram=10.0)
    losses = build_losses(weights, tokenizer, NetworksConfig(folder=tmp_path))
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    # The tiny tokenizer's pictures are too small for five poolings: enlarge both sides alike.
    result = tokenizer(pixels)
    large = TokenizerOutput(
        F.interpolate(result.reconstruction, size=(32, 32)), result.features, result.codes, None
    )
    total, parts = tokenizer_loss(large, F.interpolate(pixels, size=(32, 32)), weights, losses)
    assert {"l2", "l1", "lpips", "convnext", "gram"} == set(parts)
    expected = sum(weights.used[name] * value for name, value in parts.items())
    assert expected == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    assert next(tokenizer.decoder.parameters()).grad is not None
