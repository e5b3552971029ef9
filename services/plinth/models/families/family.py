"""What a family of models is: how its `config.json` reads and writes, what its tensors are called,
what it refuses. It computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families.names import Names
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rules import KeyRule


@dataclass(frozen=True)
class GgufForm:
    """How llama.cpp's files have a family.

    architecture: their `general.architecture`. read: fields of ModelConfig from the metadata, but
    for family, vocabulary, ids and whether the head is tied; reading a key is what makes it known.
    experts: whether the files have a mixture of experts, where two families are one architecture.
    paired: rows of queries and keys stand so that the two features of a rotary pair are side by
    side.
    """

    architecture: str
    read: Callable[[GgufFile], dict[str, Any]]
    experts: bool = False
    paired: bool = False


@dataclass(frozen=True)
class Family:
    """One entry of the registry.

    read: fields of ModelConfig from the file, but for family and special ids; reading a key is
    what makes it known. write: the keys that `read` reads, but for those of `hf.config.to_hf`.
    classifier: the class of its reward models, whether or not transformers has it. new: fields of
    a model that begins here, for `families.new_config`; a function is one of the fields given.
    inert: keys that say nothing of what is computed, beside those of `hf.keys`. only: keys that may
    stand there at one value. gguf: None where llama.cpp has no files of it, or has them as those of
    the family `gguf_as`.
    """

    name: str
    architecture: str
    classifier: str
    names: Names
    read: Callable[[ConfigFile], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    new: Mapping[str, Any] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    only: Mapping[str, KeyRule] = field(default_factory=dict)
    gguf: GgufForm | None = None
    gguf_as: str = ""
