"""InceptionV3 against torch-fidelity's: numbers that it gave, and itself where it is installed."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from training.inception import Inception, enlarged


@pytest.fixture(scope="module")
def network() -> Inception:
    """Build the network with weights that belong to a seed, each sized to keep activations up."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = Inception()
    network.to_empty(device="cpu")
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.zero_()
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.8, 1.2, generator=generator)
        else:
            value.normal_(0, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    """Draw two images that are not square."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=generator)


def test_shapes_and_ranges(network: Inception, images: Tensor) -> None:
    """2048 features, 17 · 17 · 7 spatial ones after a ReLU, 1008 classes without bias."""
    seen = network(images)
    assert [(2, 2048), (2, 2023), (2, 1008)] == [tuple(part.shape) for part in seen]
    assert 0 <= float(seen.spatial.min())
    assert torch.allclose(seen.pool @ network.fc.weight.T, seen.logits, atol=1e-5)


GOLDEN: dict[str, list[float]] = {
    "pool": [0.0, 0.72059, 0.12431, 2.00718, 0.00528, 0.0, 1.35801, 0.01604],
    "spatial": [0.77777, 0.0, 0.0, 0.03121, 1.80828, 0.0, 0.0, 2.45568],
    "logits": [0.74052, 0.24951, 0.99524, 0.67432, -1.56864, -0.39308, -0.70604, -0.71056],
}


def test_features_are_those_of_torch_fidelity(network: Inception, images: Tensor) -> None:
    """With these weights torch-fidelity 0.4.0 gave these features of the second image."""
    seen = network(images)
    for name, part in seen._asdict().items():
        assert GOLDEN[name] == pytest.approx(part[1, ::100][:8].tolist(), rel=1e-4, abs=1e-4)


def test_a_pixel_moves_as_in_tensorflow_1() -> None:
    """Enlarging 2 pixels to 299 begins at the first and never passes the last: corners are not
    centred, so the first weight is 0 and half of the row is the last pixel."""
    row = enlarged(torch.tensor([0.0, 299.0]).expand(1, 3, 2, 2))[0, 0, 0]
    assert 0.0 == row[0].item()
    assert 2.0 == pytest.approx(row[1].item(), abs=1e-4)
    assert [299.0] == row[150:].unique().tolist()


def test_weights_have_the_names_of_the_published_file(network: Inception) -> None:
    """Layers are called as in weights-inception-2015-12-05: blocks, branches, conv and bn."""
    names = network.state_dict().keys()
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias"} <= (
        set(names)
    )
    parameters = sum(p.numel() for p in network.parameters())
    assert 23_850_960 == parameters


@pytest.fixture
def theirs(network: Inception, tmp_path: Path) -> Iterator[nn.Module]:
    """Load the same weights into torch-fidelity's network, without its need of torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps torch-fidelity")
    package = ModuleType("torch_fidelity")  # whose own __init__ would import torchvision
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["torch_fidelity"] = package
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        path = tmp_path / "weights.pth"
        torch.save(network.state_dict(), path)
        names = ["2048", "logits_unbiased"]
        yield module.FeatureExtractorInceptionV3("test", names, str(path))
    finally:
        for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
            del sys.modules[name]


def test_network_is_torch_fidelitys(network: Inception, theirs: nn.Module, images: Tensor) -> None:
    """Features, spatial features and logits are bitwise those of torch-fidelity's own code."""
    spatial: list[Tensor] = []
    branch = theirs.get_submodule("Mixed_6d.branch1x1")
    branch.register_forward_hook(lambda *arguments: spatial.append(arguments[2]))
    pool, logits = theirs(images)
    ours = network(images)
    assert torch.equal(pool, ours.pool)
    assert torch.equal(logits, ours.logits)
    assert torch.equal(spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1), ours.spatial)
