"""Random mixtures of experts for tests."""

from __future__ import annotations

import torch

from plinth.kernels.specs import Activation
from plinth.models.config import Experts, ModelConfig
from plinth.models.mixture import Mixture


def random_mixture(
    width: int,
    count: int,
    chosen: int,
    inner: int,
    *,
    normalised: bool = True,
    activation: Activation = "silu",
    seed: int = 0,
) -> Mixture:
    """`count` experts of `inner` features over `width`; what goes in and out is of size 1."""
    config = ModelConfig(
        family="qwen3_moe", vocab_size=8, layers=1, hidden=width, heads=1, kv_heads=1, head_dim=8,
        intermediate=8, context=8, experts=Experts(count, chosen, inner, normalised),
        activation=activation,
    )  # fmt: skip
    mixture = Mixture.of(config)
    generator = torch.Generator().manual_seed(seed)
    maps = [mixture.router]
    for expert in mixture.experts:
        maps += [expert.gate, expert.up, expert.down]
    with torch.no_grad():
        for one in maps:
            one.weight.normal_(0.0, one.weight.shape[1] ** -0.5, generator=generator)
    return mixture
