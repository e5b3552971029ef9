"""The shape of a decoder, in one frozen dataclass.

Knows two families: `llama` (RMSNorm, rotary positions, grouped-query attention, SwiGLU) and
`gpt2` (LayerNorm, learned positions, GELU). How Hugging Face spells it is `hf_config`'s business.
Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plinth.models.limits import MAX_PARAMETERS, MAX_ROTARY, flag, real, shown, token_id, whole
from plinth.models.rope_scaling import RopeScaling
from plinth.shared.errors import InvalidArgument

Family = Literal["llama", "gpt2"]
_WHERE = "model config"
_SIZES = (
    "vocab_size",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "context",
)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one decoder. Units: tokens for `context`, features for widths."""

    family: Family
    vocab_size: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        self.validate()

    @property
    def parameters(self) -> int:
        """How many weights the maps and tables hold; norms and biases are not counted."""
        d, queries, keys = (
            self.hidden,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        attention = 2 * d * (queries + keys)
        mlp = (3 if self.family == "llama" else 2) * d * self.intermediate
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        if self.family == "gpt2":
            tables += self.context
        return tables * d + self.layers * (attention + mlp)

    def validate(self) -> None:
        """Raise InvalidArgument naming the first field that cannot be right."""
        if self.family not in ("llama", "gpt2"):
            raise InvalidArgument(
                f"{_WHERE}: family {shown(self.family)} is unknown, use 'llama' or 'gpt2'",
                field="family",
            )
        for field in _SIZES:
            whole(getattr(self, field), field, where=_WHERE)
        for field in ("norm_eps", "rope_theta"):
            real(getattr(self, field), field, where=_WHERE)
        for field in ("tie_embeddings", "attention_bias", "mlp_bias"):
            flag(getattr(self, field), where=_WHERE, key=field)
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise InvalidArgument(
                f"{_WHERE}: rope_scaling is {shown(self.rope_scaling)}, must be a RopeScaling",
                field="rope_scaling",
            )
        self._check_ids()
        self._check_heads()
        self._check_memory()

    def _check_ids(self) -> None:
        if not isinstance(self.eos_ids, tuple):
            raise InvalidArgument(
                f"{_WHERE}: eos_ids is {shown(self.eos_ids)}, must be a tuple of tokens' ids",
                field="eos_ids",
            )
        named = [("bos_id", self.bos_id), ("pad_id", self.pad_id)]
        named += [("eos_ids", value) for value in self.eos_ids]
        for field, value in named:
            if value is None and field != "eos_ids":
                continue
            if not 0 <= token_id(value, where=_WHERE, key=field) < self.vocab_size:
                raise InvalidArgument(
                    f"{_WHERE}: {field} {shown(value)} is outside the vocabulary, vocab_size "
                    f"is {self.vocab_size}",
                    field=field,
                )

    def _check_heads(self) -> None:
        if self.heads % self.kv_heads:
            raise InvalidArgument(
                f"{_WHERE}: {self.heads} heads cannot share kv_heads {self.kv_heads} evenly",
                field="kv_heads",
            )
        if self.family == "gpt2" and self.kv_heads != self.heads:
            raise InvalidArgument(
                f"{_WHERE}: kv_heads is {self.kv_heads}, GPT-2 has as many KV heads as heads, "
                f"{self.heads}",
                field="kv_heads",
            )
        if self.family == "llama" and self.head_dim % 2:
            raise InvalidArgument(
                f"{_WHERE}: rotary positions need an even head_dim, not {self.head_dim}",
                field="head_dim",
            )
        if self.family == "gpt2" and self.heads * self.head_dim != self.hidden:
            raise InvalidArgument(
                f"{_WHERE}: heads {self.heads} × head_dim {self.head_dim} is not hidden "
                f"{self.hidden}",
                field="heads",
            )

    def _check_memory(self) -> None:
        if self.parameters > MAX_PARAMETERS:
            sizes = ", ".join(f"{field} {getattr(self, field)}" for field in _SIZES)
            raise InvalidArgument(
                f"{_WHERE}: {sizes} ask for {self.parameters:,} weights, more than "
                f"{MAX_PARAMETERS:,}",
                field="layers",
            )
        if self.family == "llama" and self.context * self.head_dim > MAX_ROTARY:
            raise InvalidArgument(
                f"{_WHERE}: context {self.context} with head_dim {self.head_dim} asks for rotary "
                f"tables of {self.context * self.head_dim:,} numbers, more than {MAX_ROTARY:,}",
                field="context",
            )
