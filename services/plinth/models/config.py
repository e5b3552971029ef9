"""What a decoder is made of, in one frozen dataclass.

The transformer is written once (`decoder`), of small parts that these fields choose. Which of them
a family of models has, and how its `config.json` says so, is in `families`: a family computes
nothing. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plinth.kernels.specs import Activation
from plinth.models import config_checks
from plinth.models.parts import (
    NO_BIASES,
    Biases,
    Experts,
    LayerKind,
    NormKind,
    NormPlaces,
    QkNorm,
)
from plinth.models.rope import Rope

__all__ = ["Biases", "Experts", "LayerKind", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one decoder. Units: tokens for `context`, features for widths.

    Raises InvalidArgument, which names the first field that cannot be right.
    """

    family: str
    vocab_size: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    # RMSNorm or LayerNorm; where they stand around attention and MLP.
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    # A gain is 1 + what is stored (Gemma).
    norm_offset: bool = False
    norms: NormPlaces = "before"
    # Attention and MLP read the same residual stream, and both are added (GPT-J, GPT-NeoX).
    parallel: bool = False
    # Of queries and keys: each head by itself, or all of them at once.
    qk_norm: QkNorm = "none"
    # A table of positions is added to the embeddings (GPT-2).
    learned_positions: bool = False
    # Rotary positions; a layer's kind says which of them it has.
    ropes: tuple[Rope, ...] = (Rope(),)
    # One for each layer; empty: all are alike, with experts if the model has any.
    layer_kinds: tuple[LayerKind, ...] = ()
    biases: Biases = NO_BIASES
    # act(gate) * up (Shazeer 2020), or act alone.
    gated: bool = True
    activation: Activation = "silu"
    experts: Experts | None = None
    # What scores of attention are multiplied by; 0: head_dim^-0.5.
    attention_scale: float = 0.0
    # cap * tanh(x / cap) of attention's scores, and of the logits; 0: as they are.
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    # Embeddings, what attention and MLP add to the residual stream, and logits are multiplied by
    # these.
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    tie_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        config_checks.check(self)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Each layer's kind."""
        kind = LayerKind(rope=0 if self.ropes else None, experts=self.experts is not None)
        return self.layer_kinds or (kind,) * self.layers

    @property
    def long_after(self) -> int:
        """The length, in tokens, above which sequences turn otherwise than shorter ones
        (`RopeScaling.by_length`); 0 where all turn alike."""
        scalings = [rope.scaling for rope in self.ropes if rope.scaling is not None]
        return max((s.original_context for s in scalings if s.by_length), default=0)

    def rope_offset(self, length: int) -> int:
        """What is added to all positions of a sequence of that many tokens, which finds the rows
        of the rotary tables by which it turns.

        The length is a property of the sequence as a whole, those tokens included that it may yet
        get: all of it turns alike, however it is cut.
        """
        return self.context if 0 < self.long_after < min(length, self.context) else 0

    @property
    def scale(self) -> float:
        """What scores of attention are multiplied by."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def parameters(self) -> int:
        """How many weights the maps and tables hold; norms and biases are not counted."""
        d, queries, keys = (
            self.hidden,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        attention = 2 * d * (queries + keys)
        maps = 3 if self.gated else 2
        sparse = sum(kind.experts for kind in self.kinds)
        mlps = (self.layers - sparse) * maps * d * self.intermediate
        if self.experts is not None:
            mlps += sparse * self.experts.count * (maps * d * self.experts.width + d)
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        if self.learned_positions:
            tables += self.context
        return tables * d + self.layers * attention + mlps

    def to_json(self) -> dict[str, Any]:
        """As values of JSON, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Raises InvalidArgument as the constructor does, TypeError for a field that is unknown."""
        read = dict(fields)
        if "ropes" in read:
            read["ropes"] = tuple(Rope.from_json(rope) for rope in read["ropes"])
        if "layer_kinds" in read:
            read["layer_kinds"] = tuple(LayerKind(**kind) for kind in read["layer_kinds"])
        if "biases" in read:
            read["biases"] = Biases(**read["biases"])
        if read.get("experts") is not None:
            read["experts"] = Experts(**read["experts"])
        if "eos_ids" in read:
            read["eos_ids"] = tuple(read["eos_ids"])
        return cls(**read)
