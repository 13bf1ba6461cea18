"""Presets and model directories: what is found, what is described, what is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import zoo
from model.checkpoint import save_model
from model.class_labels import ClassLabels
from model.config import PRESETS, SamplingConfig
from model.errors import CheckpointError, ModelNotFoundError
from tests.model.tiny import NUM_CLASSES, tiny_generator, tiny_tokenizer

SAMPLING = SamplingConfig(guidance_scale=3.0, temperature=1.0, unmask_schedule=(2, 2))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Save a tiny model and return its directory."""
    directory = tmp_path / "tiny"
    save_model(
        directory,
        tiny_generator(dtype=torch.float32),
        tiny_tokenizer(dtype=torch.float32),
        SAMPLING,
        ClassLabels.from_names([f"class {index}" for index in range(NUM_CLASSES)]),
    )
    return directory


def _edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / zoo.CONFIG_FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_the_models_are_the_presets() -> None:
    """The bundled model comes first, then the five published ones."""
    assert zoo.model_names() == [
        "digits",
        "bar-b-patch4",
        "bar-b-patch2",
        "bar-b",
        "bar-l",
        "bar-l-res512",
    ]


def test_a_published_model_is_described_before_it_is_here(tmp_path: Path) -> None:
    """Sizes, defaults and class names need no download; directory and revision are empty."""
    info = zoo.resolve("bar-l-res512", cache_dir=tmp_path)
    assert info.generator == PRESETS["bar-l-res512"].generator
    assert info.sampling.unmask_schedule == (2, 2, 2, 4)
    assert info.class_labels[207].name == "golden retriever"
    assert (info.directory, info.revision, info.has_encoder) == (None, "", False)
    assert not list(tmp_path.iterdir())


def test_offline_a_model_that_is_not_here_is_refused(tmp_path: Path) -> None:
    """Where downloading is switched off, the error comes before anything is tried."""
    with pytest.raises(ModelNotFoundError, match="bar-b at revision 'v2' is not on this machine"):
        zoo.resolve("bar-b", revision="v2", cache_dir=tmp_path, offline=True)


def test_the_bundled_model_lies_beside_the_code(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset without hub files is read from the package, even offline."""
    directory.rename(directory.with_name("digits"))
    monkeypatch.setattr(zoo, "BUNDLED_DIR", directory.parent)
    info = zoo.resolve("digits", offline=True)
    assert info.directory == directory.with_name("digits")


def test_a_directory_is_resolved_as_text_or_path(directory: Path) -> None:
    """What is no preset's name is a path."""
    assert zoo.resolve(directory) == zoo.resolve(str(directory))
    assert zoo.resolve(directory).directory == directory


def test_an_unknown_name_is_refused_with_the_names(tmp_path: Path) -> None:
    """A slip suggests what was meant; every error lists what there is."""
    with pytest.raises(ModelNotFoundError, match=r"no directory 'bar-2'; .*Models: digits, bar-b"):
        zoo.resolve("bar-2")
    with pytest.raises(ModelNotFoundError, match=r"did you mean bar-l-res512\? Models"):
        zoo.resolve("bar-l-res51")
    with pytest.raises(ModelNotFoundError, match=r"is no model directory: no config\.json"):
        zoo.resolve(tmp_path)


def test_only_published_models_have_revisions(directory: Path) -> None:
    """A revision of a directory or of the bundled model is refused, not ignored."""
    for name in ("digits", str(directory)):
        with pytest.raises(ModelNotFoundError, match=r"no revisions to choose from.* got 'main'"):
            zoo.resolve(name, revision="main")


def _remove(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(key)


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", to="bar-serve 9"), "has format 'bar-serve 9', and this version reads"),
        (_remove("sampling"), "lacks sampling"),
        (_set("files", to=[]), "is malformed: files must be an object"),
        (_set("files", "../x", to={}), "is malformed: unknown files ['../x']"),
        (_set("files", "tokenizer.safetensors", to=3), "is malformed"),
        (_set("generator", "wings", to=2), "is malformed: GeneratorConfig: unknown keys ['wings']"),
        (_set("generator", "width", to="32"), "is malformed: width must be a positive integer"),
        (_set("tokenizer", "bits_per_latent", to=5), "generator has bits_per_latent 4, but its"),
        (_set("sampling", "unmask_schedule", to=[3]), "sums to 3"),
        (_set("class_labels", to=[{"names": ["a"]}]), "1 class labels for 5 classes"),
        (_set("class_labels", to=7), "class labels must be a list, got int"),
        (_set("generator", "num_heads", to=4), "was changed by hand: it says revision"),
        (_set("revision", to="0123456789ab"), "it says revision '0123456789ab', but its"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_description_is_refused(
    directory: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Each kind of damage to config.json is named, with the file."""
    _edit(directory, change)
    with pytest.raises(CheckpointError, match=re.escape(message)) as refused:
        zoo.resolve(directory)
    assert str(directory / zoo.CONFIG_FILE) in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00\xff"], ids=repr)
def test_a_description_that_is_no_json_object_is_refused(directory: Path, text: str) -> None:
    """Truncated or foreign files are reported as such."""
    (directory / zoo.CONFIG_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        zoo.resolve(directory)


def test_defaults_and_names_may_be_edited(directory: Path) -> None:
    """Sampling defaults and class names are the owner's: they do not change the revision."""
    before = zoo.resolve(directory)
    _edit(directory, _set("sampling", "temperature", to=0.5))
    _edit(directory, _set("class_labels", to=[{"names": [name]} for name in "abcde"]))
    after = zoo.resolve(directory)
    assert after.sampling.temperature == 0.5
    assert after.class_labels[4].name == "e"
    assert after.revision == before.revision


@pytest.mark.parametrize("file", [zoo.GENERATOR_FILE, zoo.TOKENIZER_FILE, zoo.ENCODER_FILE])
def test_a_file_of_another_size_is_noticed_at_once(directory: Path, file: str) -> None:
    """Truncation is seen without reading the weights."""
    path = directory / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{re.escape(file)} has \d+ bytes, and should have"):
        zoo.resolve(directory)


def test_a_missing_file_is_noticed_at_once(directory: Path) -> None:
    """Weights that are listed must be there."""
    (directory / zoo.GENERATOR_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"generator\.safetensors is missing"):
        zoo.resolve(directory)


def test_verifying_finds_one_changed_bit(directory: Path) -> None:
    """Checksums are compared on request; a serving copy without encoder verifies as well."""
    info = zoo.resolve(directory)
    zoo.verify(info)
    (directory / zoo.ENCODER_FILE).unlink()
    zoo.verify(info)
    path = directory / zoo.TOKENIZER_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert zoo.resolve(directory) == info
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors is damaged: its SHA-256 is"):
        zoo.verify(info)
    with pytest.raises(ModelNotFoundError, match="bar-b is not on this machine"):
        zoo.verify(zoo.describe("bar-b"))


def test_describing_models_needs_no_torch() -> None:
    """The API can import the zoo and describe every published preset without torch."""
    script = (
        "import sys\n"
        "from model import zoo\n"
        "for name in zoo.model_names()[1:]: zoo.resolve(name)\n"
        "print(sorted({'torch', 'safetensors', 'transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50
    )
    assert finished.stdout.strip() == "[]"
