"""A Hugging Face `config.json` as a family reads it: key by key, each with its type and range.

What was read is remembered, so that a key which nobody asked for is found: it is known not to
matter (`hf.keys`), or an error. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plinth.kernels.specs import Activation
from plinth.models.activations import NAMES
from plinth.models.limits import flag, from_json, real, shown, whole
from plinth.shared.errors import InvalidArgument

WHERE = "config.json"


class ConfigFile:
    """The object in the file, and what has been read of it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.asked: set[str] = set()
        # Field of ModelConfig → key that it was read from.
        self.keys: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """What stands there, unchecked."""
        self.asked.add(key)
        return self.content.get(key, default)

    def size(self, field: str, key: str, default: int | None = None) -> int:
        """A whole number in the range of `field`. Without a default the key must be there; with
        one it may be missing or null."""
        value = self.get(key)
        self.keys[field] = key
        if value is None and default is not None:
            return default
        if key not in self.content:
            raise InvalidArgument(f"{WHERE}: {key!r} is missing", field=key)
        return whole(from_json(value), field, where=WHERE, key=key)

    def real(self, field: str, key: str, default: float) -> float:
        """A number in the range of `field`."""
        self.keys[field] = key
        return real(self.get(key, default), field, where=WHERE, key=key)

    def optional_real(self, field: str, key: str, default: float = 0.0) -> float:
        """The same; 0.0 where it is null. default: where it is missing."""
        self.keys[field] = key
        value = self.get(key, default or None)
        return 0.0 if value is None else real(value, field, where=WHERE, key=key)

    def flag(self, key: str, default: bool, field: str = "") -> bool:
        """True or false."""
        if field:
            self.keys[field] = key
        return flag(self.get(key, default), where=WHERE, key=key)

    def activation(self, key: str, default: str) -> Activation:
        """One of `activations.ACTIVATIONS`, by any of the names that files have for it."""
        value = self.get(key, default)
        self.keys["activation"] = key
        if not isinstance(value, str) or value not in NAMES:
            known = " or ".join(map(repr, NAMES))
            raise InvalidArgument(f"{WHERE}: {key} is {shown(value)}, must be {known}", field=key)
        return NAMES[value]

    def head_dim(self, hidden: int, heads: int, key: str) -> int:
        """Of `key`; without it the model's width over the heads, rounded down."""
        if hidden < heads and self.content.get(key) is None:
            raise InvalidArgument(
                f"{WHERE}: {self.keys['hidden']} is {hidden}, fewer features than the {heads} "
                "heads",
                field=self.keys["hidden"],
            )
        return self.size("head_dim", key, max(1, hidden // heads))

    def grouped(self, heads: int, key: str) -> int:
        """KV heads; without the key as many as heads."""
        kv_heads = self.size("kv_heads", key, heads)
        if heads % kv_heads:
            raise InvalidArgument(
                f"{WHERE}: {self.keys['heads']} is {heads}, which does not divide by {key}, "
                f"{kv_heads}",
                field=key,
            )
        return kv_heads

    def divided(self, hidden: int, heads: int) -> int:
        """The width of a head, where the file has no key for it: they share the model's evenly."""
        if hidden % heads:
            raise InvalidArgument(
                f"{WHERE}: {self.keys['hidden']} is {hidden}, which does not divide by "
                f"{self.keys['heads']}, {heads}",
                field=self.keys["heads"],
            )
        return hidden // heads

    def window(self, key: str, default: int = 0) -> int:
        """Tokens that one sees; 0 where it is null: all. default: where it is missing."""
        value = self.get(key, default or None)
        return 0 if value is None else whole(from_json(value), "window", where=WHERE, key=key)

    def words(self, key: str, count: int, allowed: Sequence[str]) -> list[str] | None:
        """A list of `count` words of those allowed; None where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        right = isinstance(value, list) and len(value) == count
        if not right or not all(isinstance(word, str) and word in allowed for word in value):
            raise InvalidArgument(
                f"{WHERE}: {key} is {shown(value)}, must be a list of {count} of "
                f"{' or '.join(map(repr, allowed))}",
                field=key,
            )
        return list(value)
