"""Facts of `bar reproduce`: the same pixels, or a number of those that are not."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.zoo import resolve
from service.commands.generate import main as generate
from service.commands.reproduce import main
from service.images import encode
from service.reproduction import Original
from tests.service.png_parts import with_text


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the other cores to the other tests."""
    monkeypatch.setenv("BAR_THREADS", "1")


@pytest.fixture
def cat(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A PNG of settings that are not the model's defaults."""
    path = tmp_path / "cat.png"
    generate(["--model", str(tiny_model_dir), "--class", "cat", "--seed", "5", "--order", "random",
              "--guidance-scale", "7", "--temperature", "0.3", "--unmask-schedule", "8,8",
              "--output", str(path)])  # fmt: skip
    return path


def change_pixels(path: Path, tiny_model_dir: Path) -> None:
    """Overwrite three pixels of an image, its texts as they were."""
    original = Original.read(path.read_bytes())
    pixels = original.pixels_of(resolve(tiny_model_dir)).copy()
    pixels[0, :3] ^= 0x10
    path.write_bytes(encode(pixels, "png", original.record.texts()))


def test_the_same_image_comes_out(
    cat: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0, every pixel matches, and the new file has the bytes of the old one."""
    output = tmp_path / "again.png"
    assert 0 == main([str(cat), "--model", str(tiny_model_dir), "--output", str(output)])
    assert cat.read_bytes() == output.read_bytes()
    assert "class 2 cat, seed 5" in (said := capsys.readouterr().out)
    assert "every pixel matches, all 64 of them" in said


def test_a_changed_image_differs(
    cat: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, the number of pixels that differ, and by how much at most."""
    change_pixels(cat, tiny_model_dir)
    assert 1 == main([str(cat), "--model", str(tiny_model_dir)])
    assert "3 of 64 pixels differ, by at most 16 of 255" in capsys.readouterr().out


def test_json_is_one_object(
    cat: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json the output holds an object and nothing else, files written or not."""
    change_pixels(cat, tiny_model_dir)
    capsys.readouterr()
    arguments = [str(cat), "--model", str(tiny_model_dir), "--output", str(tmp_path / "again.png")]
    assert 1 == main([*arguments, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert {
        "file": str(cat),
        "matched": False,
        "num_pixels": 64,
        "differing_pixels": 3,
        "largest_difference": 16,
        "model": "tiny",
        "revision": resolve(tiny_model_dir).revision,
        "class_id": 2,
        "class_name": "cat",
        "seeds": [5],
        "guidance_scale": 7.0,
        "temperature": 0.3,
        "unmask_schedule": [8, 8],
        "order": "random",
    } == {name: value for name, value in values.items() if name != "version"}


def test_a_contact_sheet_is_made_again(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever PNG `bar generate` writes, `bar reproduce` reads."""
    sheet = tmp_path / "sheet.png"
    model = ["--model", str(tiny_model_dir)]
    generate([*model, "--class", "1", "--seed", "3", "--num-images", "3", "--output", str(sheet)])
    assert 0 == main([*model, str(sheet)])
    assert "seeds 3 to 5" in capsys.readouterr().out


def test_a_file_from_a_lossless_optimiser_matches(cat: Path, tiny_model_dir: Path) -> None:
    """Better compression changes the file and no pixel."""
    before = cat.read_bytes()
    chunks = PngInfo()
    for keyword, text in Original.read(before).record.texts().items():
        chunks.add_text(keyword, text)
    with Image.open(cat) as image:
        image.save(cat, pnginfo=chunks, optimize=True)
    assert before != cat.read_bytes()
    assert 0 == main([str(cat), "--model", str(tiny_model_dir)])


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is said of arguments with which no image can be made again."""
    capsys.readouterr()
    assert 2 == main(arguments)
    out, err = capsys.readouterr()
    assert "" == out
    assert err.startswith("bar reproduce: ")
    assert 1 == err.count("\n")
    return err


def test_a_name_in_a_png_is_never_a_path(
    cat: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is looked up by name among the known ones; a folder has to be given."""
    cat.write_bytes(with_text(cat.read_bytes(), "bar:model", str(tiny_model_dir)))
    assert "give its folder as --model" in refusal([str(cat)], capsys)
    assert 0 == main([str(cat), "--model", str(tiny_model_dir)])


def test_another_model_is_refused(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that did not make the image is recognised by its revision."""
    assert "and here is revision" in refusal([str(cat), "--model", "digits"], capsys)


def test_what_cannot_be_read_is_said(
    cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, a file of something else and a file that is too large: status 2 and one line."""
    assert "No such file" in refusal([str(tmp_path / "none.png")], capsys)
    (tmp_path / "text.png").write_text("text")
    assert "not a PNG file" in refusal([str(tmp_path / "text.png")], capsys)
    cat.write_bytes(bytes(1025))
    assert "more than 1024 bytes" in refusal([str(cat), "--max-reproduce-bytes", "1024"], capsys)


def test_an_output_that_cannot_be_written_is_named(
    cat: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing folder is an error of one line."""
    output = tmp_path / "missing" / "out.png"
    arguments = [str(cat), "--model", str(tiny_model_dir), "--output", str(output)]
    assert f"cannot write {output}: No such file" in refusal(arguments, capsys)
