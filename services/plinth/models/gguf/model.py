"""GGUF files: their weights in fp32 under canonical names, and the configuration they imply.

Reads through the `gguf` package; dequantises tensor by tensor. Which family a file is of, and what
its metadata mean, is in `families`; what llama.cpp's converter did to the weights is undone in
`gguf.names`. Anything unknown is an error that names the file and the tensor. The vocabulary is
`gguf.vocabulary`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from plinth.models.config import ModelConfig
from plinth.models.families import family_of_gguf
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.keys import check_keys
from plinth.models.gguf.names import canonical_tensors
from plinth.models.gguf.reader import open_reader
from plinth.models.gguf.rope import TENSORS as ROPE_TENSORS
from plinth.models.rope import stretched
from plinth.shared.errors import DataLoss, InvalidArgument

_NARROW = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
PADDING = "tokenizer.ggml.padding_token_id"
# llama.cpp's, where a file with SentencePiece's vocabulary names none (llama_vocab's load).
_SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}


class GgufModel:
    """One opened GGUF file. Raises what `open_reader` raises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = open_reader(path)
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        metadata = {key: field.contents for key, field in reader.fields.items()}
        shapes = {
            name: tuple(int(n) for n in tensor.shape) for name, tensor in self._stored.items()
        }
        file = GgufFile(str(path), "", metadata, shapes, self._numbers)
        self.architecture = str(file.value("general.architecture", str))
        self.file = GgufFile(str(path), self.architecture, metadata, shapes, self._numbers)
        experts = self.file.get("expert_count", int, 0)
        try:
            self.family = family_of_gguf(self.architecture, experts=bool(experts))
        except InvalidArgument as error:
            said = f"{self.file.full('expert_count')} is {experts}: " if experts else ""
            raise InvalidArgument(f"{path}: {said}{error.message}", field=error.field) from error
        if self.value("split.count", int, 1) > 1:
            raise InvalidArgument(f"{path}: one part of several; merge them (gguf-split --merge)")

    def value(self, key: str, kind: type, default: Any = ...) -> Any:
        """A metadata value of the given type; InvalidArgument when it is another or missing."""
        return self.file.value(key, kind, default)

    def special_id(self, name: str) -> int | None:
        """The id of "bos", "eos", "eot", "unknown" or "padding", whether or not a token has it."""
        spelled = self.value("tokenizer.ggml.model", str, "") == "llama"
        default = _SENTENCEPIECE_IDS.get(name) if spelled else None
        found: int | None = self.value(f"tokenizer.ggml.{name}_token_id", int, default)
        return found

    def config(self) -> ModelConfig:
        """The decoder's shape, from metadata and from the shapes of its tensors."""
        table = self._tensor("token_embd.weight").shape
        if len(table) != 2:
            raise InvalidArgument(f"{self.path}: tensor 'token_embd.weight' has {len(table)} axes")
        assert self.family.gguf is not None
        read = self.family.gguf.read(self.file)
        factor = self.file.full("rope.scaling.factor")
        fields = read | {
            "context": stretched(read["ropes"], read["context"], where=str(self.path), key=factor),
            "family": self.family.name,
            "vocab_size": int(table[1]),
            "tie_embeddings": self._is_tied(),
            "bos_id": self.special_id("bos"),
            "eos_ids": self._ends(int(table[1])),
            "pad_id": self._padding(int(table[1])),
        }
        try:
            config = ModelConfig(**fields)
        except InvalidArgument as error:
            key = self._named(error.field)
            raise InvalidArgument(f"{self.path}: {key}: {error.message}", field=key) from error
        check_keys(self.file, config)
        return config

    def _padding(self, vocab_size: int) -> int | None:
        value = self.special_id("padding")
        return value if value is not None and 0 <= value < vocab_size else None

    def _ends(self, vocab_size: int) -> tuple[int, ...]:
        found = []
        for name in ("eos", "eot"):
            value = self.special_id(name)
            if value is not None and not 0 <= value < vocab_size:
                key = f"tokenizer.ggml.{name}_token_id"
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
        return self.file.full(self.file.keys[field]) if field in self.file.keys else field

    def tensors(self, config: ModelConfig) -> dict[str, Tensor]:
        """All weights, fp32, canonical names, maps as [out, in]."""
        form, names = self.family.gguf, self.family.names
        assert form is not None
        passed_by = ROPE_TENSORS | ({"output.weight"} if config.tie_embeddings else set())
        weights: dict[str, Tensor] = {}
        for name, stored in self._stored.items():
            if name in passed_by:
                continue
            values = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
            if not np.isfinite(values).all():
                raise DataLoss(f"{self.path}: tensor {name!r} holds NaN or infinity")
            try:
                for canonical, part in canonical_tensors(name, values, config, names, form):
                    weights[canonical] = torch.from_numpy(part)
            except InvalidArgument as error:
                raise InvalidArgument(f"{self.path}: {error.message}") from error
        return weights

    def dtype(self) -> torch.dtype:
        """What the file's maps are all stored in, if that is fp16 or bf16; else float32."""
        kinds = {tensor.tensor_type for tensor in self._stored.values() if len(tensor.shape) > 1}
        return _NARROW.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def _numbers(self, name: str) -> list[float]:
        stored = self._stored[name]
        values = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        found: list[float] = values.reshape(-1).tolist()
        return found

    def _is_tied(self) -> bool:
        if "output.weight" not in self._stored:
            return True
        head, embedding = self._stored["output.weight"], self._tensor("token_embd.weight")
        # GPT-2 files made by older converters hold the table twice.
        return head.tensor_type == embedding.tensor_type and np.array_equal(
            head.data, embedding.data
        )

    def _tensor(self, name: str) -> Any:
        if name not in self._stored:
            raise InvalidArgument(f"{self.path}: tensor {name!r} is missing")
        return self._stored[name]
