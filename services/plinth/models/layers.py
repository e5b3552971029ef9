"""The parts of a decoder that hold weights. They compute nothing: a Backend does."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.kernels.backend import LowRank
from plinth.models.config import ModelConfig
from plinth.models.rope import Rope
from plinth.models.rotary import rope_tables


class Linear(nn.Module):
    """Weight [out, in] and optional bias [out]; with an adapter once one was attached."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.lora: LowRankAdapter | None = None

    @property
    def adapter(self) -> LowRank | None:
        """The adapter, unless it is switched off."""
        return self.lora if self.lora is not None and self.lora.on else None


class LowRankAdapter(nn.Module):
    """scale · B A beside a map (Hu et al. 2021): `a` [rank, in], `b` [out, rank].

    A begins as PEFT's does (Kaiming), B at zero, so that nothing is added at first. Dropout acts
    on A's input, and only while `generator` is set: see `lora.dropping`.
    """

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale, self.dropout = scale, dropout
        self.on = True
        self.generator: torch.Generator | None = None

    def init_weights(self, generator: torch.Generator) -> None:
        """A uniform within ±1/√in, B zero."""
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)
            self.b.zero_()

    def add_to(self, out_no: Tensor, x_ni: Tensor) -> Tensor:
        """See `backend.LowRank`."""
        if self.dropout and self.generator is not None:
            kept = torch.empty_like(x_ni).bernoulli_(1 - self.dropout, generator=self.generator)
            x_ni = x_ni * kept / (1 - self.dropout)
        narrow_nr = F.linear(x_ni, self.a)
        return torch.addmm(out_no, narrow_nr, self.b.t(), alpha=self.scale)

    def delta(self) -> Tensor:
        """See `backend.LowRank`."""
        return self.scale * (self.b.detach() @ self.a.detach())


class Norm(nn.Module):
    """RMSNorm (no bias) or LayerNorm (with one), over the last axis. offset: the gain is 1 + the
    weight."""

    def __init__(self, width: int, eps: float, bias: bool, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps, self.offset = eps, offset

    @classmethod
    def of(cls, config: ModelConfig, width: int) -> Norm:
        """As the config says."""
        return cls(width, config.norm_eps, config.norm == "layer", offset=config.norm_offset)

    @property
    def gain(self) -> Tensor:
        """See `backend.NormWeights`."""
        return self.weight + 1.0 if self.offset else self.weight


class RopeTables(nn.Module):
    """Rotary tables of one rope (`rotary.rope_tables`).

    Made in fp32, with the same bits on every processor. They are buffers: a decoder that is moved
    to another type (`Decoder.to(dtype)`) takes them along, rounded to it.
    """

    cos_pe: Tensor
    sin_pe: Tensor

    def __init__(self, rope: Rope, config: ModelConfig) -> None:
        super().__init__()
        cos_pe, sin_pe = rope_tables(rope, config.head_dim, config.context)
        if config.long_after and len(cos_pe) == config.context:  # of any length, beside one by it
            cos_pe, sin_pe = torch.cat((cos_pe, cos_pe)), torch.cat((sin_pe, sin_pe))
        self.register_buffer("cos_pe", cos_pe, persistent=False)
        self.register_buffer("sin_pe", sin_pe, persistent=False)
