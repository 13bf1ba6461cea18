"""Model directories: what is saved is what is loaded, whole or not at all."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model import checkpoint, zoo
from model.checkpoint import check_fit, load_model, save_model
from model.class_labels import ClassLabels
from model.config import SamplingConfig
from model.errors import CheckpointError, ModelNotFoundError
from model.generator import Generator
from model.rope import rotary_table
from model.tokenizer import Tokenizer
from tests.model import tiny_published
from tests.model.tiny import NUM_CLASSES, tiny_generator, tiny_tokenizer

SAMPLING = SamplingConfig(guidance_scale=3.0, temperature=1.0, unmask_schedule=(2, 2))
LABELS = ClassLabels.from_names([f"class {index}" for index in range(NUM_CLASSES)])


@pytest.fixture
def generator() -> Generator:
    """Build a tiny generator in float32."""
    return tiny_generator(dtype=torch.float32)


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Build a tiny tokenizer in float32."""
    return tiny_tokenizer(dtype=torch.float32)


@pytest.fixture
def info(tmp_path: Path, generator: Generator, tokenizer: Tokenizer) -> zoo.ModelInfo:
    """Save both and describe the directory."""
    return save_model(tmp_path / "tiny", generator, tokenizer, SAMPLING, LABELS)


def _directory(info: zoo.ModelInfo) -> Path:
    assert info.directory is not None
    return info.directory


def _assert_same_weights(loaded: nn.Module, expected: nn.Module) -> None:
    state, other = loaded.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def test_what_is_saved_is_loaded(
    info: zoo.ModelInfo, generator: Generator, tokenizer: Tokenizer
) -> None:
    """Weights come back bit for bit, in modules that are ready to sample."""
    loaded_generator, loaded_tokenizer = load_model(info, with_encoder=True)
    _assert_same_weights(loaded_generator, generator)
    _assert_same_weights(loaded_tokenizer, tokenizer)
    assert not loaded_generator.training
    assert not loaded_tokenizer.training
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(loaded_tokenizer.encode(pixels), tokenizer.encode(pixels))


def test_weights_are_as_readable_as_their_directory(info: zoo.ModelInfo) -> None:
    """Who may list a model directory may load it: a service can run as another user."""
    directory = _directory(info)
    allowed = directory.stat().st_mode & 0o444
    assert {file.stat().st_mode & 0o444 for file in directory.iterdir()} == {allowed}


def test_the_description_survives(info: zoo.ModelInfo, generator: Generator) -> None:
    """config.json holds architecture, sampling defaults, class names and the revision."""
    again = zoo.read_directory(_directory(info))
    assert again == info
    assert (again.name, again.sampling, again.class_labels) == ("tiny", SAMPLING, LABELS)
    assert again.generator == generator.config
    assert re.fullmatch(r"[0-9a-f]{12}", again.revision)


def test_a_revision_names_the_weights(
    tmp_path: Path, info: zoo.ModelInfo, generator: Generator, tokenizer: Tokenizer
) -> None:
    """The same weights give the same revision under any name and defaults; one bit changes it."""
    hotter = SamplingConfig(guidance_scale=3.0, temperature=2.0, unmask_schedule=(2, 2))
    same = save_model(tmp_path / "same", generator, tokenizer, hotter, LABELS, name="other")
    assert (same.revision, same.name) == (info.revision, "other")
    with torch.no_grad():
        generator.trunk.cls_token[0, 0, 0] += 1e-3
    changed = save_model(tmp_path / "changed", generator, tokenizer, SAMPLING, LABELS)
    assert changed.revision != info.revision


def test_a_serving_copy_needs_no_encoder(info: zoo.ModelInfo, tokenizer: Tokenizer) -> None:
    """Without encoder.safetensors a model decodes as before, and only encoding is refused."""
    (_directory(info) / zoo.ENCODER_FILE).unlink()
    info = zoo.read_directory(_directory(info))
    _, loaded = load_model(info)
    bits = torch.randint(0, 2, (2, 16, 4))
    assert torch.equal(loaded.decode(bits), tokenizer.decode(bits))
    with pytest.raises(ModelNotFoundError, match=r"has no encoder\.safetensors.*only decodes"):
        load_model(info, with_encoder=True)


def test_a_tokenizer_without_encoder_saves_none(
    tmp_path: Path, info: zoo.ModelInfo, generator: Generator
) -> None:
    """What was loaded for decoding is saved for decoding, with the same revision."""
    _, decoding = load_model(info)
    saved = save_model(tmp_path / "decoding", generator, decoding, SAMPLING, LABELS)
    assert not saved.has_encoder
    assert saved.revision == info.revision


def test_half_precision_halves_parameters_and_spares_buffers(
    tmp_path: Path, generator: Generator, tokenizer: Tokenizer
) -> None:
    """Saved in float16, parameters are float16 and the stored frequencies float32; loading casts
    to what is asked for, and rotary tables are computed in float32 whatever that is."""
    info = save_model(
        tmp_path / "half", generator, tokenizer, SAMPLING, LABELS, dtype=torch.float16
    )
    stored = load_file(_directory(info) / zoo.GENERATOR_FILE)
    frequencies = "head.ratio_embed.frequencies"
    assert {n for n, value in stored.items() if value.dtype != torch.float16} == {frequencies}
    for dtype in (torch.float32, torch.bfloat16):
        loaded, decoder = load_model(info, dtype=dtype)
        for module in (loaded, decoder):
            assert {parameter.dtype for parameter in module.parameters()} == {dtype}
            assert {buffer.dtype for buffer in module.buffers()} <= {torch.float32}
        kept = generator.get_buffer(frequencies).float()
        assert torch.equal(loaded.get_buffer(frequencies), kept)
        cos, sin = rotary_table(generator.config)
        assert torch.equal(loaded.trunk.cos, cos)
        assert torch.equal(loaded.trunk.sin, sin)


def test_a_frozen_tower_stays_frozen(tmp_path: Path) -> None:
    """Loading keeps which parameters are trained: SigLIP2's tower is not, its copy is."""
    generator, tokenizer = tiny_published.build()
    info = save_model(
        tmp_path / "tiny",
        generator,
        tokenizer,
        tiny_published.PRESET.sampling,
        ClassLabels.imagenet(),
    )
    _, loaded = load_model(info, with_encoder=True)
    trained = {name for name, value in loaded.named_parameters() if value.requires_grad}
    expected = {name for name, value in tokenizer.named_parameters() if value.requires_grad}
    assert trained == expected
    assert not any(name.startswith("encoder.frozen.") for name in trained)


def test_a_loaded_model_does_not_follow_its_file(info: zoo.ModelInfo, generator: Generator) -> None:
    """Overwriting the file in place leaves a model that is loaded as it was."""
    loaded, _ = load_model(info)
    path = _directory(info) / zoo.GENERATOR_FILE
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 2))
    _assert_same_weights(loaded, generator)


def test_a_model_that_is_not_here_is_refused() -> None:
    """The error names the command that fetches it."""
    with pytest.raises(ModelNotFoundError, match="run `bar download bar-b`"):
        load_model(zoo.describe("bar-b"))


def test_tensors_that_do_not_fit_are_named(info: zoo.ModelInfo) -> None:
    """Missing, surplus and reshaped tensors are listed, with both shapes."""
    path = _directory(info) / zoo.GENERATOR_FILE
    state = load_file(path)
    del state["trunk.cls_token"]
    state["trunk.extra"] = torch.zeros(1)
    state["trunk.norm.weight"] = torch.zeros(31)
    save_file(state, path)
    with pytest.raises(CheckpointError) as refused:
        load_model(info)
    message = str(refused.value)
    assert message.startswith(f"{path} is not of this architecture: of ")
    assert "1 missing (trunk.cls_token)" in message
    assert "1 unexpected (trunk.extra)" in message
    assert "1 of another shape (trunk.norm.weight is [31] for [32])" in message


def test_long_lists_of_differences_are_cut() -> None:
    """Of each kind the first four are named, the rest counted."""
    expected = {f"layer{index}": (2,) for index in range(10)}
    with pytest.raises(CheckpointError, match=r"10 missing \(layer0, .*layer3, and 6 more\)$"):
        check_fit({}, expected, "a file")


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_truncated_file_is_refused(info: zoo.ModelInfo, keep: int) -> None:
    """Whatever is left of a file of weights, it is not loaded."""
    path = _directory(info) / zoo.GENERATOR_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"generator\.safetensors.*damaged or truncated"):
        load_model(info)


def test_saving_replaces_the_whole_directory(
    tmp_path: Path, info: zoo.ModelInfo, generator: Generator, tokenizer: Tokenizer
) -> None:
    """A second save leaves nothing of the first, and no drafts beside it."""
    (_directory(info) / "stale.txt").write_text("old")
    extra = {"MODEL_CARD.md": b"# tiny\n"}
    save_model(tmp_path / "tiny", generator, tokenizer, SAMPLING, LABELS, extra_files=extra)
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {
        zoo.CONFIG_FILE,
        zoo.GENERATOR_FILE,
        zoo.TOKENIZER_FILE,
        zoo.ENCODER_FILE,
        "MODEL_CARD.md",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_full_disk_leaves_the_old_model_and_nothing_else(
    tmp_path: Path,
    info: zoo.ModelInfo,
    generator: Generator,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A save that fails half way is reported, and what was there still loads."""

    def save_half(state: Mapping[str, object], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(CheckpointError, match=r"cannot write .*tiny: .*No space left"):
        save_model(tmp_path / "tiny", generator, tokenizer, SAMPLING, LABELS)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    load_model(zoo.read_directory(_directory(info)))


def test_drafts_of_killed_writers_are_removed_after_a_day(
    tmp_path: Path, generator: Generator, tokenizer: Tokenizer
) -> None:
    """An old draft beside the directory goes; a young one may be somebody's work and stays."""
    old, young = tmp_path / ".tiny.00000000", tmp_path / ".tiny.11111111"
    for draft in (old, young):
        draft.mkdir()
        (draft / "part").write_text("half")
    os.utime(old, (0, 0))
    save_model(tmp_path / "tiny", generator, tokenizer, SAMPLING, LABELS)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("name", ["config.json", "generator.safetensors", "../escape", "a/b"])
def test_extra_files_have_plain_names_of_their_own(
    tmp_path: Path, generator: Generator, tokenizer: Tokenizer, name: str
) -> None:
    """An extra file replaces nothing and leaves the directory nowhere."""
    with pytest.raises(ValueError, match="needs a plain name of its own"):
        save_model(
            tmp_path / "tiny", generator, tokenizer, SAMPLING, LABELS, extra_files={name: b""}
        )


def test_settings_that_do_not_fit_are_not_saved(
    tmp_path: Path, generator: Generator, tokenizer: Tokenizer
) -> None:
    """A wrong number of class names or of bits is refused before anything is written."""
    with pytest.raises(ValueError, match="2 class labels for 5 classes"):
        save_model(
            tmp_path / "tiny", generator, tokenizer, SAMPLING, ClassLabels.from_names(["a", "b"])
        )
    wrong = SamplingConfig(guidance_scale=1.0, temperature=1.0, unmask_schedule=(1, 2))
    with pytest.raises(ValueError, match="sums to 3"):
        save_model(tmp_path / "tiny", generator, tokenizer, wrong, LABELS)
    assert not list(tmp_path.iterdir())
