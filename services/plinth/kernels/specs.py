"""What a model asks of a backend, in words: activations, how a layer attends, what it keeps of the
tokens before. Needs no torch.

Layers whose `StateSpec`s are equal keep alike: they form groups (`state_groups`). In a group a
sequence has one block table, and one block is room for some tokens in each of the group's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class StateGroup:
    """Layers with equal state that share block tables; `window` is their states'."""

    window: int
    layers: tuple[int, ...]


def state_groups(states: Sequence[StateSpec]) -> tuple[StateGroup, ...]:
    """The groups of a model whose layers keep `states`: all of about one size, so that one block
    takes the same memory in each, and any block can serve any of them. Then nothing has to be said
    about how much memory a window's layers get and how much the others: it goes where it is
    needed (as in vLLM's hybrid KV cache).

    A spec with more layers than a group has makes several groups; the last may be short of a few,
    which is memory that no layer uses. The size is the one that wastes least, where a group, which
    costs a block table, counts as much as a layer. ValueError where tokens take more memory in one
    layer than in another: no block could serve both.
    """
    layers_of: dict[StateSpec, list[int]] = {}
    for layer, state in enumerate(states):
        layers_of.setdefault(state, []).append(layer)
    if len({state.bytes_of(1) for state in layers_of}) > 1:
        raise ValueError(f"states of several sizes have no common block: {list(layers_of)}")
    counts = [len(layers) for layers in layers_of.values()]

    def cost(size: int) -> int:
        groups = sum(-(-count // size) for count in counts)
        return groups * size + groups

    size = min(range(1, max(counts, default=1) + 1), key=cost)
    return tuple(
        StateGroup(state.window, tuple(layers[first : first + size]))
        for state, layers in layers_of.items()
        for first in range(0, len(layers), size)
    )
