"""Which metadata keys under an architecture's name a GGUF file may have, and why.

What llama.cpp reads for an architecture is in its src/llama-model.cpp and src/models/, the names
are in src/llama-arch.cpp. A key is read by `gguf`; or inert; or inert at certain values. Any other
might change the mathematics, and is an error with its name. Keys of other prefixes (general,
tokenizer, split, quantize) say nothing of what a decoder computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument

_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
}
# The tensors tell the vocabulary; pooling is for embeddings; the original context is yarn's.
_INERT = {
    "vocab_size",
    "pooling_type",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
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
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    # The order of rows in q and k that `unpermute` undoes; "reference" is the format's default.
    "tensor_data_layout": ("Meta AI original pth", "reference"),
}


def check_keys(
    metadata: Mapping[str, Callable[[], Any]],
    architecture: str,
    where: str,
    *,
    head_dim: int,
    context: int,
) -> None:
    """Raise InvalidArgument for the first key that might change what the decoder computes.

    metadata: key → a function that decodes its value (a vocabulary's would take long).
    """
    prefix = f"{architecture}."
    for key, decode in metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _READ | _INERT:
            continue
        value = decode()
        if name == "attention.scale":
            right = _is_number(value) and (value == 0 or abs(value * head_dim**0.5 - 1) < 1e-5)
            wanted = f"{head_dim**-0.5:.6g}, one over the root of the head's size, or 0"
        elif name == "attention.sliding_window":
            right = _is_number(value) and (value == 0 or value >= context)
            wanted = f"0, or no smaller than the context, {context}"
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
