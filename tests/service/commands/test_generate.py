"""Facts of `bar generate`: the server's bytes, without a server."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import ImageRequest
from model.zoo import resolve
from service.commands.generate import main
from service.engine_loader import load_engine
from service.errors import BarError, InvalidRequest
from service.images import encode
from service.provenance import Provenance
from service.settings import Settings


def expected(directory: Path, class_id: int, seed: int) -> bytes:
    """Return the PNG that the image of an engine of the default settings becomes."""
    info = resolve(directory)
    request = ImageRequest(class_id=class_id, seed=seed, sampling=info.sampling)
    engine = load_engine(info, Settings.load({"threads": 1}, {}))
    slot = engine.admit(request)
    while not engine.step():
        pass
    (pixels,) = engine.decode([slot])
    return encode(pixels, "png", Provenance.of(info, request).texts())


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the other cores to the other tests."""
    monkeypatch.setenv("BAR_THREADS", "1")


def test_one_image_goes_into_its_file(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds the asked image, and the output says what was made."""
    output = tmp_path / "cat.png"
    arguments = ["--model", str(tiny_model_dir), "--class", "cat", "--seed", "5"]
    assert 0 == main([*arguments, "--output", str(output)])
    assert expected(tiny_model_dir, 2, 5) == output.read_bytes()
    assert f"wrote {output}\ntiny: class 2 cat, seed 5\n" == capsys.readouterr().out


def test_several_images_go_into_one_sheet(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Four images make a two by two sheet whose parts are the single images."""
    output = tmp_path / "out.png"
    arguments = ["--model", str(tiny_model_dir), "--class", "1", "--seed", "3"]
    assert 0 == main([*arguments, "--num-images", "4", "--output", str(output)])
    sheet = Image.open(output)
    assert "3, 4, 5, 6" == sheet.info["bar:seed"]
    last = Image.open(io.BytesIO(expected(tiny_model_dir, 1, 6)))
    assert np.array_equal(np.asarray(last), np.asarray(sheet)[10:, 10:])


def test_a_placeholder_in_the_name_gives_each_image_its_file(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """{seed} and {index} are filled in."""
    arguments = ["--model", str(tiny_model_dir), "--class", "1", "--seed", "8", "--num-images", "2"]
    assert 0 == main([*arguments, "--output", str(tmp_path / "{index}-{seed}.png")])
    assert ["0-8.png", "1-9.png"] == sorted(path.name for path in tmp_path.iterdir())
    assert expected(tiny_model_dir, 1, 9) == (tmp_path / "1-9.png").read_bytes()


def test_an_unknown_placeholder_is_refused(tmp_path: Path) -> None:
    """A typing error makes no oddly named file; the message says what a name may hold."""
    output = tmp_path / "{sed}.png"
    with pytest.raises(BarError, match=r"\{sed\} stands for nothing.*\{seed\} and \{index\}"):
        main(["--class", "1", "--output", str(output)])
    assert [] == list(tmp_path.iterdir())


def test_sampling_settings_are_used(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Each of the sampling flags changes the image."""
    digests = set()
    for flags in (
        [],
        ["--guidance-scale", "9"],
        ["--temperature", "0"],
        ["--unmask-schedule", "16"],
        ["--order", "random"],
    ):
        output = tmp_path / "out.png"
        main(["--model", str(tiny_model_dir), "--class", "1", "--seed", "3", *flags,
              "--output", str(output)])  # fmt: skip
        digests.add(hashlib.sha256(np.asarray(Image.open(output)).tobytes()).hexdigest())
    assert 5 == len(digests)


@pytest.mark.parametrize(("flags", "message"), [
    (["--class", "unicorn"], "no class has this name"),
    (["--class", "9"], "class index must be from 0 to 4, got 9"),
    (["--class", "1", "--seed", "-1"], "seed should be greater than or equal to 0, got -1"),
    (["--class", "1", "--guidance-scale", "nan"], "guidance_scale should be a finite number"),
    (["--class", "1", "--unmask-schedule", "4,4"], "sums to 8, but this model has 16"),
    (["--class", "1", "--num-images", "0"], "--max-images: .*got 0"),
])  # fmt: skip
def test_requests_are_checked_as_the_server_checks_them(
    tiny_model_dir: Path, flags: list[str], message: str
) -> None:
    """The command line and the HTTP interface have the same rules and messages."""
    with pytest.raises(BarError, match=message):
        main(["--model", str(tiny_model_dir), *flags])


def test_a_file_that_cannot_be_written_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A missing folder is an error of one line."""
    output = tmp_path / "missing" / "out.png"
    with pytest.raises(BarError, match=r"cannot write .*missing.*No such file"):
        main(["--model", str(tiny_model_dir), "--class", "1", "--output", str(output)])
    assert not issubclass(BarError, InvalidRequest)
