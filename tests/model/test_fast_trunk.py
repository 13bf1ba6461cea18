"""Facts of the fast trunk: the latents of the plain one, token by token."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model.config import GeneratorConfig
from model.fast_trunk import FastTrunk
from model.fp8 import FP8, saturate
from model.kv_cache import KVCache
from model.transformer import Transformer
from tests.model.tiny import NUM_CLASSES, tiny_config, tiny_generator

CPU = torch.device("cpu")
NUM_SLOTS = 4


class TeacherForced:
    """Random images in random orders, and the plain trunk's latents of every token of theirs."""

    def __init__(self, trunk: Transformer, num_images: int = NUM_SLOTS) -> None:
        self.trunk, self.config = trunk, trunk.config
        rng = torch.Generator().manual_seed(5)
        shape = num_images, self.config.num_tokens, self.config.bits_per_token
        self.bits = torch.randint(0, 2, shape, generator=rng)
        self.class_ids = torch.randint(0, NUM_CLASSES, (num_images,), generator=rng)
        orders = [torch.randperm(self.config.num_tokens, generator=rng) for _ in range(num_images)]
        self.order = torch.stack(orders)
        null = torch.full_like(self.class_ids, self.config.null_class)
        with torch.no_grad():
            self.latents = torch.stack(
                [trunk(self.bits, classes, self.order) for classes in (self.class_ids, null)]
            )  # (2, B, S, W)


class Cached:
    """A fast trunk and a cache in which slot n holds image n's prefixes."""

    def __init__(self, images: TeacherForced, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
        self.images, self.dtype = images, dtype
        self.trunk = FastTrunk(images.trunk, dtype)
        self.cache = KVCache(images.config, 2 * NUM_SLOTS, CPU, cache_dtype)
        for slot, (class_id, order) in enumerate(zip(images.class_ids, images.order, strict=True)):
            for branch, row_class in enumerate((int(class_id), images.config.null_class)):
                prefix, row = self.trunk.prefill(row_class, int(order[0])), 2 * slot + branch
                length = images.config.prefix_len
                self.cache.keys[:, row, :, :length] = saturate(prefix.keys, cache_dtype)
                self.cache.values[:, row, :, :length] = saturate(prefix.values, cache_dtype)

    def read(self, slots: slice, token_index: Sequence[int], branches: int) -> Tensor:
        """Append those tokens of `slots` and return the latents (branches, N, W)."""
        images, index = self.images, torch.tensor(token_index)
        rows = torch.arange(NUM_SLOTS)[slots]
        classes = (images.class_ids[rows], torch.full_like(rows, images.config.null_class))
        sequence = images.config.prefix_len + index
        modulations = [self.trunk.modulations(part, sequence) for part in classes[:branches]]
        return self.trunk.decode_step(
            images.bits[rows, index],
            index,
            images.order[rows],
            torch.stack(modulations),
            self.cache,
            slots,
        )


def teacher_forced(
    config: GeneratorConfig | None = None, dtype: torch.dtype = torch.float64
) -> TeacherForced:
    """Build images of the tiny trunk."""
    return TeacherForced(tiny_generator(config or tiny_config(), dtype).trunk)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("num_heads", [2, 4])
@pytest.mark.parametrize("class_repeat", [1, 3])
@torch.no_grad()
def test_prefixes_are_the_plain_trunks(patch_size: int, num_heads: int, class_repeat: int) -> None:
    """Latent, keys and values of every class and several first cells agree to 1e-10."""
    config = tiny_config(patch_size, class_repeat, num_heads)
    trunk = tiny_generator(config).trunk
    fast = FastTrunk(trunk, torch.float64)
    for class_id in range(NUM_CLASSES + 1):
        for first_cell in (0, config.num_tokens - 1):
            cache = KVCache(config, 1, CPU, torch.float64)
            order = torch.arange(config.num_tokens).roll(-first_cell)[None]
            row = torch.tensor([0])
            latent = trunk.prefill(torch.tensor([class_id]), order, cache, row)[0]
            prefix = fast.prefill(class_id, first_cell)
            assert (latent - prefix.latent).abs().max() < 1e-10
            length = config.prefix_len
            assert (cache.keys[:, 0, :, :length] - prefix.keys).abs().max() < 1e-10
            assert (cache.values[:, 0, :, :length] - prefix.values).abs().max() < 1e-10


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("num_heads", [2, 4])
@torch.no_grad()
def test_tokens_give_the_plain_trunks_latents(
    patch_size: int, num_heads: int, branches: int
) -> None:
    """Token by token, in random orders, with both branches and with one, to 1e-10."""
    images = teacher_forced(tiny_config(patch_size, num_heads=num_heads))
    cached = Cached(images, torch.float64, torch.float64)
    for j in range(images.config.num_tokens - 1):
        latents = cached.read(slice(0, NUM_SLOTS), [j] * NUM_SLOTS, branches)
        assert (branches, NUM_SLOTS, 32) == latents.shape
        assert (images.latents[:branches, :, j + 1] - latents).abs().max() < 1e-10


@pytest.mark.parametrize("slots", [slice(0, 2), slice(1, 4), slice(3, 4)], ids=str)
@pytest.mark.parametrize("branches", [1, 2])
@torch.no_grad()
def test_slots_stand_at_positions_of_their_own(slots: slice, branches: int) -> None:
    """Some of the slots, each further along than the one before, and no other row is touched."""
    images = teacher_forced()
    cached = Cached(images, torch.float64, torch.float64)
    keys, values = cached.cache.keys.clone(), cached.cache.values.clone()
    count, last = slots.stop - slots.start, images.config.num_tokens - 2
    for step in range(last + 3 * count):
        # Late ones wait at their first token and early ones at their last, which changes nothing.
        index = [min(max(step - 3 * n, 0), last) for n in range(count)]
        latents = cached.read(slots, index, branches)
        for n, j in enumerate(index):
            expected = images.latents[:branches, slots.start + n, j + 1]
            assert (expected - latents[:, n]).abs().max() < 1e-10
    untouched = [row for row in range(2 * NUM_SLOTS) if not slots.start <= row // 2 < slots.stop]
    if branches == 1:
        untouched += [2 * slot + 1 for slot in range(slots.start, slots.stop)]
    assert torch.equal(keys[:, untouched], cached.cache.keys[:, untouched])
    assert torch.equal(values[:, untouched], cached.cache.values[:, untouched])


@torch.no_grad()
def test_a_row_does_not_see_its_neighbours() -> None:
    """Whatever the other slots hold, a slot's latents are the same, bit for bit, in float32."""
    images = teacher_forced(dtype=torch.float32)
    quiet, busy = (Cached(images, torch.float32, torch.float32) for _ in range(2))
    rng = torch.Generator().manual_seed(1)
    busy.cache.keys[:, 2:].normal_(generator=rng)
    busy.cache.values[:, 2:].normal_(generator=rng)
    for j in range(images.config.num_tokens - 1):
        latents = [part.read(slice(0, NUM_SLOTS), [j] * NUM_SLOTS, 2) for part in (quiet, busy)]
        assert torch.equal(latents[0][:, 0], latents[1][:, 0])
        assert not torch.equal(latents[0][:, 1], latents[1][:, 1])


@pytest.mark.parametrize("class_id", [0, NUM_CLASSES])
@torch.no_grad()
def test_tables_of_modulations_are_those_of_each_position(class_id: int) -> None:
    """A class's table, and that of "no class", hold what one position at a time gives."""
    config = tiny_config()
    fast = FastTrunk(tiny_generator(config).trunk, torch.float64)
    table = fast.sequence_modulations(class_id)
    assert (config.num_tokens - 1, config.depth, 6 * config.width) == table.shape
    for j in range(config.num_tokens - 1):
        sequence = torch.tensor([config.prefix_len + j])
        alone = fast.modulations(torch.tensor([class_id]), sequence)
        assert (table[j] - alone[0]).abs().max() < 1e-12
    assert (class_id == config.null_class) == torch.equal(table, fast.null_modulations)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "error"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 0.05),
        (torch.bfloat16, FP8, 0.15),
    ],
    ids=["float32", "bfloat16", "fp8"],
)
@torch.no_grad()
def test_narrow_dtypes_are_close(
    dtype: torch.dtype, cache_dtype: torch.dtype, error: float
) -> None:
    """The root mean square error of all latents, relative to the latents, is within bounds."""
    images = teacher_forced(dtype=torch.float32)
    cached = Cached(images, dtype, cache_dtype)
    squares = []
    for j in range(images.config.num_tokens - 1):
        latents = cached.read(slice(0, NUM_SLOTS), [j] * NUM_SLOTS, 2)
        assert dtype == latents.dtype
        squares.append((images.latents[:, :, j + 1] - latents.float()).square().mean())
    relative = (torch.stack(squares).mean() / images.latents.square().mean()).sqrt()
    assert 0 < relative < error
