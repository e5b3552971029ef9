"""GGUF files: their weights in fp32 under canonical names, and the configuration they imply.

Reads through the `gguf` package; dequantises tensor by tensor. What llama.cpp's converter did to
the weights is undone (rows of q and k, permuted for its rotary pairs). Anything unknown is an
error that names the file and the tensor. The vocabulary is `gguf_vocabulary`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from plinth.models.config import ModelConfig, RopeScaling
from plinth.models.layers import rope_frequencies
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

# K-quant files hold Q5_0, Q5_1, Q8_0 and IQ4_NL where a row is no multiple of 256.
READABLE = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split()  # noqa: SIM905
)
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


class _CheckedReader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, which takes a file at its word, with the word checked.

    Past the end of the file numpy's slices are silently empty: a cut-off file then fails somewhere
    without saying where, and a hostile one (an array said to hold 2**60 numbers) never ends.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise DataLoss(f"the header says {end:,} bytes, the file ends at {len(self.data):,}")
        return super()._get(offset, dtype, count, override_order)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, name_bytes, _, dims, raw_type, offset = field.parts
            name = bytes(name_bytes).decode("utf-8")
            try:
                kind = gguf.GGMLQuantizationType(int(raw_type[0]))
            except ValueError as error:
                raise InvalidArgument(
                    f"tensor {name!r} has the unknown type {int(raw_type[0])}"
                ) from error
            if kind.name not in READABLE:
                raise InvalidArgument(
                    f"tensor {name!r} is stored as {kind.name}, which cannot be read; "
                    f"these can: {', '.join(READABLE)}"
                )
            block, size = gguf.GGML_QUANT_SIZES[kind]
            elements = int(np.prod(dims, dtype=object))
            end = start_offs + int(offset[0]) + elements // block * size
            if end > len(self.data):
                raise DataLoss(
                    f"cut off: tensor {name!r} ends at byte {end:,}, the file at {len(self.data):,}"
                )
        super()._build_tensors(start_offs, fields)


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
        sizes = self._llama_sizes() if self.architecture == "llama" else self._gpt2_sizes()
        eos = [self.value(f"tokenizer.ggml.{n}_token_id", int, None) for n in ("eos", "eot")]
        return ModelConfig(
            **sizes,
            family=self.architecture,  # type: ignore[arg-type]
            layers=self._size("block_count"),
            hidden=self._size("embedding_length"),
            heads=self._size("attention.head_count"),
            context=self._size("context_length"),
            vocab_size=int(self._tensor("token_embd.weight").shape[1]),
            tie_embeddings=self._is_tied(),
            bos_id=self.value("tokenizer.ggml.bos_token_id", int, None),
            eos_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
            pad_id=self.value("tokenizer.ggml.padding_token_id", int, None),
        )

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

    def _llama_sizes(self) -> dict[str, Any]:
        heads, hidden = self._size("attention.head_count"), self._size("embedding_length")
        if self._size("expert_count", 0):
            raise InvalidArgument(f"{self.path}: mixtures of experts cannot be opened")
        head_dim = self._size("attention.key_length", hidden // max(heads, 1))
        for key in ("rope.dimension_count", "attention.value_length"):
            if self._size(key, head_dim) != head_dim:
                raise InvalidArgument(f"{self.path}: {key} differs from head size {head_dim}")
        sizes = {
            "kv_heads": self._size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate": self._size("feed_forward_length"),
            "norm_eps": _decimal(self._metadata("attention.layer_norm_rms_epsilon", float)),
            "rope_theta": _decimal(self._metadata("rope.freq_base", float, 10000.0)),
            "attention_bias": "blk.0.attn_q.bias" in self._stored,
            "mlp_bias": "blk.0.ffn_up.bias" in self._stored,
        }
        return sizes | {"rope_scaling": self._rope_scaling(head_dim, sizes["rope_theta"])}

    def _gpt2_sizes(self) -> dict[str, Any]:
        heads, hidden = self._size("attention.head_count"), self._size("embedding_length")
        return {
            "kv_heads": heads,
            "head_dim": hidden // max(heads, 1),
            "intermediate": self._size("feed_forward_length"),
            "norm_eps": _decimal(self._metadata("attention.layer_norm_epsilon", float)),
            "attention_bias": True,
            "mlp_bias": True,
        }

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        kind = self._metadata("rope.scaling.type", str, "none")
        if kind == "linear":
            return RopeScaling("linear", float(self._metadata("rope.scaling.factor", float)))
        if kind != "none":
            raise InvalidArgument(
                f"{self.path}: rope scaling {kind!r} is unknown; 'none' and 'linear' work",
                field="rope.scaling.type",
            )
        if _ROPE_FACTORS not in self._stored:
            return None
        # The converter keeps Llama 3.1's rule only as its result, one divisor per frequency.
        divisors = np.array(self._stored[_ROPE_FACTORS].data, dtype=np.float32)
        scaling = RopeScaling("llama3", factor=float(divisors.max()))
        plain, scaled = (_frequencies(head_dim, theta, s) for s in (None, scaling))
        if not np.allclose(plain / scaled, divisors, rtol=1e-3):
            raise InvalidArgument(f"{self.path}: tensor {_ROPE_FACTORS!r} is not Llama 3.1's rule")
        return scaling

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
            _, layer, part = part.split(".", 2)
            prefix = f"{layers}.{layer}."
        if part not in names or suffix not in ("weight", "bias"):
            raise InvalidArgument(f"{self.path}: tensor {name!r} has no place in this decoder")
        return f"{prefix}{names[part]}.{suffix}"

    def _tensor(self, name: str) -> Any:
        if name not in self._stored:
            raise InvalidArgument(f"{self.path}: tensor {name!r} is missing")
        return self._stored[name]

    def _metadata(self, key: str, kind: type, default: Any = ...) -> Any:
        return self.value(f"{self.architecture}.{key}", kind, default)

    def _size(self, key: str, default: Any = ...) -> int:
        return int(self._metadata(key, int, default))


def open_reader(path: Path) -> Any:
    """A reader of `path`. Raises NotFound, InvalidArgument (unknown types), DataLoss (cut off)."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    if path.stat().st_size < 24:
        raise DataLoss(f"{path}: cut off: {path.stat().st_size} bytes hold no GGUF header")
    try:
        reader = _CheckedReader(path)
    except (DataLoss, InvalidArgument) as error:
        raise type(error)(f"{path}: {error.message}", reason=error.reason) from error
    except (ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise InvalidArgument(f"{path}: not a GGUF file that can be read ({error})") from error
    if reader.byte_order != "I":
        raise InvalidArgument(f"{path}: written for a machine of the other byte order")
    return reader


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
    config = ModelConfig(
        "llama", 1, 1, head_dim, 1, 1, head_dim, 1, 1, rope_theta=theta, rope_scaling=scaling
    )
    return rope_frequencies(config).numpy()
