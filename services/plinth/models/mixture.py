"""A mixture of experts (Shazeer et al. 2017) as a layer's MLP: a router, and many gated MLPs of
which each token goes to a few. It computes nothing: a Backend does.

LoRA adapts the attention of such models alone: transformers holds all experts of a layer in one
tensor, and PEFT takes the names of an MLP's maps for those of experts, so that it would open an
adapter of a router, an expert or a plain layer's MLP as something else. They are trained whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from plinth.kernels.specs import Activation
from plinth.models.config import ModelConfig


class Map(nn.Module):
    """Weight [out, in], without a bias, which takes no adapter."""

    bias = None
    adapter = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))


@dataclass(frozen=True, eq=False)
class Expert:
    """down(activation(gate(x)) * up(x))."""

    gate: Map
    up: Map
    down: Map


@dataclass(frozen=True, eq=False)
class Mixture:
    """See `backend.ExpertWeights`. Its maps are modules of a layer, under `named`'s names."""

    router: Map
    experts: tuple[Expert, ...]
    chosen: int
    normalised: bool
    activation: Activation

    @classmethod
    def of(cls, config: ModelConfig) -> Mixture:
        """As the config says, which has experts."""
        d, of = config.hidden, config.experts
        assert of is not None
        experts = tuple(
            Expert(Map(d, of.width), Map(d, of.width), Map(of.width, d)) for _ in range(of.count)
        )
        return cls(Map(d, of.count), experts, of.chosen, of.normalised, config.activation)

    def named(self, part: str, name: str) -> Iterator[tuple[str, Map]]:
        """The maps of a part of `families.names`: its name, or one for each expert's number."""
        if part == "router":
            yield name, self.router
        elif part in EXPERT_PARTS:
            for number, expert in enumerate(self.experts):
                yield name.format(number), getattr(expert, part.removeprefix("expert_"))


EXPERT_PARTS = ("expert_gate", "expert_up", "expert_down")
PARTS = ("router", *EXPERT_PARTS)
