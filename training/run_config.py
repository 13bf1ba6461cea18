"""Everything that decides what a run computes: one model for tokenizers, one for generators.

Filled from a preset, a YAML file and `--set name=value` (`config_files.py`), written into the run's
folder as run.yaml. A recipe says how to train; a run adds what is trained on. Architectures are the
model package's own dataclasses, so that there is one description of each.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from model.config import GeneratorConfig, SamplingConfig, TokenizerConfig, check_pair
from training.data_path import shown
from training.generator_stage import GeneratorLossConfig
from training.hub_data import is_hub_path
from training.image_data import Crop
from training.lora import LoraConfig
from training.pretrained import NetworksConfig
from training.section import Section
from training.tokenizer_loss import TokenizerLossWeights
from training.trainer_config import TrainerConfig
from training.turns import DiscriminatorConfig

Configured = GeneratorConfig | TokenizerConfig | SamplingConfig


def _from_json(kind: type[Configured]) -> PlainValidator:
    def read(value: Any) -> Configured:
        return value if isinstance(value, kind) else kind.from_json(value)

    return PlainValidator(read)


_TO_JSON = PlainSerializer(lambda value: value.to_json())

GeneratorSize = Annotated[GeneratorConfig, _from_json(GeneratorConfig), _TO_JSON]
TokenizerSize = Annotated[TokenizerConfig, _from_json(TokenizerConfig), _TO_JSON]
Sampling = Annotated[SamplingConfig, _from_json(SamplingConfig), _TO_JSON]


class DataConfig(Section):
    """What is trained on, and how pictures are cut."""

    path: Annotated[Path, PlainSerializer(shown)]  # or hf://owner/name, a data set of the hub
    crop: Crop = "random"  # of pictures that a tokenizer is trained on
    flip: bool = True  # mirror half of the pictures
    held_out_share: float = Field(default=0.05, gt=0, lt=1)  # of every class
    max_held_out: int = Field(default=5000, ge=1)
    split_seed: int = 0
    threads: int = Field(default=4, ge=1)

    @property
    def name(self) -> str:
        """What a model card calls the data."""
        return shown(self.path) if is_hub_path(self.path) else self.path.name


class TokenizerRecipe(Section):
    """How a tokenizer is trained."""

    name: str
    seed: int = 0
    tokenizer: TokenizerSize
    losses: TokenizerLossWeights = TokenizerLossWeights()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    networks: NetworksConfig = NetworksConfig()
    training: TrainerConfig


class TokenizerRun(TokenizerRecipe):
    """A tokenizer's training on some data."""

    data: DataConfig
    start_from: str | None = None  # a tokenizer to go on from; None starts from random weights
    trained: Literal["all", "decoder"] = "all"  # with the decoder alone, bits stay valid

    @model_validator(mode="after")
    def _check(self) -> "TokenizerRun":
        if self.trained == "decoder" and self.start_from is None:
            raise ValueError(
                "a decoder alone is trained over an encoder that is there: set start_from, got None"
            )
        return self


class GeneratorRecipe(Section):
    """How a generator is trained."""

    name: str
    seed: int = 0
    generator: GeneratorSize
    dropout: float = Field(default=0.0, ge=0, lt=1)
    masking: GeneratorLossConfig
    sampling: Sampling  # of the sample grids, and the finished model's defaults
    training: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> "GeneratorRecipe":
        self.sampling.check_for(self.generator)
        return self


class GeneratorRun(GeneratorRecipe):
    """A generator's training on some data."""

    data: DataConfig
    tokenizer: str  # where it is: a directory, a run's folder or a model's name
    start_from: str | None = None  # a model to finetune; None starts from random weights
    reinitialise: bool = False  # layers that other bits or another head make meaningless
    frozen: tuple[str, ...] = ()  # names of weights, with wildcards, that stay as they are
    lora: LoraConfig | None = None  # adapters instead of the weights themselves

    @model_validator(mode="after")
    def _check_lora(self) -> "GeneratorRun":
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a model that is there: set start_from, got None")
        if self.lora is not None and self.training.sharding != "none":
            raise ValueError(
                "adapters leave nothing to share out: set training.sharding to none, got "
                f"{self.training.sharding!r}"
            )
        return self

    def check_tokenizer(self, tokenizer: TokenizerConfig) -> None:
        """Raise ValueError unless the tokenizer makes what this generator draws."""
        check_pair(self.generator, tokenizer)
