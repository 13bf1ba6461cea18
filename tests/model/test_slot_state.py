"""Facts of the engine's tensors: what an image starts from, and that no step asks for a value.

A step that never synchronises is what can be captured as a CUDA graph. That is checked here without
a GPU, on the meta device, which has shapes and no values: whatever needs one fails there, and every
operation is watched for what a capture does not allow.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import HeadKind
from model.cuda_graphs import StepPlan
from model.engine import Engine
from model.fast_heads import prepare_head
from model.fast_trunk import FastTrunk, Prefix
from model.fp8 import FP8
from model.generate import generation_order
from model.precision import PRECISIONS, Precision
from model.sampling import random_order, unmasking
from model.slot_state import SlotState
from model.token_grid import tokens_to_cells
from tests.model.tiny import request, tiny_config, tiny_generator, tiny_tokenizer

CPU = torch.device("cpu")
# Operations that read a value on the host, or whose result has a shape that depends on values.
SYNCHRONISING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique",
    "_unique2", "unique_dim", "bincount", "repeat_interleave", "allclose", "_assert_async",
}  # fmt: skip


class NoSynchronisation(TorchDispatchMode):
    """Fails on operations that a CUDA graph cannot hold."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.num_operations = device, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in SYNCHRONISING and not func._schema.name.endswith("self_int"):
            raise AssertionError(f"{func} asks the device for a value")
        if name in ("index", "index_put", "index_put_"):
            indices = [part for part in args[1] if part is not None]
            assert all(part.dtype == torch.int64 for part in indices), f"{func} by boolean mask"
        result = func(*args, **(kwargs or {}))
        self.num_operations += 1
        for tensor in tensors_in((args, kwargs, result)):
            assert self.device == tensor.device.type, f"{func} moves data between devices"
        return result


def tensors_in(values: Any) -> list[Tensor]:
    """Collect the tensors of nested arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []


def meta_engine(
    patch_size: int = 1,
    precision: Precision = PRECISIONS["float32"],
    batch_invariant: bool = True,
    head: HeadKind = "masked_bit",
) -> Engine:
    """Build an engine without values."""
    return Engine(
        tiny_generator(tiny_config(patch_size, head=head), torch.float32).to("meta"),
        tiny_tokenizer(dtype=torch.float32).to("meta"),
        num_slots=4,
        precision=precision,
        batch_invariant=batch_invariant,
    )


OFFENCES: dict[str, Callable[[SlotState], object]] = {
    "item": lambda state: state.drawn.max().item(),
    "truth": lambda state: bool(state.drawn.any()),
    "list": lambda state: state.drawn.tolist(),
    "boolean mask": lambda state: state.seeds[state.drawn > 0],
    "masked write": lambda state: state.seeds.__setitem__(state.drawn > 0, state.drawn[0]),
    "where": lambda state: torch.where(state.drawn > 0),
    "from the host": lambda state: state.drawn + torch.tensor([1, 2, 3, 4]).to(state.drawn),
    "to the host": lambda state: state.drawn.cpu(),
    "repeats by tensor": lambda state: state.seeds.repeat_interleave(state.drawn),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_the_check_fails_on_what_a_graph_cannot_hold(offence: str) -> None:
    """Reading a value, a shape that depends on one, and copies from and to the host are caught."""
    state = SlotState(tiny_config(), 4, torch.device("meta"), torch.float32, torch.float32)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoSynchronisation():
        OFFENCES[offence](state)


@pytest.mark.parametrize(
    ("patch_size", "precision"),
    [(1, "float32"), (1, "bfloat16"), (1, "fp8"), (2, "bfloat16"), (4, "bfloat16")],
)
@torch.no_grad()
def test_a_step_never_synchronises(patch_size: int, precision: str) -> None:
    """Draw, read and count run from beginning to end without the host knowing a single value."""
    engine = meta_engine(patch_size, PRECISIONS[precision])
    config = tiny_config(patch_size)
    for start, stop, branches, rounds in [
        (0, 4, 2, 4),
        (0, 1, 1, 1),
        (2, 4, 2, min(engine._state.max_rounds, 12)),
    ]:
        with NoSynchronisation() as mode:
            engine._token_step(StepPlan(start, stop, branches, branches, rounds))
        assert mode.num_operations > (100 if config.num_tokens > 1 else 30)


@pytest.mark.parametrize("head", ["linear", "bit"])
@torch.no_grad()
def test_a_step_with_another_head_never_synchronises(head: HeadKind) -> None:
    """With and without the second branch, in the one round that there is."""
    engine = meta_engine(precision=PRECISIONS["bfloat16"], head=head)
    assert 1 == engine._state.max_rounds
    for branches in (2, 1):
        with NoSynchronisation() as mode:
            engine._token_step(StepPlan(0, 4, branches, branches, 1))
        assert mode.num_operations > 100


@torch.no_grad()
def test_each_part_of_a_step_never_synchronises() -> None:
    """The same of the three parts by themselves, with modulations computed and not tabulated."""
    config, meta = tiny_config(), torch.device("meta")
    generator = tiny_generator(config, torch.float32).to("meta")
    head = prepare_head(generator.head, torch.bfloat16)
    trunk = FastTrunk(generator.trunk, torch.bfloat16)
    state, slots = SlotState(config, 4, meta, torch.bfloat16, FP8), slice(1, 3)
    with NoSynchronisation():
        tokens = state.draw_tokens(head, slots, 2, 4)
        assert (2, config.bits_per_token) == tokens.shape
        state.advance(trunk, slots, tokens, None, 2)
        state.count(slots)


def empty_prefix(value: float) -> Prefix:
    """Return a prefix of one value throughout."""
    config = tiny_config()
    shape = config.depth, config.num_heads, config.prefix_len, config.head_dim
    latent = torch.full((config.head_width,), value)
    return Prefix(torch.full(shape, value), torch.full(shape, -value), latent)


def written_state(slot: int = 1, cache_dtype: torch.dtype = torch.float32) -> SlotState:
    """Return the state of three slots, one of them holding an image."""
    state = SlotState(tiny_config(), 3, CPU, torch.float32, cache_dtype)
    image = request(class_id=3, seed=2**32 - 1, guidance_scale=2.5, temperature=0.5, order="random")
    order = generation_order(image, tiny_config())
    state.write(slot, image, order, (empty_prefix(1.0), empty_prefix(2.0)))
    return state


def test_an_image_starts_with_its_settings_and_prefixes() -> None:
    """Everything that settles it is in its slot, the conditional row before the other."""
    state, config = written_state(), tiny_config()
    assert [16, 0, 16] == state.drawn.tolist()
    settings = state.class_ids, state.seeds, state.guidance_scale
    assert [3, 2**32 - 1, 2.5] == [part[1].item() for part in settings]
    assert torch.equal(random_order(2**32 - 1, 16), state.order[1])
    schedule = unmasking([(1, 1, 2)])
    assert torch.equal(0.5 * schedule.anneal[0], state.temperatures[1, :3])
    assert [4, 3, 2, 0, 0] == state.num_masked[1].tolist()
    assert [1, 2] == state.latents[:, 1, 0].tolist()
    length = config.prefix_len
    for row, value in ((2, 1), (3, 2)):
        assert (value, -value) == (
            state.cache.keys[:, row, :, :length].unique().item(),
            state.cache.values[:, row, :, :length].unique().item(),
        )
    others = torch.tensor([0, 1, 4, 5])
    assert 0 == state.cache.keys[:, others].abs().max() == state.latents[:, [0, 2]].abs().max()


def test_a_freed_slot_is_idle() -> None:
    """It counts as full, whatever it had drawn."""
    state = written_state()
    state.count(slice(0, 3))
    state.free(1)
    assert [16, 16, 16] == state.drawn.tolist()


def test_admitting_waits_for_no_step() -> None:
    """What comes from the host is copied without blocking, and no value is asked for."""
    copies = list[bool]()

    class Watch(NoSynchronisation):
        """Allows copies from the host, and notes whether they block."""

        def __torch_dispatch__(
            self,
            func: Any,
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            devices = {tensor.device.type for tensor in tensors_in(args)}
            if "meta" not in devices:  # on the host alone
                return func(*args, **(kwargs or {}))
            if func is torch.ops.aten.copy_.default and len(devices) == 2:
                copies.append(len(args) > 2 and args[2])
                return args[0]
            return super().__torch_dispatch__(func, types, args, kwargs)

    state = SlotState(tiny_config(), 3, torch.device("meta"), torch.float32, torch.float32)
    prefix = Prefix(*(part.to("meta") for part in empty_prefix(0.0)))
    order = torch.arange(16)
    with Watch():
        state.write(1, request(), order, (prefix, prefix))
        state.free(1)
    assert [True] * 3 == copies


def test_a_shorter_schedule_leaves_nothing_of_a_longer_one() -> None:
    """What the slot's image before had in later rounds is gone."""
    state, config = written_state(), tiny_config()
    image = request(unmask_schedule=(4,))
    order = generation_order(image, config)
    state.write(1, image, order, (empty_prefix(0.0), empty_prefix(0.0)))
    assert [4, 0, 0, 0, 0] == state.num_masked[1].tolist()


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_there_is_room_for_the_longest_schedule(patch_size: int) -> None:
    """One bit a round fits, in a whole number of products of rounds."""
    config = tiny_config(patch_size)
    state = SlotState(config, 1, CPU, torch.float32, torch.float32)
    assert 0 == state.max_rounds % 4
    assert state.max_rounds >= config.bits_per_token
    assert (1, state.max_rounds + 1) == state.num_masked.shape


def test_eight_bit_caches_saturate() -> None:
    """A key too large for eight bits becomes the largest one, not NaN."""
    state, config = SlotState(tiny_config(), 1, CPU, torch.float32, FP8), tiny_config()
    image = request()
    state.write(0, image, generation_order(image, config), (empty_prefix(1e6), empty_prefix(1e6)))
    assert 448 == state.cache.keys.float().max()
    assert -448 == state.cache.values.float().min()


def test_counting_stops_at_the_last_token() -> None:
    """Idle and full slots stay full, and slots outside of the step stay as they are."""
    state = written_state()
    for _ in range(3):
        state.count(slice(0, 2))
    assert [16, 3, 16] == state.drawn.tolist()
    for _ in range(20):
        state.count(slice(1, 3))
    assert [16, 16, 16] == state.drawn.tolist()


def test_counting_takes_no_memory() -> None:
    """It writes in place, so that a step that runs out of memory has counted nothing."""
    state = written_state()
    at = state.drawn.data_ptr()
    state.count(slice(0, 3))
    assert at == state.drawn.data_ptr()
    meta = SlotState(tiny_config(), 3, torch.device("meta"), torch.float32, torch.float32)
    with InPlaceOnly():  # type: ignore[no-untyped-call]
        meta.count(slice(0, 3))


class InPlaceOnly(TorchDispatchMode):
    """Fails on operations that allocate."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name.endswith("_") or name == "slice", f"{func} allocates"
        return func(*args, **(kwargs or {}))


def test_full_and_idle_slots_draw_beside_the_image() -> None:
    """Their tokens go into the spare row, and no image's tokens change."""
    state = written_state()
    head = prepare_head(tiny_generator(dtype=torch.float32).head, torch.float32)
    with torch.no_grad():
        tokens = state.draw_tokens(head, slice(0, 3), 2, 3)
    assert torch.equal(tokens.to(torch.int8), torch.stack(
        [state.tokens[0, 16], state.tokens[1, 0], state.tokens[2, 16]]
    ))  # fmt: skip
    state.tokens[:, 16] = 0
    assert 0 == state.tokens[[0, 2]].abs().max()
    assert 0 == state.tokens[1, 1:].abs().max()


@pytest.mark.parametrize("patch_size", [1, 2])
def test_codes_lie_in_raster_order_and_are_zero_where_not_drawn(patch_size: int) -> None:
    """Cells of tokens that are drawn hold -1 and +1, in their places; all others hold 0."""
    config = tiny_config(patch_size)
    state = SlotState(config, 1, CPU, torch.float32, torch.float32)
    num_tokens, num_bits = config.num_tokens, config.bits_per_token
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(num_tokens, generator=rng)
    state.order[0] = order
    bits = torch.randint(0, 2, (num_tokens, num_bits), generator=rng)
    state.tokens[0, :-1] = bits.to(torch.int8)
    for num_drawn in (0, 1, num_tokens // 2, num_tokens):
        raster = torch.zeros(1, num_tokens, num_bits)
        for j in range(num_drawn):
            raster[0, order[j]] = 2.0 * bits[j] - 1
        assert torch.equal(tokens_to_cells(raster, patch_size)[0], state.codes(0, num_drawn))
