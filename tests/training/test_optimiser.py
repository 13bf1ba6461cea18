"""Parameter groups, as published, and the learning rate's course."""

import pytest
import torch

from model.generator import Generator
from model.published import GENERATOR_NAMES, published_name
from tests.model.tiny import tiny_config, tiny_tokenizer
from training.optimiser import OptimiserConfig, build_optimiser, parameter_groups

CONFIG = OptimiserConfig(
    learning_rate=4e-4,
    final_learning_rate=1e-5,
    warmup_steps=100,
    beta1=0.9,
    beta2=0.96,
    weight_decay=0.03,
    max_grad_norm=1.0,
)


def test_decaying_parameters_are_the_published_ones() -> None:
    """Stated by module type, the split is the one that the published code makes by substring:
    what has norm, ln, bias or embed in its lower-case name is exempt, and so are vectors."""
    generator = Generator(tiny_config())
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    decayed, exempt = parameter_groups(generator)

    def is_exempt_by_name(name: str) -> bool:
        published = published_name(name, GENERATOR_NAMES).lower()
        return any(part in published for part in ("norm", "ln", "bias", "embed", "cls_token"))

    expected = {name for name in names.values() if not is_exempt_by_name(name)}
    assert expected == {names[id(parameter)] for parameter in decayed}
    assert set(names.values()) - expected == {names[id(parameter)] for parameter in exempt}
    assert "trunk.blocks.0.attn.qkv.weight" in expected


def test_every_trainable_parameter_is_in_one_group() -> None:
    """Nothing is left out or counted twice; frozen parameters are not optimised."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.encoder is not None
    tokenizer.encoder.requires_grad_(False)
    optimised = [
        p for group in build_optimiser(tokenizer, CONFIG).param_groups for p in group["params"]
    ]
    trainable = [p for p in tokenizer.parameters() if p.requires_grad]
    assert len(optimised) == len(trainable)
    assert {id(p) for p in trainable} == {id(p) for p in optimised}


def test_groups_carry_the_decay() -> None:
    """The first group decays as configured, the second not at all."""
    decayed, exempt = build_optimiser(Generator(tiny_config()), CONFIG).param_groups
    assert (0.03, 0.0) == (decayed["weight_decay"], exempt["weight_decay"])
    assert (0.9, 0.96) == decayed["betas"]
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert torch.float32 == decayed["params"][0].dtype


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 4e-6), (49, 2e-4), (99, 4e-4), (100, 4e-4), (550, 2.05e-4), (1000, 1e-5), (2000, 1e-5)],
)
def test_learning_rate(step: int, expected: float) -> None:
    """Linear warm-up to the peak, then a half cosine to the final rate, which it keeps."""
    assert expected == pytest.approx(CONFIG.learning_rate_at(step, num_steps=1000))
