"""Where the tensors of a decoder stand in its checkpoint, by the parts of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# How queries, keys and values lie in one fused map's rows: all queries, then all keys, then all
# values; or the three of each head side by side.
FusedRows = Literal["parts", "heads"]


@dataclass(frozen=True)
class Names:
    """Full names of what there is once, and each layer's own names of its parts, in the order in
    which a checkpoint's modules were made.

    Parts of a layer: `before_attention`, `q`, `k`, `v` or `qkv`, `q_norm`, `k_norm`, `o`,
    `after_attention`, `before_mlp`, `gate`, `up` or `gate_up`, `down`, `after_mlp`; of a mixture
    `router`, and with an expert's number for `{}` `expert_gate`, `expert_up`, `expert_down`.
    """

    embedding: str
    layer: str  # with the layer's number for {}
    last_norm: str
    parts: Mapping[str, str]
    head: str = "lm_head"
    positions: str = ""
    fused_rows: FusedRows = "parts"
    # Maps are stored as [in, out] (Conv1D of the first GPT-2).
    turned: bool = False

    @property
    def body(self) -> str:
        """What all but the head stands under, as "model"."""
        return self.embedding.partition(".")[0]
