"""A GGUF file's metadata as a family reads it: key by key, each with its type and its range.

What was read is remembered, so that a key which nobody asked for is found: it is known not to
matter (`gguf.keys`), or an error. Names are those under the file's architecture. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plinth.models.limits import real, shown, whole
from plinth.shared.errors import InvalidArgument


@dataclass(frozen=True)
class GgufFile:
    """One file's metadata, and what has been read of it.

    where: the file, for messages. metadata: key → a function that decodes its value (a
    vocabulary's would take long). shapes: tensor's name → its axes as the file has them, the
    innermost first. numbers: all of a small tensor.
    """

    where: str
    architecture: str
    metadata: Mapping[str, Callable[[], Any]]
    shapes: Mapping[str, tuple[int, ...]]
    numbers: Callable[[str], list[float]]
    asked: set[str] = field(default_factory=set)
    # Field of ModelConfig → name of the key that it was read from.
    keys: dict[str, str] = field(default_factory=dict)

    def value(self, key: str, kind: type, default: Any = ...) -> Any:
        """Of a whole key, of the given type; InvalidArgument when it is another or missing."""
        if key not in self.metadata:
            if default is ...:
                raise InvalidArgument(f"{self.where}: metadata {key!r} is missing", field=key)
            return default
        try:
            value = self.metadata[key]()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{self.where}: metadata {key!r} is not UTF-8") from error
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidArgument(
                f"{self.where}: metadata {key!r} is {type(value).__name__}, not {kind.__name__}",
                field=key,
            )
        return value

    def full(self, name: str) -> str:
        """The whole key of a name under the architecture."""
        return f"{self.architecture}.{name}"

    def get(self, name: str, kind: type, default: Any = ...) -> Any:
        """`value` under the architecture."""
        self.asked.add(name)
        return self.value(self.full(name), kind, default)

    def size(self, field: str, name: str, default: Any = ...) -> int:
        """A whole number in the range of `field`."""
        self.keys[field] = name
        value = self.get(name, int, default)
        return whole(value, field, where=self.where, key=self.full(name))

    def real(self, field: str, name: str, default: Any = ...) -> float:
        """A number in the range of `field`."""
        self.keys[field] = name
        value = self.get(name, float, default)
        return decimal(real(value, field, where=self.where, key=self.full(name)))

    def optional_real(self, field: str, name: str) -> float:
        """The same; 0.0 where it is missing or 0, which is llama.cpp's word for none."""
        return self.real(field, name) if self.get(name, float, 0.0) else 0.0

    def window(self, default: int = 0) -> int:
        """Tokens that one sees in a layer with a window; 0: there is none. default: where the file
        does not say it."""
        name = "attention.sliding_window"
        if not self.get(name, int, default):
            return 0
        return self.size("window", name, default)

    def has_bias(self, part: str) -> bool:
        """Whether the first layer has one there, as "attn_q"."""
        return f"blk.0.{part}.bias" in self.shapes

    def must_be(self, name: str, value: Any, why: str) -> None:
        """Raise InvalidArgument where the key is there and says something else."""
        if (found := self.get(name, type(value), value)) != value:
            raise InvalidArgument(
                f"{self.where}: {self.full(name)} is {shown(found)}, must be {shown(value)}: {why}",
                field=self.full(name),
            )

    def sizes(self, *, grouped: bool = True) -> dict[str, Any]:
        """What every architecture says of its sizes. grouped: heads may share keys and values."""
        found: dict[str, Any] = {
            "layers": self.size("layers", "block_count"),
            "hidden": self.size("hidden", "embedding_length"),
            "heads": self.size("heads", "attention.head_count"),
            "context": self.size("context", "context_length"),
            "intermediate": self.size("intermediate", "feed_forward_length"),
        }
        hidden, heads = found["hidden"], found["heads"]
        found["kv_heads"] = self.size("kv_heads", "attention.head_count_kv", heads)
        if not grouped:
            self.must_be("attention.head_count_kv", heads, "each head has keys of its own")
        if hidden < heads:
            raise InvalidArgument(
                f"{self.where}: {self.full('embedding_length')} is {hidden}, fewer features than "
                f"{self.full('attention.head_count')}, {heads}",
                field=self.full("embedding_length"),
            )
        head_dim = self.size("head_dim", "attention.key_length", hidden // heads)
        why = (
            f"the head's size ({self.full('attention.key_length')}, or "
            f"{self.full('embedding_length')} over {self.full('attention.head_count')})"
        )
        self.must_be("attention.value_length", head_dim, why)
        return found | {"head_dim": head_dim}


def decimal(value: float) -> float:
    """The short decimal that was rounded to fp32 in the file: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
