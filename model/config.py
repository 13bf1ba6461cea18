"""Architectures, sampling settings and the published presets, as frozen dataclasses.

Read by everything, imports no torch, so that the API can describe and check a model that another
process runs. A configuration is complete and valid once constructed:
combinations that clash are refused with the two numbers that clash.

Source: paper Table 1 and §4.1 for the sizes, §4.2 for the sampling settings.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from model.json_config import (
    JsonConfig,
    require_between,
    require_index,
    require_object,
    require_positive,
)

Order = Literal["raster", "random"]
EncoderKind = Literal["siglip2", "vit"]
HeadKind = Literal["masked_bit", "linear", "bit"]

MAX_GUIDANCE_SCALE = 30.0
MAX_TEMPERATURE = 10.0
MAX_SEED = 2**32 - 1
MAX_CLASS_REPEAT = 100  # what the published position tables leave room for
MAX_LINEAR_BITS = 18  # of a token that a linear head draws: it scores every one of 2^k values


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(JsonConfig):
    """Architecture of a BAR generator: the causal trunk and its head.

    The latent, which the head reads, is `head_width` wide whatever the head. `head_depth` counts
    the blocks of a masked-bit head; linear and bit heads are one layer, and have 0.
    """

    grid_size: int  # g: latent cells per image side
    patch_size: int  # latent cells per token side
    bits_per_latent: int
    width: int  # D
    depth: int
    num_heads: int  # H
    num_classes: int  # C
    class_repeat: int = 32  # how often the class condition stands in the prefix
    head: HeadKind = "masked_bit"
    head_width: int = 2048  # W
    head_depth: int = 3

    def __post_init__(self) -> None:
        names = (field.name for field in fields(self))
        require_positive(self, *(name for name in names if name not in ("head", "head_depth")))
        self._check_head()
        if self.grid_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide grid_size {self.grid_size}"
            )
        if self.num_heads % 2:
            raise ValueError(
                f"num_heads must be even, got {self.num_heads}: half of the query heads are "
                "rotated at their own position, half at the position that they predict"
            )
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 4 * num_heads ({4 * self.num_heads}): "
                "2-D rotary embedding rotates pairs along two axes"
            )
        if self.class_repeat > MAX_CLASS_REPEAT:
            raise ValueError(
                f"class_repeat must be at most {MAX_CLASS_REPEAT}, got {self.class_repeat}"
            )

    def _check_head(self) -> None:
        if self.head not in get_args(HeadKind):
            raise ValueError(f"head must be one of {get_args(HeadKind)}, got {self.head!r}")
        if self.head == "masked_bit":
            require_positive(self, "head_depth")
            return
        if self.head == "linear" and self.bits_per_token > MAX_LINEAR_BITS:
            size = math.log10(self.head_width) + self.bits_per_token * math.log10(2)
            raise ValueError(
                "a linear head scores every value of a token, and takes at most "
                f"{MAX_LINEAR_BITS} bits per token, got {self.bits_per_token}: a matrix of "
                f"{self.head_width} × 2^{self.bits_per_token}, about 10^{size:.0f} entries; choose "
                "head masked_bit or bit, fewer bits_per_latent or a smaller patch_size"
            )
        if self.head_depth != 0 or isinstance(self.head_depth, bool):
            raise ValueError(
                f"a {self.head} head is one layer without blocks: head_depth must be 0, got "
                f"{self.head_depth!r}"
            )

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        # A revision is a hash of this, and models from before there was a choice do not say it.
        if self.head == "masked_bit":
            del values["head"]
        return values

    @property
    def has_rounds(self) -> bool:
        """Whether the head draws a token's bits in rounds; otherwise it draws them all at once."""
        return self.head == "masked_bit"

    @property
    def max_rounds(self) -> int:
        """The longest schedule: a bit in each round, or all in one."""
        return self.bits_per_token if self.has_rounds else 1

    @property
    def tokens_per_side(self) -> int:
        return self.grid_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """S: autoregressive steps of one image."""
        return self.tokens_per_side**2

    @property
    def bits_per_token(self) -> int:
        """k: bits drawn at one step."""
        return self.bits_per_latent * self.patch_size**2

    @property
    def prefix_len(self) -> int:
        """P: the class token and the repeated class condition."""
        return 1 + self.class_repeat

    @property
    def sequence_len(self) -> int:
        """T: the longest sequence the trunk reads; the last token is drawn but never read."""
        return self.prefix_len + self.num_tokens - 1

    @property
    def head_dim(self) -> int:
        """d: width of one attention head."""
        return self.width // self.num_heads

    @property
    def null_class(self) -> int:
        """The class id that stands for "no class"."""
        return self.num_classes


@dataclass(frozen=True, kw_only=True)
class VitConfig(JsonConfig):
    """Size of one vision transformer, the tokenizer's encoder or decoder."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        require_positive(self, *(field.name for field in fields(self)))
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(JsonConfig):
    """Architecture of a BAR-FSQ tokenizer: encoder, binary FSQ and ViT decoder."""

    image_size: int  # pixels per side
    patch_size: int  # pixels per latent cell side
    bits_per_latent: int
    encoder_kind: EncoderKind
    encoder: VitConfig
    decoder: VitConfig
    encoder_table_size: int = 16  # side of the encoder's position table, resized to the grid
    clip_layer: int = 2  # decoder block read by the CLIP projector, counted from 0
    clip_projector_width: int = 2048

    def __post_init__(self) -> None:
        require_positive(
            self,
            "image_size",
            "patch_size",
            "bits_per_latent",
            "encoder_table_size",
            "clip_projector_width",
        )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}"
            )
        if self.encoder_kind not in get_args(EncoderKind):
            raise ValueError(
                f"encoder_kind must be one of {get_args(EncoderKind)}, got {self.encoder_kind!r}"
            )
        if self.has_clip_projector and not 0 <= self.clip_layer < self.decoder.depth:
            raise ValueError(
                f"clip_layer {self.clip_layer} is not one of the decoder's {self.decoder.depth} "
                "blocks (counted from 0)"
            )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        require_object(cls, values)
        parts: dict[str, Any] = {
            name: VitConfig.from_json(values[name])
            for name in ("encoder", "decoder")
            if name in values
        }
        return super().from_json({**values, **parts})

    @property
    def grid_size(self) -> int:
        """g: latent cells per image side."""
        return self.image_size // self.patch_size

    @property
    def has_clip_projector(self) -> bool:
        """Whether training aligns the decoder with the frozen SigLIP2 tower (paper §3.2)."""
        return self.encoder_kind == "siglip2"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(JsonConfig):
    """How one image is drawn. `temperature` is the published `randomize_temperature`, and
    `unmask_schedule` (bits revealed in each round) the published `tokens_allocation`."""

    guidance_scale: float
    temperature: float
    unmask_schedule: tuple[int, ...]
    order: Order = "raster"

    def __post_init__(self) -> None:
        require_between("guidance_scale", self.guidance_scale, 1, MAX_GUIDANCE_SCALE)
        require_between("temperature", self.temperature, 0, MAX_TEMPERATURE)
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {get_args(Order)}, got {self.order!r}")
        _check_schedule(self.unmask_schedule)
        # JSON has no tuples; a list would make this unhashable.
        object.__setattr__(self, "unmask_schedule", tuple(self.unmask_schedule))

    def check_for(self, config: GeneratorConfig) -> None:
        """Raise ValueError unless the schedule reveals exactly the bits of a token of `config`, in
        one round where the head knows no other."""
        revealed = sum(self.unmask_schedule)
        if revealed != config.bits_per_token:
            raise ValueError(
                f"unmask_schedule {list(self.unmask_schedule)} sums to {revealed}, but this model "
                f"has {config.bits_per_token} bits per token"
            )
        if not config.has_rounds and len(self.unmask_schedule) > 1:
            raise ValueError(
                f"this model's {config.head} head draws a token at once: unmask_schedule must be "
                f"[{config.bits_per_token}], got {list(self.unmask_schedule)}"
            )


def _check_schedule(schedule: object) -> None:
    if (
        not isinstance(schedule, list | tuple)
        or not schedule
        or any(isinstance(n, bool) or not isinstance(n, int) for n in schedule)
    ):
        raise ValueError(f"unmask_schedule must be a list of integers, got {schedule!r}")
    if min(schedule) < 1 or list(schedule) != sorted(schedule):
        raise ValueError(
            f"unmask_schedule must be positive and non-decreasing, got {list(schedule)}"
        )


def uniform_schedule(bits_per_token: int, rounds: int = 4) -> tuple[int, ...]:
    """Split `bits_per_token` over at most `rounds` rounds as evenly as a non-decreasing
    schedule allows: 16 bits in 4 rounds are (4, 4, 4, 4), 10 are (2, 2, 3, 3)."""
    rounds = min(rounds, bits_per_token)
    return tuple((bits_per_token + i) // rounds for i in range(rounds))


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """All that determines one image of a model: the unit that generators and the engine draw."""

    class_id: int
    seed: int
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        require_index("seed", self.seed, MAX_SEED)

    def check_for(self, config: GeneratorConfig) -> None:
        """Raise ValueError unless a generator of `config` can draw this image."""
        require_index("class_id", self.class_id, config.num_classes - 1)
        self.sampling.check_for(config)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of the model zoo: architectures, sampling defaults and, if published, its files."""

    generator: GeneratorConfig
    tokenizer: TokenizerConfig
    sampling: SamplingConfig
    generator_file: str | None = None  # paths inside the published hub repository;
    tokenizer_file: str | None = None  # without them the model is bundled with this package

    def __post_init__(self) -> None:
        check_pair(self.generator, self.tokenizer)
        self.sampling.check_for(self.generator)


def check_pair(generator: GeneratorConfig, tokenizer: TokenizerConfig) -> None:
    """Raise ValueError unless `tokenizer` can decode what `generator` draws."""
    for name in ("grid_size", "bits_per_latent"):
        ours, theirs = getattr(generator, name), getattr(tokenizer, name)
        if ours != theirs:
            raise ValueError(f"generator has {name} {ours}, but its tokenizer has {theirs}")


_BASE: dict[str, Any] = {"width": 768, "depth": 24, "num_heads": 12, "num_classes": 1000}
_LARGE: dict[str, Any] = {"width": 1280, "depth": 32, "num_heads": 16, "num_classes": 1000}


def _published_tokenizer(image_size: int, bits_per_latent: int) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=image_size,
        patch_size=16,
        bits_per_latent=bits_per_latent,
        encoder_kind="siglip2",
        encoder=VitConfig(width=1152, depth=27, num_heads=16, mlp_width=4304),
        decoder=VitConfig(width=1024, depth=24, num_heads=16, mlp_width=4096),
    )


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        generator=GeneratorConfig(
            grid_size=4,
            patch_size=1,
            bits_per_latent=24,
            width=128,
            depth=4,
            num_heads=4,
            num_classes=10,
            class_repeat=4,
            head_width=128,
            head_depth=2,
        ),
        tokenizer=TokenizerConfig(
            image_size=64,
            patch_size=16,
            bits_per_latent=24,
            encoder_kind="vit",
            encoder=VitConfig(width=96, depth=2, num_heads=4, mlp_width=384),
            decoder=VitConfig(width=128, depth=3, num_heads=4, mlp_width=512),
            encoder_table_size=4,
        ),
        sampling=SamplingConfig(guidance_scale=2.0, temperature=2.0, unmask_schedule=(6, 6, 6, 6)),
    ),
    "bar-b-patch4": Preset(
        generator=GeneratorConfig(grid_size=16, patch_size=4, bits_per_latent=16, **_BASE),
        tokenizer=_published_tokenizer(256, 16),
        sampling=SamplingConfig(
            guidance_scale=9.6, temperature=1.4, unmask_schedule=(64, 64, 64, 64)
        ),
        generator_file="generator/bar_b_patch4.bin",
        tokenizer_file="tokenizer/bar_fsq_16bits.bin",
    ),
    "bar-b-patch2": Preset(
        generator=GeneratorConfig(grid_size=16, patch_size=2, bits_per_latent=16, **_BASE),
        tokenizer=_published_tokenizer(256, 16),
        sampling=SamplingConfig(
            guidance_scale=5.5, temperature=2.0, unmask_schedule=(16, 16, 16, 16)
        ),
        generator_file="generator/bar_b_patch2.bin",
        tokenizer_file="tokenizer/bar_fsq_16bits.bin",
    ),
    "bar-b": Preset(
        generator=GeneratorConfig(grid_size=16, patch_size=1, bits_per_latent=16, **_BASE),
        tokenizer=_published_tokenizer(256, 16),
        sampling=SamplingConfig(guidance_scale=5.0, temperature=2.5, unmask_schedule=(2, 2, 5, 7)),
        generator_file="generator/bar_b.bin",
        tokenizer_file="tokenizer/bar_fsq_16bits_ft.bin",
    ),
    "bar-l": Preset(
        generator=GeneratorConfig(grid_size=16, patch_size=1, bits_per_latent=16, **_LARGE),
        tokenizer=_published_tokenizer(256, 16),
        sampling=SamplingConfig(guidance_scale=5.3, temperature=3.0, unmask_schedule=(2, 2, 5, 7)),
        generator_file="generator/bar_l.bin",
        tokenizer_file="tokenizer/bar_fsq_16bits_ft.bin",
    ),
    "bar-l-res512": Preset(
        generator=GeneratorConfig(grid_size=32, patch_size=1, bits_per_latent=10, **_LARGE),
        tokenizer=_published_tokenizer(512, 10),
        sampling=SamplingConfig(guidance_scale=4.2, temperature=2.8, unmask_schedule=(2, 2, 2, 4)),
        generator_file="generator/bar_l_res512.bin",
        tokenizer_file="tokenizer/bar_sfq_10bits_res512.bin",
    ),
}
