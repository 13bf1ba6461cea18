"""Facts of the choice of a precision."""

import pytest
import torch

from model import precision
from model.fp8 import Fp8Linear
from model.packed_linear import PackedLinear
from model.precision import PRECISIONS, SMALL_MODEL_PARAMETERS, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("has_bfloat16", "num_parameters", "expected"),
    [
        (True, SMALL_MODEL_PARAMETERS, "bfloat16"),
        (True, SMALL_MODEL_PARAMETERS - 1, "float32"),
        (False, SMALL_MODEL_PARAMETERS, "float32"),
        (False, 10 * SMALL_MODEL_PARAMETERS, "float32"),
    ],
)
def test_auto_is_bfloat16_where_it_pays(
    has_bfloat16: bool, num_parameters: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU it takes both a processor that has it and a model large enough to gain."""
    monkeypatch.setattr(precision, "has_cpu_bfloat16", lambda: has_bfloat16)
    assert expected == choose_precision("auto", CPU, num_parameters).name


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_is_bfloat16_on_gpus_that_have_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes in bfloat16 whatever the model's size, unless it would emulate it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert expected == choose_precision("auto", GPU, 1).name


@pytest.mark.parametrize("name", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_named_precision_is_taken_at_its_word(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for by name is not second-guessed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert name == choose_precision(name, device, 1).name


def test_fp8_is_refused_where_no_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what the GPU would need, what it is, and what to take instead."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"\(9, 0\) or newer.*\(8, 0\): take bfloat16"):
        choose_precision("fp8", GPU, 1)


@pytest.mark.parametrize("name", ["", "half", "float16", "FP8"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """The message says which names there are and which one came."""
    message = f"dtype must be auto, float32, bfloat16, fp8, got {name!r}"
    with pytest.raises(ValueError, match=message):
        choose_precision(name, CPU, 1)


def test_only_fp8_is_eight_bits_wide() -> None:
    """Cache and large products are eight bits wide in fp8; everything else is its dtype."""
    expected = {
        "float32": (torch.float32, torch.float32, PackedLinear),
        "bfloat16": (torch.bfloat16, torch.bfloat16, PackedLinear),
        "fp8": (torch.bfloat16, torch.float8_e4m3fn, Fp8Linear),
    }
    assert expected == {n: (p.dtype, p.cache_dtype, p.linear) for n, p in PRECISIONS.items()}
