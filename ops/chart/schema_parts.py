"""What JSON Schemas of values are made of."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {"type": "object"}
ITEMS: Schema = {"type": "array", "items": {"type": "object"}}
WORDS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
# Keys and values, as the API server takes them (apimachinery's pkg/util/validation).
LABELS: Schema = {
    "type": "object",
    "patternProperties": {
        f"^({_PREFIX}/)?{_LABEL}$": {"type": "string", "pattern": f"^({_LABEL})?$"}
    },
    "additionalProperties": False,  # a pattern of names would be told without its place
}
NAME: Schema = {"type": "string", "pattern": "^$|^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
QUANTITY: Schema = {
    "type": ["string", "integer", "number"],
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
}


def at_least(low: int, high: int | None = None) -> Schema:
    """An integer from `low` to `high`."""
    return {"type": "integer", "minimum": low, **({} if high is None else {"maximum": high})}


def choice(*values: str) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(values)}


def closed(**properties: Schema) -> Schema:
    """An object with these keys and no other."""
    return {"type": "object", "properties": properties, "additionalProperties": False}
