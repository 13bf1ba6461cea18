"""The trunk: its three methods agree, rows are independent, and nothing looks ahead."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import MAX_CLASS_REPEAT, GeneratorConfig
from model.kv_cache import KVCache
from model.sampling import random_order
from model.transformer import FIRST_CLASS_ROW, Transformer
from tests.model.tiny import NUM_CLASSES, fill_with_noise, tiny_config


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Allow what the order of float64 sums makes of values around 1, and no more."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def tiny_trunk(config: GeneratorConfig | None = None) -> Transformer:
    """Build a float64 trunk with random weights."""
    trunk = Transformer(config or tiny_config())
    fill_with_noise(trunk)
    return trunk.double().eval().requires_grad_(False)


class Images:
    """Random tokens of B images, one class each, in their own orders if `is_random`."""

    def __init__(self, config: GeneratorConfig, batch: int = 3, is_random: bool = True) -> None:
        rng = torch.Generator().manual_seed(3)
        num_tokens = config.num_tokens
        shape = (batch, num_tokens, config.bits_per_token)
        self.bits = torch.randint(0, 2, shape, generator=rng)
        self.class_ids = torch.arange(batch) % (NUM_CLASSES + 1)
        orders = [
            random_order(seed, num_tokens) if is_random else torch.arange(num_tokens)
            for seed in range(batch)
        ]
        self.order = torch.stack(orders)

    def latents(self, trunk: Transformer) -> Tensor:
        """Return the teacher-forced latents (B, S, W)."""
        latents: Tensor = trunk(self.bits, self.class_ids, self.order)
        return latents


def new_cache(trunk: Transformer, num_rows: int) -> KVCache:
    """Return an empty cache of the trunk's dtype."""
    return KVCache(trunk.config, num_rows, torch.device("cpu"), torch.float64)


def step_by_step(trunk: Transformer, images: Images) -> Tensor:
    """Return the latents (B, S, W) of prefill and S - 1 decoding steps."""
    batch, num_tokens = images.order.shape
    cache, rows = new_cache(trunk, batch), torch.arange(batch)
    latents = [trunk.prefill(images.class_ids, images.order, cache, rows)]
    for j in range(num_tokens - 1):
        index = torch.full((batch,), j)
        latents.append(
            trunk.decode_step(images.bits[:, j], index, images.class_ids, images.order, cache, rows)
        )
    return torch.stack(latents, dim=1)


@given(
    patch_size=st.sampled_from([1, 2, 4]),
    class_repeat=st.integers(1, 4),
    num_heads=st.sampled_from([2, 4, 8]),
    bits_per_latent=st.sampled_from([1, 3, 4]),
    batch=st.integers(1, 3),
    is_random=st.booleans(),
)
def test_decoding_equals_teacher_forcing(
    patch_size: int,
    class_repeat: int,
    num_heads: int,
    bits_per_latent: int,
    batch: int,
    is_random: bool,
) -> None:
    """Prefill and steps with a cache give the latents of one forward pass, in any order."""
    config = tiny_config(patch_size, class_repeat, num_heads, bits_per_latent)
    trunk, images = tiny_trunk(config), Images(config, batch, is_random)
    assert_same(step_by_step(trunk, images), images.latents(trunk))


def test_rows_advance_at_their_own_positions() -> None:
    """Rows that began at different times, in shuffled cache rows, step together unharmed."""
    trunk = tiny_trunk()
    config = trunk.config
    images, starts, cache_rows = Images(config), [0, 3, 7], torch.tensor([4, 0, 2])
    expected, cache = images.latents(trunk), new_cache(trunk, 5)
    cache.keys += 9.0  # what a former image left behind
    cache.values += 9.0
    for tick in range(max(starts) + config.num_tokens):
        for image, start in enumerate(starts):
            if tick == start:
                one = torch.tensor([image])
                first = trunk.prefill(
                    images.class_ids[one], images.order[one], cache, cache_rows[one]
                )
                assert_same(first, expected[one, 0])
        age = tick - torch.tensor(starts)  # tokens that each image has read before this tick
        active = ((age >= 0) & (age < config.num_tokens - 1)).nonzero()[:, 0]
        if not len(active):
            continue
        index = age[active]
        latents = trunk.decode_step(
            images.bits[active, index],
            index,
            images.class_ids[active],
            images.order[active],
            cache,
            cache_rows[active],
        )
        assert_same(latents, expected[active, index + 1])


def test_images_of_a_batch_are_independent() -> None:
    """An image's latents are the same alone and beside others."""
    trunk = tiny_trunk()
    images = Images(trunk.config)
    together = images.latents(trunk)
    for i in range(3):
        row = slice(i, i + 1)
        alone = trunk(images.bits[row], images.class_ids[row], images.order[row])
        assert_same(alone, together[row])


@pytest.mark.parametrize("token", [0, 5, 14])
def test_no_latent_sees_its_own_token_or_later_ones(token: int) -> None:
    """Changing token j leaves the latents up to that of token j, and changes all after it."""
    trunk = tiny_trunk()
    images = Images(trunk.config)
    before = images.latents(trunk)
    images.bits[:, token] ^= 1
    after = images.latents(trunk)
    assert torch.equal(before[:, : token + 1], after[:, : token + 1])
    assert (after - before)[:, token + 1 :].abs().amax(-1).min() > 1e-6


def test_the_last_token_is_never_read() -> None:
    """No latent depends on the last token: nothing comes after it."""
    trunk = tiny_trunk()
    images = Images(trunk.config)
    before = images.latents(trunk)
    images.bits[:, -1] ^= 1
    assert torch.equal(before, images.latents(trunk))


def test_every_bit_of_a_token_is_read() -> None:
    """Each single bit of the first token changes the latent of the second."""
    trunk = tiny_trunk()
    images = Images(trunk.config, batch=1)
    before = images.latents(trunk)[0, 1]
    for bit in range(trunk.config.bits_per_token):
        images.bits[0, 0, bit] ^= 1
        assert (images.latents(trunk)[0, 1] - before).abs().max() > 1e-6
        images.bits[0, 0, bit] ^= 1


def test_first_latent_depends_on_class_and_first_cell_alone() -> None:
    """The prefix sees the class and order[0]; the rest of the order changes nothing of it."""
    trunk = tiny_trunk()
    order = torch.tensor([[3, *(n for n in range(16) if n != 3)]])
    same_first = order.clone()
    same_first[:, 1:] = order[:, 1:].flip(1)
    other_first = torch.arange(16)[None]
    caches = [new_cache(trunk, 1) for _ in range(4)]
    row = torch.tensor([0])
    first, same, other_cell, other_class = (
        trunk.prefill(torch.tensor([class_id]), cells, cache, row)
        for class_id, cells, cache in zip(
            (1, 1, 1, 2), (order, same_first, other_first, order), caches, strict=True
        )
    )
    assert torch.equal(first, same)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert (first - other_cell).abs().max() > 1e-6
    assert (first - other_class).abs().max() > 1e-6


def test_latent_depends_on_where_the_next_token_goes() -> None:
    """The same tokens read so far give another latent when the next cell is another."""
    trunk = tiny_trunk()
    images = Images(trunk.config, batch=1)
    before = images.latents(trunk)
    images.order[:, [9, 12]] = images.order[:, [12, 9]]
    after = images.latents(trunk)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (after - before)[:, 9].abs().max() > 1e-6


def test_no_class_has_a_row_of_its_own() -> None:
    """Class c is row c + 3 of the table, "no class" the row after the last; rows 0–2 are unused."""
    trunk = tiny_trunk()
    table = trunk.class_embed.weight
    assert FIRST_CLASS_ROW + NUM_CLASSES + 1 == len(table)
    images = Images(trunk.config, batch=2)
    images.class_ids = torch.tensor([NUM_CLASSES - 1, trunk.config.null_class])
    before = images.latents(trunk)
    table[:FIRST_CLASS_ROW] += 1
    assert torch.equal(before, images.latents(trunk))
    table[-1] += 1
    after = images.latents(trunk)
    assert torch.equal(before[0], after[0])
    assert (after - before)[1].abs().amax(-1).min() > 1e-6


def test_the_longest_prefix_has_positions() -> None:
    """A generator with the most class repeats allowed still finds a row for every position."""
    config = tiny_config(class_repeat=MAX_CLASS_REPEAT)
    trunk, images = tiny_trunk(config), Images(config, batch=1)
    assert images.latents(trunk).isfinite().all()
    assert config.sequence_len == trunk.condition_position_embed.shape[1]


def test_initial_tables_are_small_and_not_constant() -> None:
    """A new trunk's embeddings have a standard deviation of 0.02, none left uninitialised."""
    torch.manual_seed(0)
    trunk = Transformer(tiny_config())
    for table in (
        trunk.cls_token,
        trunk.class_embed.weight,
        trunk.bit_embed.weight,
        trunk.position_embed,
        trunk.target_position_embed,
        trunk.condition_position_embed,
    ):
        assert 0.02 == pytest.approx(table.std().item(), rel=0.5)


def test_dropout_acts_in_training_alone() -> None:
    """Dropout changes the latents of a training trunk and none of one in evaluation."""
    torch.manual_seed(0)
    trunk = Transformer(tiny_config(), dropout=0.5)
    images = Images(trunk.config)
    trunk.train()
    assert not torch.equal(images.latents(trunk), images.latents(trunk))
    trunk.eval()
    assert torch.equal(images.latents(trunk), images.latents(trunk))
