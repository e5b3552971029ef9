"""The families of models that Plinth opens, trains, serves and saves; one file each.

A new family is such a file, its line here, and its configurations in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import (
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from plinth.models.families.family import Family
from plinth.models.families.names import Names
from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        gemma3,
        phi3,
        olmo2,
        smollm3,
        gpt2,
        gpt_neox,
        mixtral,
        qwen3_moe,
    )
}


def family_of(name: str) -> Family:
    """InvalidArgument for a name that is none of a family, with those there are."""
    found = FAMILIES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument(
            f"model config: family {shown(name)} is unknown, use "
            f"{' or '.join(map(repr, FAMILIES))}",
            field="family",
        )
    return found


def family_of_file(config: Mapping[str, Any]) -> Family:
    """By the `model_type` of a config.json."""
    name = config.get("model_type")
    found = FAMILIES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument(
            f"config.json: model_type {shown(name)} is unknown; Plinth opens "
            f"{', '.join(map(repr, FAMILIES))}",
            field="model_type",
        )
    return found


def names_of(family: str) -> Names:
    """The names of its tensors."""
    return family_of(family).names


def new_config(family: str, **fields: Any) -> ModelConfig:
    """Of a model that begins here: what all of the family have in common, and `fields`."""
    new = {
        key: value(fields) if callable(value) else value
        for key, value in family_of(family).new.items()
    }
    return ModelConfig(**{"family": family, **new, **fields})
