"""Adapters of low rank: a finetuning that trains a hundredth of a generator and saves no more.

Beside each chosen linear layer two thin matrices are trained, whose product is added to it; the
layer itself stays (peft does this, in place). What has to be learnt anew, such as the rows of
classes that the model has never seen, is trained whole. A generator with adapters has no weights in
its state dict but those that are trained: checkpoints are as small as the adapters, and the rest
comes from the model that the run started from, whose revision the run's folder keeps. Merged, it is
a plain generator, and nothing that serves it knows of peft. Source: LoRA, arXiv 2106.09685.
"""

import copy
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from model.generator import Generator
from training.errors import TrainingError
from training.freezing import fitting
from training.section import Section

LAYERS = ("qkv", "proj", "w12", "w3")
ADAPTER = "default"  # what peft calls the only one
WEIGHTS_FILE = "adapter_model.safetensors"  # and how it calls files, and weights in them
PREFIX = "base_model.model."


class LoraConfig(Section):
    """Adapters of a finetuning."""

    rank: int = Field(ge=1)
    alpha: float | None = Field(default=None, gt=0)  # over the rank: how much adapters count
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what adapters read
    layers: tuple[str, ...] = Field(default=LAYERS, min_length=1)  # names of linear layers
    also_trained: tuple[str, ...] = ()  # weights trained whole, by name with wildcards


def add_adapters(
    generator: Generator,
    config: LoraConfig,
    *,
    frozen: Sequence[str] = (),
    fresh: Collection[str] = (),
) -> None:
    """Put adapters beside the layers that `config` names, and freeze the rest in place.

    Weights that fit `frozen` get no adapter; those in `fresh`, and those that the configuration
    names, are trained whole. Raises TrainingError for names that fit nothing, and for a rank that
    would save nothing.
    """
    peft = _peft()
    names = [name for name, _ in generator.named_parameters()]
    kept = fitting(names, frozen)
    whole = (fitting(names, config.also_trained) | set(fresh)) - kept
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=_chosen(generator, config, kept | whole),
    )
    peft.inject_adapter_in_model(adapters, generator, ADAPTER)
    for name, parameter in generator.named_parameters():
        # A layer with an adapter has its own weights one level deeper.
        parameter.requires_grad_(".lora_" in name or name.replace(".base_layer", "") in whole)
    left = {name for name, value in generator.named_parameters() if not value.requires_grad}
    module: nn.Module = generator
    module.register_state_dict_post_hook(partial(_leave_out, left))
    module.register_load_state_dict_post_hook(partial(_do_without, left))


def _leave_out(
    frozen: set[str], module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
) -> None:
    del module, metadata
    for name in frozen:
        state.pop(prefix + name, None)


def _do_without(frozen: set[str], module: nn.Module, keys: Any) -> None:
    del module
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]


def _peft() -> Any:
    try:
        import peft  # noqa: PLC0415  an extra, and slow to import
    except ImportError as error:
        raise TrainingError("LoRA needs an extra: pip install 'bar-serve[lora]'") from error
    return peft


def _chosen(generator: Generator, config: LoraConfig, others: Collection[str]) -> list[str]:
    """Return the names of the linear layers that get an adapter: those not in `others`."""
    linear = {n: m for n, m in generator.named_modules() if isinstance(m, nn.Linear)}
    last_names = {name.rpartition(".")[2] for name in linear}
    if unknown := sorted(set(config.layers) - last_names):
        raise TrainingError(
            f"lora.layers: no linear layer is called {', '.join(unknown)}; there are "
            f"{', '.join(sorted(last_names))}"
        )
    chosen = [
        name
        for name in linear
        if name.rpartition(".")[2] in config.layers and f"{name}.weight" not in others
    ]
    if not chosen:
        raise TrainingError("no layer is left for adapters: freeze less, or name more lora.layers")
    for name in chosen:
        smaller = min(linear[name].in_features, linear[name].out_features)
        if config.rank > smaller:
            raise TrainingError(
                f"lora.rank {config.rank} is more than {name} has: {smaller} of "
                f"{linear[name].in_features} × {linear[name].out_features}; choose at most "
                f"{smaller}, 8 to 32 are usual"
            )
    return chosen


def has_adapters(generator: Generator) -> bool:
    """Say whether a generator has adapters."""
    return hasattr(generator, "peft_config")


def merged(generator: Generator) -> Generator:
    """Return a plain generator that computes what one with adapters does, in evaluation mode."""
    plain = Generator(generator.config)
    there = {**dict(generator.named_parameters()), **dict(generator.named_buffers())}
    state = {}
    for name in plain.state_dict():
        owner, _, part = name.rpartition(".")
        layer: Any = generator.get_submodule(owner)
        if hasattr(layer, "get_delta_weight"):
            state[name] = getattr(layer.get_base_layer(), part).detach()
            if part == "weight":
                state[name] = state[name] + layer.get_delta_weight(ADAPTER).detach()
        else:
            state[name] = there[name].detach()
    plain.load_state_dict(state)
    return plain.to(next(iter(state.values())).device).eval()


def save_adapters(folder: Path, generator: Generator, base: str) -> int:
    """Write adapters, and what was trained whole, as peft reads them; return their bytes.

    `base` says which model they belong to.
    """
    state: dict[str, Tensor] = {
        PREFIX + name.replace(f".{ADAPTER}.", "."): value.detach().cpu().contiguous()
        for name, value in generator.named_parameters()
        if value.requires_grad
    }
    known: Any = generator.peft_config
    config = copy.deepcopy(known[ADAPTER])
    config.base_model_name_or_path = base
    config.modules_to_save = _whole_modules(generator) or None
    config.target_modules = sorted(config.target_modules)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(state, folder / WEIGHTS_FILE)
    return sum(value.nbytes for value in state.values())


def _whole_modules(generator: Generator) -> list[str]:
    """Return the modules that are trained whole, which peft lists beside the adapters."""
    return [
        name
        for name, module in generator.named_modules()
        if (own := list(module.parameters()))
        and all(value.requires_grad for value in own)
        and ".lora_" not in name
    ]
