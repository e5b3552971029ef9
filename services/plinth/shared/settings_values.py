"""The values of settings, one by one: as text, as variables, and with what is secret masked.

Knows the shape of the settings, not their meaning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

PREFIX = "PLINTH_"


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")


def leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every setting, in the order of declaration."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def masked(value: object) -> str:
    """A setting's value to show."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, str) and is_secret(value):
        parts = urlsplit(value)
        return value.replace(f":{parts.password}@", ":********@", 1)
    return spelled(value)


def spelled(value: object) -> str:
    """A setting's value as a variable holds it, secrets too."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return os.pathsep.join(str(part) for part in value)
    return "" if value is None else str(value)


def is_secret(value: object) -> bool:
    """Whether a setting's value must not be shown: a secret, or a URL with a password."""
    if isinstance(value, SecretStr):
        return True
    return isinstance(value, str) and "://" in value and urlsplit(value).password is not None
