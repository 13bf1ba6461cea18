"""What an engine's tensors take, counted on the engine itself: built on torch's `meta` device.

Tensors there have shapes and types, and no memory: so the largest model is counted in a second on a
laptop, and the count follows the code.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.config import PRESETS, Preset
from model.engine import Engine
from model.generator import Generator
from model.precision import choose_precision
from model.tokenizer import Tokenizer
from service.engine_loader import GPU_SLOTS
from tests.scaling.costs import MEASURED

META = torch.device("meta")
GB = 1e9
CARDS_GB = (16, 24, 48, 80)
# Not counted, and not measured yet: the CUDA context, libraries, what a decoder's batch and the
# captured graphs pass around.
SPARE_GB = 2.0
MANY_SLOTS = 512  # more add nothing
PREFIX_SHARE = 1 / 14  # of a GPU's memory: model/engine.py


@dataclass(frozen=True)
class Footprint:
    """Bytes of one model's engine in bfloat16."""

    fixed: int  # weights and tables
    slot: int  # each slot
    loading: int  # more while the weights are there in float32 as well

    def total_gb(self, num_slots: int) -> float:
        return (self.fixed + num_slots * self.slot) / GB + SPARE_GB

    def num_slots(self, card_gb: float) -> int:
        """Return how many slots a card holds; 0 where it cannot even load the weights."""
        if (self.fixed + self.loading) / GB + SPARE_GB > card_gb:
            return 0
        room = card_gb * (1 - PREFIX_SHARE) - SPARE_GB - self.fixed / GB
        return max(0, int(room * GB / self.slot))


def footprint(preset: Preset) -> Footprint:
    """Count the engine of a preset."""
    with META:
        generator = Generator(preset.generator)
        tokenizer = Tokenizer(preset.tokenizer, with_encoder=False)
    one, two = (
        num_bytes(
            Engine(
                generator,
                tokenizer,
                num_slots=count,
                precision=choose_precision("bfloat16", META, 10**9),
            )
        )
        for count in (1, 2)
    )
    return Footprint(
        fixed=2 * one - two, slot=two - one, loading=weights(generator) + weights(tokenizer)
    )


def weights(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def num_bytes(root: object) -> int:
    """Return the bytes of all tensors that `root` holds, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(root)}
    return sum(storages.values())


def tensors(root: object) -> Iterator[Tensor]:
    """Yield the tensors that objects of model/ hold, however deep, and those in containers."""
    seen: set[int] = set()
    pending: list[Any] = [root]
    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, dict):
            pending += thing.values()
        elif isinstance(thing, list | tuple | set):
            pending += thing
        elif type(thing).__module__.startswith("model."):
            pending += vars(thing).values()


def _slots(count: int) -> str:
    if count > MANY_SLOTS:
        return f"> {MANY_SLOTS}"
    return str(count) if count else "none"


def memory_table() -> str:
    """Return the table of GPU memory, one row for each published model."""
    cards = " | ".join(f"slots in {card} GB" for card in CARDS_GB)
    heading = f"model | weights and tables | each slot | with {GPU_SLOTS} slots | while loading"
    rows = [
        f"| {heading} | {cards} |",
        "|---" * (5 + len(CARDS_GB)) + "|",
    ]
    for name, preset in PRESETS.items():
        if preset.generator_file is None:
            continue
        found = footprint(preset)
        slots = " | ".join(_slots(found.num_slots(card)) for card in CARDS_GB)
        rows.append(
            f"| {name} | {found.fixed / GB:.1f} GB | {found.slot / 1e6:.0f} MB "
            f"| {found.total_gb(GPU_SLOTS):.1f} GB "
            f"| {(found.fixed + found.loading) / GB + SPARE_GB:.1f} GB | {slots} |"
        )
    return "\n".join(rows)


def redis_table() -> str:
    """Return the table of what jobs and results take of the queue's server, as measured."""
    measured = json.loads(MEASURED.read_text("utf-8"))
    rows = [f"| what ({measured['server']}) | bytes |", "|---|---|"]
    rows += [f"| {name} | {size:,} |" for name, size in measured["bytes"].items()]
    return "\n".join(rows)
