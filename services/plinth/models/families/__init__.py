"""The families of models that Plinth opens, trains, serves and saves; one file each.

A new family is such a file, its line here, and its configurations in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import (
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
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
        gemma2,
        gemma3,
        phi3,
        olmo2,
        smollm3,
        gpt2,
        gpt_neox,
        mixtral,
        qwen3_moe,
        granite,
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


def family_of_gguf(architecture: str, *, experts: bool) -> Family:
    """By the `general.architecture` of a GGUF file, and whether it has a mixture of experts.
    InvalidArgument for one that is none of a family, with those there are."""
    forms = [(family, family.gguf) for family in FAMILIES.values() if family.gguf is not None]
    for family, form in forms:
        if (form.architecture, form.experts) == (architecture, experts):
            return family
    known = dict.fromkeys(
        f"{form.architecture!r}{' with experts' if form.experts else ''}" for _, form in forms
    )
    kind = "with experts " if experts else ""
    raise InvalidArgument(
        f"architecture {shown(architecture)} {kind}is unknown; {', '.join(known)} can be opened",
        field="general.architecture",
    )


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
