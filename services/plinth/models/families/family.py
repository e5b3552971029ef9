"""What a family of models is: how its `config.json` reads and writes, what its tensors are called,
what it refuses. It computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families.names import Names
from plinth.models.hf_file import ConfigFile
from plinth.models.hf_rules import KeyRule


@dataclass(frozen=True)
class Family:
    """One entry of the registry.

    read: fields of ModelConfig from the file, but for family and special ids; reading a key is
    what makes it known. write: the keys that `read` reads, but for those of `hf_config.to_hf`.
    new: fields of a model that begins here, for `families.new_config`; a function is one of the
    fields given. inert: keys that say nothing of what is computed, beside those of `hf_keys`. only:
    keys that may stand there at one value.
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
