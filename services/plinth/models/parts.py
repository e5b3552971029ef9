"""The choices and the small parts of which a `ModelConfig` is made. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
NormPlaces = Literal["before", "after", "both"]
QkNorm = Literal["none", "head", "projection"]


@dataclass(frozen=True)
class LayerKind:
    """What one layer does that others may not.

    window: how many tokens a token attends to, itself the last of them; 0: all before it. rope:
    which of `ModelConfig.ropes` turns its queries and keys; None: none does. experts: whether its
    MLP is a mixture of experts.
    """

    window: int = 0
    rope: int | None = 0
    experts: bool = False


@dataclass(frozen=True)
class Biases:
    """Which maps add a bias: of queries, keys, values and the attention's output, and the MLP's."""

    q: bool = False
    k: bool = False
    v: bool = False
    o: bool = False
    mlp: bool = False

    @classmethod
    def all(cls) -> Biases:
        """Everywhere."""
        return cls(True, True, True, True, True)


NO_BIASES = Biases()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts (Shazeer et al. 2017): each token goes to `chosen` of `count` MLPs of
    `width`; their weights are a softmax over all, made to sum to 1 again where `normalised`.

    balanced: whether training's loss has `balance` times the load-balancing loss of Fedus et al.
    2021.
    """

    count: int
    chosen: int
    width: int
    normalised: bool = True
    balanced: bool = False
    balance: float = 0.001
