"""Blocks through torch.compile."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from tests.training.pictures_on_disk import picture_folder
from tests.training.test_processes import together
from tests.training.test_trainer import final_state
from tests.training.tiny_runs import generator_stage, make_trainer, tokenizer_stage, trainer_config
from training.commands import train
from training.compilation import check_compiler, compile_blocks
from training.errors import TrainingError

# What torch's own compiler uses of torch, and keeps to itself outside pytest.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture
def compiler() -> None:
    """Skip where nothing can be compiled."""
    try:
        check_compiler("cpu")
    except TrainingError as error:
        pytest.skip(str(error))


def test_a_run_without_a_compiler_is_told_so_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to install, and which setting does without; nothing is written."""
    without = inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(TrainingError, match=r"needs a C\+\+ compiler .* install g\+\+"):
        make_trainer(generator_stage(), tmp_path / "trainer", trainer_config().but(compile=True))
    pictures = picture_folder(tmp_path / "set", {"a": 6, "b": 6})
    command = ["tokenizer", "--preset", "digits", "--data", str(pictures), "--device", "cpu"]
    command += ["--output", str(tmp_path / "run"), "--set", "training.compile=true"]
    with without:
        assert 1 == train.main([*command, "--dry-run"])
        assert 1 == train.main(command)
    assert "set training.compile to false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "trainer").exists()


@pytest.mark.usefixtures("compiler")
def test_weights_keep_their_names() -> None:
    """A compiled model's state dict is that of the model: no `_orig_mod.` anywhere."""
    for stage in (generator_stage(), tokenizer_stage()):
        before = list(stage.model.state_dict())
        compile_blocks(stage.model, "cpu")
        assert before == list(stage.model.state_dict())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make_stage", [generator_stage, tokenizer_stage])
def test_compiled_run_learns_what_a_plain_one_does(
    tmp_path: Path, make_stage: Any, recompute: bool
) -> None:
    """Dropout included, weights differ by rounding; a checkpoint of either goes on as the other."""
    torch._dynamo.reset()
    config = trainer_config().but(recompute=recompute)
    make_trainer(make_stage(), tmp_path / "plain", config).fit()
    make_trainer(make_stage(), tmp_path / "compiled", config.but(compile=True)).fit()
    assert_close(tmp_path / "compiled", tmp_path / "plain")
    assert 12 == make_trainer(make_stage(), tmp_path / "compiled", config).step


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_compiled_blocks_on_two_processes(tmp_path: Path, sharding: str) -> None:
    """Averaged or shared, two processes with compiled blocks learn what one without does."""
    config = trainer_config().but(micro_batches=2)
    make_trainer(generator_stage(), tmp_path / "plain", config).fit()
    done = together(tmp_path / "two", compile=True, sharding=sharding)
    assert 0 == done.returncode, done.stderr
    assert_close(tmp_path / "two", tmp_path / "plain")


def assert_close(ours: Path, theirs: Path) -> None:
    """Compare the averages of two runs' last checkpoints, by name."""
    one, other = final_state(ours)["average"], final_state(theirs)["average"]
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4, msg=name)
