"""Names that settings sources use, checked against the settings' fields.

pydantic-settings ignores unknown environment variables and its messages don't say what would be
right; both are told here. Knows the shape of the settings, not their meaning.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from plinth.shared.errors import InvalidArgument


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted keys of every leaf field."""
    keys = []
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += keys_of(section, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reject_unknown(values: Mapping[Any, Any], model: type[BaseModel], *, source: str) -> None:
    """InvalidArgument for the first key of `values` that `model` has no field for."""
    keys = keys_of(model)
    sections = {key.rpartition(".")[0] for key in keys if "." in key}
    for key, value in flatten({str(name): value for name, value in values.items()}):
        if key in keys:
            continue
        if key in sections:
            if value is None:
                raise InvalidArgument(f"{source}: {key} is empty; leave it out", field=key)
            raise InvalidArgument(
                f"{source}: {key} is a section and takes a mapping, not {value!r}", field=key
            )
        raise _unknown(f"{source}: unknown setting {key}", key, keys)


def reject_unknown_variables(
    environ: Mapping[str, str], model: type[BaseModel], *, prefix: str, others: Collection[str]
) -> None:
    """The same for environment variables that begin with `prefix`."""
    names = {prefix + key.upper().replace(".", "__") for key in keys_of(model)}
    sections = {name.rpartition("__")[0] for name in names if "__" in name}
    for name in sorted(environ):
        upper = name.upper()
        if upper.startswith(prefix) and upper not in names | sections and name not in others:
            raise _unknown(f"unknown environment variable {name}", upper, [*names, *others])


def _unknown(what: str, key: str, candidates: Collection[str]) -> InvalidArgument:
    near = difflib.get_close_matches(key, sorted(candidates), n=1, cutoff=0.0)
    return InvalidArgument(
        f"{what}; the nearest one is {near[0]}" if near else what,
        reason="SETTING_UNKNOWN",
        field=key,
    )


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses, which only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
