"""The seam between a model and the machine: what a decoder asks of whoever computes it.

A model is written once, over a flat axis of tokens (n), and calls these few operations; what
stands behind them differs: `training.SdpaBackend` (autograd, whole sequences),
`reference.ReferenceBackend` (paged, slow, any device), `native.NativeBackend` (paged, C++ on
CPU, every row's order of summation fixed). None of them knows what a model is.

Shapes: n tokens, d model width, h heads, k KV heads, e head width, i and o in and out features,
c experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from plinth.kernels.specs import Activation, AttentionSpec


class LowRank(Protocol):
    """What an adapter adds to an affine map (Hu et al. 2021): scale · B A x, A [r, i], B [o, r]."""

    def add_to(self, out_no: Tensor, x_ni: Tensor) -> Tensor:
        """out + scale · B A x, [n, o]; with autograd."""
        ...

    def delta(self) -> Tensor:
        """scale · B A, [o, i]: what a merged weight has more. Without autograd."""
        ...


class LinearWeights(Protocol):
    """An affine map; `weight` is [o, i], `bias` [o] or None, `adapter` is added if there is one."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def adapter(self) -> LowRank | None: ...


class ExpertMaps(Protocol):
    """One expert: a gated MLP, down(activation(gate(x)) * up(x)), without biases."""

    @property
    def gate(self) -> LinearWeights: ...
    @property
    def up(self) -> LinearWeights: ...
    @property
    def down(self) -> LinearWeights: ...


class ExpertWeights(Protocol):
    """A mixture of experts (Shazeer et al. 2017): each row goes to the `chosen` whose logits are
    largest; their weights are a softmax over all, made to sum to 1 again where `normalised`."""

    @property
    def experts(self) -> Sequence[ExpertMaps]: ...
    @property
    def chosen(self) -> int: ...
    @property
    def normalised(self) -> bool: ...
    @property
    def activation(self) -> Activation: ...


class NormWeights(Protocol):
    """RMSNorm where `bias` is None, LayerNorm otherwise; `gain`, which multiplies, and bias [d]."""

    eps: float

    @property
    def gain(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...


class Backend(Protocol):
    """The operations of a decoder. All tensors are contiguous, floating point, on one device."""

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        """Normalise each row. Returns [n, d]."""
        ...

    def linear(self, x_ni: Tensor, *linears: LinearWeights) -> tuple[Tensor, ...]:
        """Apply maps that share one input (so that they can be one pass). Each [n, o]."""
        ...

    def linear_add(self, x_ni: Tensor, linear: LinearWeights, residual_no: Tensor) -> Tensor:
        """residual + linear(x). Returns [n, o]."""
        ...

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotate the first features of each head by the tables [context, features/2] (Su et al.
        2021, in GPT-NeoX's pairing: i with i + features/2); the others stay."""
        ...

    def mix(self, spec: AttentionSpec, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        """Attention of each token over its own sequence, as `spec` says.

        A paged backend first writes k and v to the sequence's state. Returns [n, h * e].
        """
        ...

    def gate(self, activation: Activation, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        """activation(gate) * up (Shazeer 2020)."""
        ...

    def activate(self, activation: Activation, x_ni: Tensor) -> Tensor:
        """Each element by the activation."""
        ...

    def mixture(self, x_nd: Tensor, logits_nc: Tensor, mixture: ExpertWeights) -> Tensor:
        """What each row's experts make of it, by their weights, [n, d]. logits_nc: the router's,
        of c experts. Every row is computed by all of its experts, however many share them."""
        ...
