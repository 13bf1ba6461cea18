"""What the tokenizer's stage measures."""

import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny_runs import tokenizer_stage
from training.pixel_data import HeldPixels
from training.tokenizer_stage import bit_entropies, psnr


@pytest.mark.parametrize(("count", "shape"), [(7, (1, 7)), (13, (1, 10)), (36, (2, 10))])
def test_pictures_are_shown_in_full_rows(
    tmp_path: Path, count: int, shape: tuple[int, int]
) -> None:
    """Each row of held-out pictures has the row of its reconstructions right beneath, however many
    pictures there are."""
    stage = tokenizer_stage()
    stage.held_out = HeldPixels(torch.zeros(count, 3, 8, 8))
    stage.draw(stage.model.eval(), tmp_path / "sheet.png")
    rows, columns = shape
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (columns * 66 + 2, 22 + 2 * rows * 66 + 2) == sheet.size


def test_entropy_of_each_bit() -> None:
    """A bit that never changes has entropy 0, one that is even 1, whatever the others do."""
    bits = torch.zeros(2, 4, 3, dtype=torch.uint8)
    bits[0, :, 1] = 1
    bits[:, 0, 2] = 1
    assert [0.0, 1.0, 0.8113] == pytest.approx(bit_entropies(bits).tolist(), abs=1e-4)


def test_psnr_is_of_the_range_minus_one_to_one() -> None:
    """The peak is 2: an error of 2 everywhere is 0 dB, a hundredth of its square 20 dB."""
    assert 0.0 == psnr(4.0)
    assert 20.0 == pytest.approx(psnr(0.04))
    assert math.inf == psnr(0.0)


def test_dead_bits_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Held-out metrics say how many bits hardly change, and a warning says it aloud."""
    stage = tokenizer_stage()
    alive = stage.validate(stage.model.eval())
    assert [] == caplog.messages
    torch.nn.init.constant_(stage.model.quantizer.in_proj.bias, 50.0)
    with caplog.at_level(logging.WARNING):
        dead = stage.validate(stage.model)
    assert {"l2", "psnr", "min_bit_entropy", "dead_bits"} == alive.keys()
    assert (0, 4) == (alive["dead_bits"], dead["dead_bits"])
    assert caplog.messages[0].startswith("4 of 4 bits")
