"""What a model asks of a backend, in words: activations, how a layer attends, what it keeps of the
tokens before. Needs no torch.

Layers whose `StateSpec`s are equal keep alike: they form a group, whose sequences have one block
table between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# silu: x / (1 + e^-x). gelu: x Φ(x), and gelu_tanh its approximation (Hendrycks and Gimpel 2016).
# relu2: relu(x)² (So et al. 2021).
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


@dataclass(frozen=True)
class StateSpec:
    """Keys and values of a layer: `kv_heads` of `head_dim` for each token, of all tokens, or of
    the last `window` alone where that is not 0."""

    kv_heads: int
    head_dim: int
    window: int = 0

    def bytes_of(self, tokens: int, itemsize: int = 4) -> int:
        """Memory of so many tokens' keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * tokens * itemsize


@dataclass(frozen=True)
class AttentionSpec:
    """How layer number `layer` attends: each token to itself and to those before it, within the
    state's window if it has one.

    Scores are multiplied by `scale`; where `cap` is not 0 they become cap * tanh(score / cap).
    """

    layer: int
    state: StateSpec
    scale: float
    cap: float = 0.0
