"""Configurations: what they derive, what they refuse, and the published presets."""

import json
from dataclasses import FrozenInstanceError, replace
from math import inf, nan
from typing import Any

import pytest

from model.config import (
    MAX_CLASS_REPEAT,
    MAX_GUIDANCE_SCALE,
    MAX_SEED,
    MAX_TEMPERATURE,
    PRESETS,
    GeneratorConfig,
    HeadKind,
    ImageRequest,
    Preset,
    SamplingConfig,
    TokenizerConfig,
    VitConfig,
    uniform_schedule,
)
from model.json_config import JsonConfig
from tests.model.tiny import NUM_CLASSES, request, tiny_config, tiny_tokenizer_config

SAMPLING = SamplingConfig(guidance_scale=4.0, temperature=1.0, unmask_schedule=(1, 1, 2))
VIT = VitConfig(width=32, depth=2, num_heads=2, mlp_width=64)

# The published checkpoints: generator and tokenizer file, width, depth, heads, grid, patch, bits
# per token, tokens, pixels per side, guidance, temperature, unmask schedule.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "bar-b-patch4": (
        "generator/bar_b_patch4.bin", "tokenizer/bar_fsq_16bits.bin",
        768, 24, 12, 16, 4, 256, 16, 256, 9.6, 1.4, (64, 64, 64, 64),
    ),
    "bar-b-patch2": (
        "generator/bar_b_patch2.bin", "tokenizer/bar_fsq_16bits.bin",
        768, 24, 12, 16, 2, 64, 64, 256, 5.5, 2.0, (16, 16, 16, 16),
    ),
    "bar-b": (
        "generator/bar_b.bin", "tokenizer/bar_fsq_16bits_ft.bin",
        768, 24, 12, 16, 1, 16, 256, 256, 5.0, 2.5, (2, 2, 5, 7),
    ),
    "bar-l": (
        "generator/bar_l.bin", "tokenizer/bar_fsq_16bits_ft.bin",
        1280, 32, 16, 16, 1, 16, 256, 256, 5.3, 3.0, (2, 2, 5, 7),
    ),
    "bar-l-res512": (
        "generator/bar_l_res512.bin", "tokenizer/bar_sfq_10bits_res512.bin",
        1280, 32, 16, 32, 1, 10, 1024, 512, 4.2, 2.8, (2, 2, 2, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_equals_the_published_table(name: str) -> None:
    """Sizes, files and sampling settings of a published preset are those of its checkpoint."""
    preset = PRESETS[name]
    generator, tokenizer, sampling = preset.generator, preset.tokenizer, preset.sampling
    assert PUBLISHED[name] == (
        preset.generator_file,
        preset.tokenizer_file,
        generator.width,
        generator.depth,
        generator.num_heads,
        generator.grid_size,
        generator.patch_size,
        generator.bits_per_token,
        generator.num_tokens,
        tokenizer.image_size,
        sampling.guidance_scale,
        sampling.temperature,
        sampling.unmask_schedule,
    )
    assert (1000, 32, 2048, 3) == (
        generator.num_classes,
        generator.class_repeat,
        generator.head_width,
        generator.head_depth,
    )
    assert (16, "siglip2", 16, 2, 2048) == (
        tokenizer.patch_size,
        tokenizer.encoder_kind,
        tokenizer.encoder_table_size,
        tokenizer.clip_layer,
        tokenizer.clip_projector_width,
    )
    assert VitConfig(width=1152, depth=27, num_heads=16, mlp_width=4304) == tokenizer.encoder
    assert VitConfig(width=1024, depth=24, num_heads=16, mlp_width=4096) == tokenizer.decoder


def test_presets_are_the_published_ones_and_digits() -> None:
    """There are five published presets, and one bundled model, which has no file on the hub."""
    assert {*PUBLISHED, "digits"} == set(PRESETS)
    assert (None, None) == (PRESETS["digits"].generator_file, PRESETS["digits"].tokenizer_file)
    assert 10 == PRESETS["digits"].generator.num_classes
    assert PRESETS["digits"].tokenizer.image_size >= 32


def test_derived_sizes() -> None:
    """Tokens, bits, prefix and sequence length follow from grid, patch and class repeats."""
    config = tiny_config(patch_size=2, class_repeat=3)
    assert (2, 4, 16) == (config.tokens_per_side, config.num_tokens, config.bits_per_token)
    assert (4, 7) == (config.prefix_len, config.sequence_len)
    assert (16, NUM_CLASSES) == (config.head_dim, config.null_class)
    assert 4 == tiny_tokenizer_config().grid_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 does not divide grid_size 4"),
        ({"num_heads": 3}, "num_heads must be even, got 3"),
        ({"num_heads": 4, "width": 24}, r"width 24 must be a multiple of 4 \* num_heads \(16\)"),
        ({"class_repeat": 101}, f"class_repeat must be at most {MAX_CLASS_REPEAT}, got 101"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"head_depth": -1}, "head_depth must be a positive integer, got -1"),
        ({"bits_per_latent": 4.0}, "bits_per_latent must be a positive integer, got 4.0"),
        ({"num_classes": True}, "num_classes must be a positive integer, got True"),
        ({"grid_size": "4"}, "grid_size must be a positive integer, got '4'"),
        ({"head_depth": 0}, "head_depth must be a positive integer, got 0"),
        (
            {"head": "mlp"},
            r"head must be one of \('masked_bit', 'linear', 'bit'\), got 'mlp'",
        ),
        ({"head": ["bit"]}, r"head must be one of .*, got \['bit'\]"),
        ({"head": "bit"}, "a bit head is one layer without blocks: head_depth must be 0, got 2"),
        ({"head": "linear", "head_depth": False}, "head_depth must be 0, got False"),
        ({"head": "linear", "head_depth": 0, "head_width": 0}, "head_width must be a positive"),
    ],
)
def test_generator_config_refuses(changes: dict[str, Any], message: str) -> None:
    """An impossible generator is refused, and the message names the numbers that clash."""
    with pytest.raises(ValueError, match=message):
        replace(tiny_config(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 9}, "patch_size 2 does not divide image_size 9"),
        ({"bits_per_latent": 0}, "bits_per_latent must be a positive integer, got 0"),
        ({"encoder_table_size": 0}, "encoder_table_size must be a positive integer, got 0"),
        ({"encoder_kind": "cnn"}, r"encoder_kind must be one of \('siglip2', 'vit'\), got 'cnn'"),
        (
            {"encoder_kind": "siglip2", "clip_layer": 2},
            "clip_layer 2 is not one of the decoder's 2 blocks",
        ),
        (
            {"encoder_kind": "siglip2", "clip_layer": -1},
            "clip_layer -1 is not one of the decoder's 2 blocks",
        ),
    ],
)
def test_tokenizer_config_refuses(changes: dict[str, Any], message: str) -> None:
    """An impossible tokenizer is refused, and the message names the numbers that clash."""
    with pytest.raises(ValueError, match=message):
        replace(tiny_tokenizer_config(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide width 32"),
        ({"mlp_width": 0}, "mlp_width must be a positive integer, got 0"),
    ],
)
def test_vit_config_refuses(changes: dict[str, Any], message: str) -> None:
    """An impossible vision transformer is refused with its numbers."""
    with pytest.raises(ValueError, match=message):
        replace(VIT, **changes)


@pytest.mark.parametrize("value", [0.999, -1, 30.001, inf, -inf, nan, True, "5", None])
def test_guidance_outside_its_range_is_refused(value: Any) -> None:
    """Guidance is a number from 1 to 30: no NaN, no boolean, no text."""
    with pytest.raises(ValueError, match=r"guidance_scale must be .* between 1 and 30, got"):
        replace(SAMPLING, guidance_scale=value)


@pytest.mark.parametrize("value", [-0.001, 10.001, inf, nan, False, "1", None])
def test_temperature_outside_its_range_is_refused(value: Any) -> None:
    """Temperature is a number from 0 to 10: no NaN, no boolean, no text."""
    with pytest.raises(ValueError, match=r"temperature must be .* between 0 and 10, got"):
        replace(SAMPLING, temperature=value)


@pytest.mark.parametrize(
    "value", [(), (0, 4), (2, 1), (-1, 5), (2.0, 2), (True, 3), "22", ("2", "2"), 4, None]
)
def test_malformed_schedule_is_refused(value: Any) -> None:
    """A schedule is a non-empty, non-decreasing list of positive integers."""
    with pytest.raises(ValueError, match="unmask_schedule must be"):
        replace(SAMPLING, unmask_schedule=value)


@pytest.mark.parametrize("value", ["spiral", None, ["raster"], 0])
def test_unknown_order_is_refused(value: Any) -> None:
    """The order is raster or random."""
    with pytest.raises(ValueError, match=r"order must be one of \('raster', 'random'\), got"):
        replace(SAMPLING, order=value)


def test_bounds_themselves_are_allowed() -> None:
    """Both ends of every range of a request are valid."""
    low = request(seed=0, class_id=0, guidance_scale=1, temperature=0, unmask_schedule=(4,))
    high = request(
        seed=MAX_SEED,
        class_id=NUM_CLASSES - 1,
        guidance_scale=MAX_GUIDANCE_SCALE,
        temperature=MAX_TEMPERATURE,
        unmask_schedule=(1, 1, 1, 1),
    )
    low.check_for(tiny_config())
    high.check_for(tiny_config())


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.0, nan, True, "1", None])
def test_seed_outside_32_bits_is_refused(seed: Any) -> None:
    """A seed is an integer of 32 bits: no boolean, no float, no text."""
    with pytest.raises(ValueError, match=f"seed must be an integer between 0 and {MAX_SEED}, got"):
        ImageRequest(class_id=0, seed=seed, sampling=SAMPLING)


@pytest.mark.parametrize("class_id", [-1, NUM_CLASSES, 1.0, True, "1", None])
def test_class_outside_the_model_is_refused(class_id: Any) -> None:
    """A class id is an integer below the number of classes; "no class" is not among them."""
    image = ImageRequest(class_id=class_id, seed=0, sampling=SAMPLING)
    with pytest.raises(ValueError, match="class_id must be an integer between 0 and 4, got"):
        image.check_for(tiny_config())


def test_schedule_must_sum_to_the_bits_of_a_token() -> None:
    """A schedule for another token size is refused with both sums."""
    message = r"unmask_schedule \[1, 1, 2\] sums to 4, but this model has 16 bits per token"
    with pytest.raises(ValueError, match=message):
        SAMPLING.check_for(tiny_config(patch_size=2))
    with pytest.raises(ValueError, match=message):
        request().check_for(tiny_config(patch_size=2))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (tiny_tokenizer_config(grid_size=8), "grid_size 4, but its tokenizer has 8"),
        (tiny_tokenizer_config(bits_per_latent=6), "bits_per_latent 4, but its tokenizer has 6"),
    ],
)
def test_preset_refuses_a_foreign_tokenizer(tokenizer: TokenizerConfig, message: str) -> None:
    """A generator and a tokenizer that do not fit each other are refused with both numbers."""
    with pytest.raises(ValueError, match=message):
        Preset(generator=tiny_config(), tokenizer=tokenizer, sampling=SAMPLING)


def test_preset_refuses_a_foreign_schedule() -> None:
    """A preset's default schedule has to fit its generator."""
    with pytest.raises(ValueError, match="sums to 4, but this model has 16"):
        Preset(
            generator=tiny_config(patch_size=2),
            tokenizer=tiny_tokenizer_config(),
            sampling=SAMPLING,
        )


def test_a_linear_head_of_more_bits_than_a_matrix_has_room_for_is_refused() -> None:
    """18 bits are 2^18 classes; 19 are refused with the size of the matrix and what to do."""
    large = tiny_config(head="linear", bits_per_latent=18)
    assert 18 == large.bits_per_token
    message = (
        r"at most 18 bits per token, got 19: a matrix of 32 × 2\^19, about 10\^7 entries; choose "
        r"head masked_bit or bit, fewer bits_per_latent or a smaller patch_size"
    )
    with pytest.raises(ValueError, match=message):
        replace(large, bits_per_latent=19)
    with pytest.raises(ValueError, match=r"got 5000: .* about 10\^1507 entries"):
        replace(large, bits_per_latent=5000)


@pytest.mark.parametrize("head", ["linear", "bit"])
def test_a_head_of_one_pass_has_one_schedule(head: HeadKind) -> None:
    """All bits in one round, or the request is refused with the schedule that there is."""
    config = tiny_config(head=head)
    replace(SAMPLING, unmask_schedule=(4,)).check_for(config)
    message = rf"{head} head draws a token at once: unmask_schedule must be \[4\], got \[1, 1, 2\]"
    with pytest.raises(ValueError, match=message):
        SAMPLING.check_for(config)
    with pytest.raises(ValueError, match=r"\[3\] sums to 3, but this model has 4 bits"):
        replace(SAMPLING, unmask_schedule=(3,)).check_for(config)


def test_files_from_before_there_was_a_choice_of_heads_keep_their_revision() -> None:
    """A masked-bit head is not written, so that what a revision hashes is what it was; another
    head is, and a file without any has a masked-bit head."""
    values = tiny_config().to_json()
    assert "head" not in values
    assert "masked_bit" == GeneratorConfig.from_json(values).head
    other = tiny_config(head="bit")
    assert "bit" == other.to_json()["head"]
    assert other == GeneratorConfig.from_json(other.to_json())
    with pytest.raises(ValueError, match=r"head must be one of .*, got 'mlp'"):
        GeneratorConfig.from_json({**values, "head": "mlp"})


CONFIGS = [tiny_config(), tiny_tokenizer_config(), VIT, SAMPLING]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_json_round_trip(config: JsonConfig) -> None:
    """A configuration written as JSON text and read again is the same one."""
    assert config == type(config).from_json(json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    """Every part of every preset is the same after a round trip through JSON text."""
    preset = PRESETS[name]
    for config in (preset.generator, preset.tokenizer, preset.sampling):
        assert config == type(config).from_json(json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_json_with_unknown_or_missing_keys_is_refused(config: JsonConfig) -> None:
    """Keys too many and too few are named together; defaults alone may be left out."""
    values = config.to_json()
    removed = next(iter(values))
    del values[removed]
    values["colour"] = 1
    message = rf"{type(config).__name__}: unknown keys \['colour'\], missing keys \['{removed}'\]"
    with pytest.raises(ValueError, match=message):
        type(config).from_json(values)


@pytest.mark.parametrize("values", [None, 3, "vit", ["width", 32]])
def test_json_that_is_no_object_is_refused(values: Any) -> None:
    """A configuration, and one inside another, is a JSON object or it is refused by name."""
    with pytest.raises(ValueError, match="TokenizerConfig must be a JSON object, got"):
        TokenizerConfig.from_json(values)
    with pytest.raises(ValueError, match="VitConfig must be a JSON object, got"):
        TokenizerConfig.from_json({**tiny_tokenizer_config().to_json(), "decoder": values})


def test_json_may_leave_out_defaults() -> None:
    """A key that has a default may be absent."""
    values = tiny_config().to_json()
    del values["class_repeat"]
    assert 32 == GeneratorConfig.from_json(values).class_repeat


def test_configurations_are_frozen_and_hashable() -> None:
    """A configuration never changes once built, and a schedule given as a list is a tuple."""
    from_list = SamplingConfig.from_json({**SAMPLING.to_json(), "unmask_schedule": [1, 1, 2]})
    assert {SAMPLING} == {SAMPLING, from_list}
    with pytest.raises(FrozenInstanceError):
        SAMPLING.temperature = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bits_per_token", "rounds", "expected"),
    [
        (16, 4, (4, 4, 4, 4)),
        (10, 4, (2, 2, 3, 3)),
        (3, 4, (1, 1, 1)),
        (1, 4, (1,)),
        (7, 1, (7,)),
    ],
)
def test_uniform_schedule(bits_per_token: int, rounds: int, expected: tuple[int, ...]) -> None:
    """Bits are split evenly, the larger shares last, with no empty round."""
    assert expected == uniform_schedule(bits_per_token, rounds)
