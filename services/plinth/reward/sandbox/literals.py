"""Python literals as lines of JSON, so that both processes of a sandbox meet in plain values.

Nothing but built-in values comes out of `decode`, whatever was sent: no object whose `__eq__` is
another's code. Standard library only.
"""

from __future__ import annotations

import json
from typing import Any, cast

MAX_LINE = 1 << 20  # bytes
_PLAIN = (type(None), bool, int, float, str)
_GROUPS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: object) -> bytes:
    """One line. TypeError for what is no literal; ValueError for what is too long or deep."""
    try:
        line = json.dumps(_out(value)).encode()
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    if len(line) >= MAX_LINE:
        raise ValueError(f"the value takes {len(line)} bytes; at most {MAX_LINE} are passed")
    return line + b"\n"


def decode(line: bytes) -> Any:
    """What `encode` took. ValueError for anything else."""
    try:
        return _in(json.loads(line))
    except (RecursionError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"no literal: {error}") from None


def _out(value: object) -> object:
    if type(value) in _PLAIN:
        return value
    # Exact types, so that no subclass's own methods are called.
    kind: Any = type(value)
    if kind is list:
        return [_out(item) for item in cast(Any, value)]
    if kind in (tuple, set, frozenset):
        return {"is": kind.__name__, "of": [_out(item) for item in cast(Any, value)]}
    if kind is dict:
        return {"is": "dict", "of": [[_out(k), _out(v)] for k, v in cast(Any, value).items()]}
    if kind is bytes:
        return {"is": "bytes", "of": cast(bytes, value).hex()}
    if kind is complex:
        number = cast(complex, value)
        return {"is": "complex", "of": [number.real, number.imag]}
    raise TypeError(
        f"a {kind.__name__} can't be passed between an answer and its tests; "
        "None, numbers, text, bytes, lists, tuples, sets and dictionaries can"
    )


def _in(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_in(item) for item in raw]
    if not isinstance(raw, dict):
        return raw
    kind, content = raw["is"], raw["of"]
    if kind in _GROUPS:
        return _GROUPS[kind](_in(item) for item in content)
    if kind == "dict":
        return {_in(key): _in(value) for key, value in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    raise ValueError(f"no literal: {kind!r}")
