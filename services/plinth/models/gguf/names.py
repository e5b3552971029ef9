"""What llama.cpp's converter calls a decoder's tensors, and how it lays their rows out.

The names are those of gguf-py's constants.py (MODEL_TENSOR); which of them a family has follows
from its parts. What the converter did to the rows is undone here: see conversion/ in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from plinth.models.config import ModelConfig
from plinth.models.families.family import GgufForm
from plinth.models.families.names import Names
from plinth.shared.errors import InvalidArgument

Floats = NDArray[np.float32]

_PARTS = {
    "attn_norm": "before_attention",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_qkv": "qkv",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "attn_output": "o",
    "post_attention_norm": "after_attention",
    "ffn_norm": "before_mlp",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "post_ffw_norm": "after_mlp",
    "ffn_gate_inp": "router",
}
_STACKS = {"ffn_gate_exps": "gate", "ffn_up_exps": "up", "ffn_down_exps": "down"}
_SUFFIXES = ("weight", "bias")


def canonical_tensors(
    name: str, values: Floats, config: ModelConfig, names: Names, form: GgufForm
) -> Iterator[tuple[str, Floats]]:
    """A stored tensor under its canonical name, its rows in canonical order; a stack of experts'
    maps gives one each. InvalidArgument for a name that the family has no part for."""
    part, _, suffix = name.rpartition(".")
    layer, part = _layer_and_part(part)
    if layer is not None and part in _STACKS and suffix == "weight":
        yield from _experts(layer, _STACKS[part], values, names)
        return
    path = _path(layer, part, names)
    if path is None or suffix not in _SUFFIXES:
        raise InvalidArgument(f"tensor {name!r} has no place in this decoder")
    canonical = f"{path}.{suffix}"
    if form.paired and part in ("attn_q", "attn_k"):
        values = unpermute(values, config.heads if part == "attn_q" else config.kv_heads)
    if part == "attn_qkv" and names.fused_rows == "heads":
        values = by_head(values, config.heads)
    if config.norm_offset and part.endswith("_norm"):
        values = values - np.float32(1)  # the converter added it to every gain
    yield canonical, values


def _layer_and_part(part: str) -> tuple[str | None, str]:
    if not part.startswith("blk."):
        return None, part
    _, layer, rest = f"{part}..".split(".", 2)
    return layer, rest.removesuffix("..")


def _path(layer: str | None, part: str, names: Names) -> str | None:
    """Where a part stands in the checkpoint, without its suffix; None: it has none."""
    if layer is None:
        once = {
            "token_embd": names.embedding,
            "position_embd": names.positions,
            "output_norm": names.last_norm,
            "output": names.head,
        }
        return once.get(part) or None
    ours = _PARTS.get(part, "")
    if ours == "up" and "gate_up" in names.parts:
        ours = "gate_up"  # the converter keeps a fused map, under the name of the other
    place = names.parts.get(ours)
    return None if place is None else f"{names.layer.format(layer)}.{place}"


def _experts(layer: str, kind: str, stacked: Floats, names: Names) -> Iterator[tuple[str, Floats]]:
    """stacked: [experts, out, in]."""
    place = names.parts.get(f"expert_{kind}")
    if place is None or stacked.ndim != 3:
        raise InvalidArgument(
            f"tensor 'blk.{layer}.ffn_{kind}_exps.weight' has no place in this decoder"
        )
    for number, values in enumerate(stacked):
        yield f"{names.layer.format(layer)}.{place.format(number)}.weight", values


def unpermute(values: Floats, heads: int) -> Floats:
    """Undo llama.cpp's order of the rows of q and k, which puts rotary pairs side by side.

    values: [heads * head_dim, …] with pairs (0, 1), (2, 3), …; the result has Hugging Face's pairs
    (0, half), (1, half + 1), …
    """
    rows = values.shape[0]
    if rows % (2 * heads):
        raise InvalidArgument(f"{rows} rows of q or k do not divide into {heads} heads of pairs")
    pairs = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def by_head(values: Floats, heads: int) -> Floats:
    """All queries, all keys, all values become the three of each head side by side.

    values: [3 * heads * head_dim, …].
    """
    rows = values.shape[0]
    if rows % (3 * heads):
        raise InvalidArgument(f"{rows} rows of q, k and v do not divide into {heads} heads")
    parts = values.reshape(3, heads, rows // heads // 3, *values.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(0, 1).reshape(values.shape))
