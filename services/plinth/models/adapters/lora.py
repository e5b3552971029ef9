"""Low-rank adapters on a decoder's linear maps (Hu et al. 2021): attach, switch off, merge.

y = W x + b + scale · B A x with scale = alpha / rank, or alpha / √rank (Kalajdzievski 2023,
"rsLoRA"). W and b are frozen: they get no gradient and no optimiser state. Knows no files: PEFT's
format is `adapters.peft_format`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plinth.models.adapters.linear_maps import chosen
from plinth.models.decoder import Decoder
from plinth.models.layers import Linear, LowRankAdapter
from plinth.shared.errors import InvalidArgument

MAX_RANK, MAX_ALPHA = 4096, 1e6


@dataclass(frozen=True)
class LoraConfig:
    """alpha 0: twice the rank. targets: names of maps, or their ends ("q_proj",
    "attn.c_proj"); none: all linear maps of the blocks."""

    rank: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False

    def __post_init__(self) -> None:
        def need(right: bool, field: str, what: str) -> None:
            if not right:
                value = getattr(self, field)
                raise InvalidArgument(f"{field} is {value!r}, must be {what}", field=field)

        def number(value: object, *kinds: type) -> bool:
            return isinstance(value, kinds) and not isinstance(value, bool)

        whole = number(self.rank, int)
        need(whole and 1 <= self.rank <= MAX_RANK, "rank", f"a whole number from 1 to {MAX_RANK}")
        real = number(self.alpha, int, float)
        need(
            real and 0 <= self.alpha <= MAX_ALPHA,
            "alpha",
            "above 0 and at most 1e6 (0: twice the rank)",
        )
        real = number(self.dropout, int, float)
        need(real and 0 <= self.dropout < 1, "dropout", "0 or more and below 1")
        need(isinstance(self.rslora, bool), "rslora", "True or False")
        listed = isinstance(self.targets, tuple) and all(
            isinstance(target, str) and target for target in self.targets
        )
        need(listed, "targets", "names of linear maps")

    @property
    def full_alpha(self) -> float:
        """The alpha that counts."""
        return self.alpha or 2.0 * self.rank

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.full_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def target_names(decoder: nn.Module, family: str, targets: Sequence[str]) -> list[str]:
    """Full names of the maps that `targets` mean, in the model's order.

    InvalidArgument for a target that means none.
    """
    names = [name for name, module in decoder.named_modules() if isinstance(module, Linear)]
    return chosen(names, family, targets)


def attach(decoder: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze the decoder and put a fresh adapter beside each target; it computes what it did."""
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(decoder, decoder.config.family, config.targets):
        adapter = attach_one(decoder, name, config.rank, config.scale, config.dropout)
        adapter.init_weights(generator)


def attach_one(
    decoder: Decoder, name: str, rank: int, scale: float, dropout: float = 0.0
) -> LowRankAdapter:
    """An adapter beside the map `name`, its A not initialised."""
    linear = decoder.get_submodule(name)
    assert isinstance(linear, Linear)
    assert linear.lora is None, f"{name} has an adapter already"
    outputs, inputs = linear.weight.shape
    linear.lora = LowRankAdapter(inputs, outputs, rank, scale, dropout).to(linear.weight.device)
    return linear.lora


def adapters(decoder: nn.Module) -> dict[str, LowRankAdapter]:
    """Map's name → its adapter."""
    return {
        name: module.lora
        for name, module in decoder.named_modules()
        if isinstance(module, Linear) and module.lora is not None
    }


@contextmanager
def switched_off(decoder: nn.Module) -> Iterator[None]:
    """The base alone, while this lasts: what a reference is to its adapted policy."""
    there = [adapter for adapter in adapters(decoder).values() if adapter.on]
    for adapter in there:
        adapter.on = False
    try:
        yield
    finally:
        for adapter in there:
            adapter.on = True


@contextmanager
def dropping(decoder: nn.Module, seed: int, number: int) -> Iterator[None]:
    """Dropout acts while this lasts: the same for one (seed, number), whatever came before."""
    there = [adapter for adapter in adapters(decoder).values() if adapter.dropout]
    if there:
        mixed = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
        generator = torch.Generator(there[0].a.device).manual_seed(mixed >> 1)
        for adapter in there:
            adapter.generator = generator
    try:
        yield
    finally:
        for adapter in there:
            adapter.generator = None


def base_tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters."""
    tensors = decoder.state_dict()
    for name in adapters(decoder):
        del tensors[f"{name}.lora.a"], tensors[f"{name}.lora.b"]
    return tensors


def merged_tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model that the adapters make of their base: W + scale · B A."""
    tensors = base_tensors(decoder)
    for name, adapter in adapters(decoder).items():
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = weight + adapter.delta().to(weight.dtype)
    return tensors
