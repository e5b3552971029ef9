"""Which metadata keys under an architecture's name a GGUF file may have, and why.

What llama.cpp reads for an architecture is in its src/llama-model.cpp and src/models/, the names
are in src/llama-arch.cpp. A key is read by `gguf`; or inert; or inert at certain values. Any other
might change the mathematics, and is an error with its name. Keys of other prefixes (general,
tokenizer, split, quantize) say nothing of what a decoder computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.gguf.file import GgufFile
from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument

# The tensors tell the vocabulary; pooling is for embeddings.
_INERT = {"vocab_size", "pooling_type", "rope.scaling.finetuned"}
# 0 and "none" are llama.cpp's ways to say that a thing is not there.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    # The order of rows in q and k that `unpermute` undoes; "reference" is the format's default.
    "tensor_data_layout": ("Meta AI original pth", "reference"),
}


def check_keys(file: GgufFile, config: ModelConfig) -> None:
    """Raise InvalidArgument for the first key that might change what the decoder computes."""
    prefix, where, scale = f"{file.architecture}.", file.where, config.scale
    for key, decode in file.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in file.asked or name in _INERT:
            continue
        value = decode()
        if name == "attention.scale":
            right = _is_number(value) and (value == 0 or abs(value / scale - 1) < 1e-5)
            wanted = f"{scale:.6g}, as scores of the {config.family} are scaled, or 0"
        elif name == "attention.sliding_window":
            right = _is_number(value) and (value == 0 or value >= config.context)
            wanted = f"0, or no smaller than the context, {config.context}"
        elif name == "attention.sliding_window_pattern":
            right = isinstance(value, list) and not any(value)
            wanted = "a list of false"
        elif name in _ONLY:
            right = value in _ONLY[name]
            wanted = " or ".join(repr(allowed) for allowed in _ONLY[name])
        else:
            raise InvalidArgument(
                f"{where}: metadata {shown(key)} (here {shown(value)}) is unknown and might change "
                "what the model computes; remove it if it does not",
                field=key,
            )
        if not right:
            raise InvalidArgument(
                f"{where}: metadata {key!r} is {shown(value)}, which Plinth's decoder does not "
                f"compute; it must be {wanted}",
                field=key,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
