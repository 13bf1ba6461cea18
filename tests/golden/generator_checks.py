"""Checks of `bar_tiny_*.npz`: the trunk, the head, its loss, one token, whole generations."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.generate import draw_bits
from model.generator import Generator
from model.masked_bit_head import MaskedBitHead
from model.published import GENERATOR_NAMES, generator_config
from model.sampling import unmasking
from model.token_grid import cells_to_tokens, to_generation_order
from tests.golden.check import Check, close, equal
from tests.golden.weights import load_golden_weights

FIRST_CLASS_ROW = 3
NOISY_GUIDANCE_SCALE = 4.0  # of the one generation whose noise is given


class GoldenGenerator:
    """A golden file's generator, with its arrays as tensors."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        self.config = generator_config(json.loads(str(arrays.pop("config"))))
        self.arrays = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
        self.generator = Generator(self.config)
        load_golden_weights(self.generator, GENERATOR_NAMES)

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @property
    def schedule(self) -> tuple[int, ...]:
        return tuple(self["tokens_allocation"].tolist())

    @property
    def raster(self) -> Tensor:
        return torch.arange(self.config.num_tokens).expand(len(self["class_ids"]), -1)

    def uniforms(self, prefix: str) -> Tensor:
        """Stack a sampler's stored draws into (…, R, k, 3); the last round has no third draw."""
        rounds = []
        for r in range(len(self.schedule)):
            values = self[f"{prefix}_uniform_{2 * r}"]  # (…, k, 2)
            confidence = self.arrays.get(f"{prefix}_uniform_{2 * r + 1}", values[..., 0])
            rounds.append(torch.cat([values, confidence[..., None]], dim=-1))
        return torch.stack(rounds, dim=-3)


@torch.no_grad()
def generator_checks(path: Path) -> Iterator[Check]:
    """Yield every check of one `bar_tiny_*.npz`."""
    golden = GoldenGenerator(path)
    yield from _trunk_checks(golden)
    yield from _head_checks(golden)
    yield from _generation_checks(golden)


def _trunk_checks(golden: GoldenGenerator) -> Iterator[Check]:
    tokens = cells_to_tokens(golden["token_bits"], golden.config.patch_size)
    class_ids = golden["condition_ids_last_is_unconditional"] - FIRST_CLASS_ROW
    for name, order in (("raster", golden.raster), ("random", golden["random_orders"])):
        bits = to_generation_order(tokens, order)
        yield equal(f"target_bits_{name}", bits, golden[f"target_bits_{name}"])
        latents = golden.generator.trunk(bits, class_ids, order)
        yield close(f"latents_{name}", latents, golden[f"latents_{name}"])


def _head_checks(golden: GoldenGenerator) -> Iterator[Check]:
    head, latents = golden.generator.head, golden["latents_raster"].flatten(0, 1)
    assert isinstance(head, MaskedBitHead)
    ratio = golden["head_mask_ratio"]
    logits = head(golden["head_input_bits"], latents, ratio)
    yield close("head_logits", logits, golden["head_logits"])
    targets = golden["target_bits_raster"].flatten(0, 1)
    loss = head.loss(targets, latents, golden["head_mask"], ratio)
    yield close("head_loss", loss, golden["head_loss"])
    for name, scale in (("nocfg", 1.0), ("cfg", float(golden["sample_cfg_guidance_scale"]))):
        expected, stored = golden[f"sample_{name}_bits"], golden[f"sample_{name}_latents"]
        batch = len(expected)
        bits = head.sample(
            stored[:batch],
            stored[-batch:],
            torch.full((batch,), scale),
            golden["sample_temperature"].expand(batch),
            unmasking([golden.schedule] * batch),
            golden.uniforms(f"sample_{name}"),
        )
        yield equal(f"sample_{name}_bits", bits, expected)


def _generation_checks(golden: GoldenGenerator) -> Iterator[Check]:
    batch = len(golden["class_ids"])
    schedule = unmasking([golden.schedule] * batch)
    silent = torch.zeros(batch, schedule.max_rounds, golden.config.bits_per_token, 3)
    noisy = golden.uniforms("noisy")
    for name, scale, temperature, order in _generations(golden):
        bits = draw_bits(
            golden.generator,
            class_ids=golden["class_ids"],
            order=order,
            guidance_scale=torch.full((batch,), scale),
            temperature=torch.full((batch,), temperature),
            schedule=schedule,
            noise=noisy.__getitem__ if name == "noisy" else lambda _: silent,
        )
        yield equal(f"{name}_bits", bits, golden[f"{name}_bits"])


def _generations(golden: GoldenGenerator) -> Iterator[tuple[str, float, float, Tensor]]:
    """Yield name, guidance scale, temperature and order of every stored generation."""
    for name in golden.arrays:
        if match := re.fullmatch(r"(generate_g([\d.]+)(_randomorder)?)_bits", name):
            order = golden["random_orders"] if match[3] else golden.raster
            yield match[1], float(match[2]), 0.0, order
    yield "noisy", NOISY_GUIDANCE_SCALE, float(golden["noisy_temperature"]), golden.raster
