"""The pieces of a decoder that hold weights. They compute nothing: a Backend does.

Names inside the layers are Hugging Face's, so that a state dict is a checkpoint.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.kernels.backend import Backend, LowRank
from plinth.models.config import ModelConfig
from plinth.models.rotary import powers, rotary_tables


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
    """RMSNorm (no bias) or LayerNorm (with one), over the last axis."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps


class Rope(nn.Module):
    """Rotary tables, [context, head_dim / 2] each (Su et al. 2021).

    Made in fp32, with the same bits on every processor (`rotary`). They are buffers: a decoder
    that is moved to another type (`Decoder.to(dtype)`) takes them along, rounded to it.
    """

    cos_pe: Tensor
    sin_pe: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos_pe, sin_pe = rotary_tables(config.context, rope_frequencies(config))
        self.register_buffer("cos_pe", cos_pe, persistent=False)
        self.register_buffer("sin_pe", sin_pe, persistent=False)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Inverse frequencies [head_dim / 2], scaled as the config says (Llama 3.1's rule)."""
    dims = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu")
    exponents = dims.float() / config.head_dim
    frequencies = 1.0 / powers(config.rope_theta, exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > low, frequencies / scaling.factor, frequencies)
    return torch.where((wavelengths <= low) & (wavelengths >= high), between, scaled)


def _rows(x_nd: Tensor, rows_m: Tensor | None) -> Tensor:
    return x_nd if rows_m is None else x_nd.index_select(0, rows_m)


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden, queries, bias)
        self.k_proj = Linear(config.hidden, keys, bias)
        self.v_proj = Linear(config.hidden, keys, bias)
        self.o_proj = Linear(queries, config.hidden, bias)
        self.layer, self.head_dim = layer, config.head_dim

    def forward(
        self,
        h_nd: Tensor,
        x_nd: Tensor,
        positions_n: Tensor,
        rope: Rope,
        backend: Backend,
        rows_m: Tensor | None = None,
    ) -> Tensor:
        """x + attention(h), of the rows asked for."""
        n, e = h_nd.shape[0], self.head_dim
        q, k, v = backend.linear(h_nd, self.q_proj, self.k_proj, self.v_proj)
        q, k = backend.rope(
            q.view(n, -1, e), k.view(n, -1, e), positions_n, rope.cos_pe, rope.sin_pe
        )
        mixed = backend.mix(self.layer, q, k, v.view(n, -1, e))
        return backend.linear_add(_rows(mixed, rows_m), self.o_proj, _rows(x_nd, rows_m))


class LlamaMlp(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden, config.intermediate, config.mlp_bias)
        self.up_proj = Linear(config.hidden, config.intermediate, config.mlp_bias)
        self.down_proj = Linear(config.intermediate, config.hidden, config.mlp_bias)

    def forward(self, h_nd: Tensor, x_nd: Tensor, backend: Backend) -> Tensor:
        """x + mlp(h)."""
        gate, up = backend.linear(h_nd, self.gate_proj, self.up_proj)
        return backend.linear_add(backend.swiglu(gate, up), self.down_proj, x_nd)


class LlamaLayer(nn.Module):
    """Pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer)
        self.mlp = LlamaMlp(config)
        self.input_layernorm = Norm(config.hidden, config.norm_eps, bias=False)
        self.post_attention_layernorm = Norm(config.hidden, config.norm_eps, bias=False)

    def forward(
        self,
        x_nd: Tensor,
        positions_n: Tensor,
        rope: Rope,
        backend: Backend,
        rows_m: Tensor | None = None,
    ) -> Tensor:
        """Every row is attended to; what leaves are those in `rows_m`, if it is given."""
        h = backend.norm(x_nd, self.input_layernorm)
        x_nd = self.self_attn(h, x_nd, positions_n, rope, backend, rows_m)
        h = backend.norm(x_nd, self.post_attention_layernorm)
        out: Tensor = self.mlp(h, x_nd, backend)
        return out


class Gpt2Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one map."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = Linear(config.hidden, 3 * config.hidden, bias=True)
        self.c_proj = Linear(config.hidden, config.hidden, bias=True)
        self.layer, self.head_dim = layer, config.head_dim

    def forward(
        self, h_nd: Tensor, x_nd: Tensor, backend: Backend, rows_m: Tensor | None = None
    ) -> Tensor:
        """x + attention(h), of the rows asked for."""
        (qkv,) = backend.linear(h_nd, self.c_attn)
        q, k, v = qkv.view(h_nd.shape[0], 3, -1, self.head_dim).unbind(1)
        mixed = backend.mix(self.layer, q.contiguous(), k.contiguous(), v.contiguous())
        return backend.linear_add(_rows(mixed, rows_m), self.c_proj, _rows(x_nd, rows_m))


class Gpt2Mlp(nn.Module):
    """Two maps with GELU between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.hidden, config.intermediate, bias=True)
        self.c_proj = Linear(config.intermediate, config.hidden, bias=True)

    def forward(self, h_nd: Tensor, x_nd: Tensor, backend: Backend) -> Tensor:
        """x + mlp(h)."""
        (wide,) = backend.linear(h_nd, self.c_fc)
        return backend.linear_add(backend.gelu(wide), self.c_proj, x_nd)


class Gpt2Layer(nn.Module):
    """Pre-norm block with LayerNorm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = Norm(config.hidden, config.norm_eps, bias=True)
        self.attn = Gpt2Attention(config, layer)
        self.ln_2 = Norm(config.hidden, config.norm_eps, bias=True)
        self.mlp = Gpt2Mlp(config)

    def forward(self, x_nd: Tensor, backend: Backend, rows_m: Tensor | None = None) -> Tensor:
        """As `LlamaLayer.forward`."""
        x_nd = self.attn(backend.norm(x_nd, self.ln_1), x_nd, backend, rows_m)
        out: Tensor = self.mlp(backend.norm(x_nd, self.ln_2), x_nd, backend)
        return out
