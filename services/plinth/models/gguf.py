"""GGUF files: their weights in fp32 under canonical names, and the configuration they imply.

Reads through the `gguf` package; dequantises tensor by tensor. What llama.cpp's converter did to
the weights is undone (rows of q and k, permuted for its rotary pairs). Anything unknown is an
error that names the file and the tensor. The vocabulary is `gguf_vocabulary`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from plinth.models.config import Biases, ModelConfig
from plinth.models.families import new_config
from plinth.models.gguf_keys import check_keys
from plinth.models.gguf_reader import open_reader
from plinth.models.limits import real, whole
from plinth.models.rope import Rope, RopeScaling
from plinth.models.rotary import frequencies
from plinth.shared.errors import DataLoss, InvalidArgument

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_FAMILIES = {"llama": (_LLAMA, "model.layers"), "gpt2": (_GPT2, "transformer.h")}
_ROPE_FACTORS = "rope_freqs.weight"
_NARROW = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
PADDING = "tokenizer.ggml.padding_token_id"
# Field of ModelConfig → metadata key under the architecture's name.
_KEYS = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate": "feed_forward_length",
    "context": "context_length",
    "rope_theta": "rope.freq_base",
}


class GgufModel:
    """One opened GGUF file. Raises what `open_reader` raises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = open_reader(path)
        self.architecture = str(self.value("general.architecture", str))
        if self.architecture not in _FAMILIES:
            raise InvalidArgument(
                f"{path}: architecture {self.architecture!r} is unknown; "
                f"{' and '.join(_FAMILIES)} can be opened",
                field="general.architecture",
            )
        if self.value("split.count", int, 1) > 1:
            raise InvalidArgument(f"{path}: one part of several; merge them (gguf-split --merge)")
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}

    def value(self, key: str, kind: type, default: Any = ...) -> Any:
        """A metadata value of the given type; InvalidArgument when it is another or missing."""
        field = self._reader.get_field(key)
        if field is None:
            if default is ...:
                raise InvalidArgument(f"{self.path}: metadata {key!r} is missing", field=key)
            return default
        try:
            value = field.contents()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{self.path}: metadata {key!r} is not UTF-8") from error
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidArgument(
                f"{self.path}: metadata {key!r} is {type(value).__name__}, not {kind.__name__}",
                field=key,
            )
        return value

    def config(self) -> ModelConfig:
        """The decoder's shape, from metadata and from the shapes of its tensors."""
        table = self._tensor("token_embd.weight").shape
        if len(table) != 2:
            raise InvalidArgument(f"{self.path}: tensor 'token_embd.weight' has {len(table)} axes")
        sizes = self._sizes() | {
            "family": self.architecture,
            "vocab_size": int(table[1]),
            "tie_embeddings": self._is_tied(),
            "bos_id": self.value("tokenizer.ggml.bos_token_id", int, None),
            "eos_ids": self._ends(int(table[1])),
            "pad_id": self._padding(int(table[1])),
        }
        fields = self._reader.fields
        check_keys(
            {key: field.contents for key, field in fields.items()},
            self.architecture,
            str(self.path),
            head_dim=sizes["head_dim"],
            context=sizes["context"],
        )
        try:
            return new_config(**sizes)
        except InvalidArgument as error:
            key = self._named(error.field)
            raise InvalidArgument(f"{self.path}: {key}: {error.message}", field=key) from error

    def _padding(self, vocab_size: int) -> int | None:
        value = self.value(PADDING, int, None)
        return value if value is not None and 0 <= value < vocab_size else None

    def _ends(self, vocab_size: int) -> tuple[int, ...]:
        found = []
        for name in ("eos", "eot"):
            key = f"tokenizer.ggml.{name}_token_id"
            value = self.value(key, int, None)
            if value is not None and not 0 <= value < vocab_size:
                raise InvalidArgument(
                    f"{self.path}: {key} is {value}, outside the vocabulary of {vocab_size}",
                    field=key,
                )
            found += [] if value is None else [value]
        return tuple(dict.fromkeys(found))

    def _named(self, field: str) -> str:
        ids = {"bos_id": "bos_token_id", "pad_id": "padding_token_id"}
        if field in ids:
            return f"tokenizer.ggml.{ids[field]}"
        return f"{self.architecture}.{_KEYS[field]}" if field in _KEYS else field

    def tensors(self, config: ModelConfig) -> dict[str, Tensor]:
        """All weights, fp32, canonical names, maps as [out, in]."""
        tied = {"output.weight"} if config.tie_embeddings else set()
        weights: dict[str, Tensor] = {}
        for name, stored in self._stored.items():
            if name in tied or name == _ROPE_FACTORS:
                continue
            canonical = self._canonical_name(name)
            values = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
            if not np.isfinite(values).all():
                raise DataLoss(f"{self.path}: tensor {name!r} holds NaN or infinity")
            if self.architecture == "llama" and ".attn_q." in name:
                values = unpermute(values, config.heads)
            elif self.architecture == "llama" and ".attn_k." in name:
                values = unpermute(values, config.kv_heads)
            weights[canonical] = torch.from_numpy(values)
        return weights

    def dtype(self) -> torch.dtype:
        """What the file's maps are all stored in, if that is fp16 or bf16; else float32."""
        kinds = {tensor.tensor_type for tensor in self._stored.values() if len(tensor.shape) > 1}
        return _NARROW.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def _sizes(self) -> dict[str, Any]:
        sizes: dict[str, Any] = {
            field: self._size(field) for field in ("layers", "hidden", "heads", "context")
        }
        sizes["intermediate"] = self._size("intermediate")
        sizes["kv_heads"] = self._size("kv_heads", sizes["heads"])
        if sizes["hidden"] < sizes["heads"]:
            raise InvalidArgument(
                f"{self.path}: {self._named('hidden')} is {sizes['hidden']}, fewer features than "
                f"{self._named('heads')}, {sizes['heads']}",
                field=self._named("hidden"),
            )
        sizes["head_dim"] = self._size("head_dim", sizes["hidden"] // sizes["heads"])
        for key in ("rope.dimension_count", "attention.value_length"):
            if (found := self._metadata(key, int, sizes["head_dim"])) != sizes["head_dim"]:
                raise InvalidArgument(
                    f"{self.path}: {self.architecture}.{key} is {found}, must be the head's size, "
                    f"{sizes['head_dim']} ({self._named('head_dim')}, or {self._named('hidden')} "
                    f"over {self._named('heads')})",
                    field=f"{self.architecture}.{key}",
                )
        if self.architecture == "gpt2":
            eps = self._number("norm_eps", "attention.layer_norm_epsilon")
            return sizes | {"norm_eps": eps}
        theta = self._number("rope_theta", "rope.freq_base", 10000.0)
        bias, mlp = (f"blk.0.{name}.bias" in self._stored for name in ("attn_q", "ffn_up"))
        return sizes | {
            "norm_eps": self._number("norm_eps", "attention.layer_norm_rms_epsilon"),
            "ropes": (Rope(theta, 0, self._rope_scaling(sizes["head_dim"], theta)),),
            "biases": Biases(bias, bias, bias, bias, mlp),
        }

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        """As llama.cpp reads it (src/llama-model.cpp, load_hparams): without a type a factor is
        linear, an older file calls it rope.scale_linear, and 0 is none."""
        kind = self._metadata("rope.scaling.type", str, "linear")
        if kind not in ("none", "linear"):
            raise InvalidArgument(
                f"{self.path}: {self.architecture}.rope.scaling.type {kind!r} is unknown; 'none' "
                "and 'linear' work",
                field="rope.scaling.type",
            )
        older = self._metadata("rope.scale_linear", float, 0.0)
        factor = self._metadata("rope.scaling.factor", float, older)
        stretched = kind == "linear" and factor not in (0.0, 1.0)
        if _ROPE_FACTORS in self._stored:
            if stretched:
                raise InvalidArgument(
                    f"{self.path}: both {self.architecture}.rope.scaling.factor ({factor}) and "
                    f"tensor {_ROPE_FACTORS!r} scale the rotary positions; only one of them works"
                )
            return self._llama3_scaling(head_dim, theta)
        if not stretched:
            return None
        key = "rope.scaling.factor" if older != factor else "rope.scale_linear"
        name = f"{self.architecture}.{key}"
        return RopeScaling("linear", _decimal(real(factor, "factor", where=self._where, key=name)))

    def _llama3_scaling(self, head_dim: int, theta: float) -> RopeScaling:
        # The converter keeps Llama 3.1's rule only as its result, one divisor per frequency.
        divisors = np.array(self._stored[_ROPE_FACTORS].data, dtype=np.float32)
        largest = float(divisors.max()) if divisors.shape == (head_dim // 2,) else 0.0
        if largest >= 1:  # and so no NaN, nor other shape
            real(largest, "factor", where=self._where, key=f"tensor {_ROPE_FACTORS!r}")
            scaling = RopeScaling("llama3", factor=largest)
            plain, scaled = (_frequencies(head_dim, theta, s) for s in (None, scaling))
            if np.allclose(plain / scaled, divisors, rtol=1e-3):
                return scaling
        raise InvalidArgument(f"{self.path}: tensor {_ROPE_FACTORS!r} is not Llama 3.1's rule")

    def _is_tied(self) -> bool:
        if "output.weight" not in self._stored:
            return True
        head, embedding = self._stored["output.weight"], self._tensor("token_embd.weight")
        # GPT-2 files made by older converters hold the table twice.
        return head.tensor_type == embedding.tensor_type and np.array_equal(
            head.data, embedding.data
        )

    def _canonical_name(self, name: str) -> str:
        names, layers = _FAMILIES[self.architecture]
        part, _, suffix = name.rpartition(".")
        prefix = ""
        if part.startswith("blk."):
            _, layer, part = f"{part}..".split(".", 2)
            prefix, part = f"{layers}.{layer}.", part.removesuffix("..")
        if part not in names or suffix not in ("weight", "bias"):
            raise InvalidArgument(f"{self.path}: tensor {name!r} has no place in this decoder")
        return f"{prefix}{names[part]}.{suffix}"

    def _tensor(self, name: str) -> Any:
        if name not in self._stored:
            raise InvalidArgument(f"{self.path}: tensor {name!r} is missing")
        return self._stored[name]

    def _metadata(self, key: str, kind: type, default: Any = ...) -> Any:
        return self.value(f"{self.architecture}.{key}", kind, default)

    @property
    def _where(self) -> str:
        return str(self.path)

    def _size(self, field: str, default: Any = ...) -> int:
        key = f"{self.architecture}.{_KEYS[field]}"
        return whole(self.value(key, int, default), field, where=self._where, key=key)

    def _number(self, field: str, key: str, default: Any = ...) -> float:
        name = f"{self.architecture}.{key}"
        return _decimal(real(self.value(name, float, default), field, where=self._where, key=name))


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of q and k, which puts rotary pairs side by side.

    values: [heads * head_dim, …] with pairs (0, 1), (2, 3), …; the result has Hugging Face's pairs
    (0, half), (1, half + 1), …
    """
    rows = values.shape[0]
    if rows % (2 * heads):
        raise InvalidArgument(f"{rows} rows of q or k do not divide into {heads} heads of pairs")
    pairs = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _decimal(value: float) -> float:
    """The short decimal that was rounded to fp32 in the file: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    return frequencies(Rope(theta, 0, scaling), head_dim, 1).numpy()
