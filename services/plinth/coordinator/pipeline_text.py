"""The text of a pipeline, YAML, with what replaces settings in it by their paths.

A stranger wrote both: whatever is wrong with them is InvalidArgument. What the values mean is not
known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from plinth.shared.errors import InvalidArgument, plain

MAX_BYTES = 256 << 10
_SHOWN = 200


def loaded(text: str, overrides: Mapping[str, str], most: int) -> dict[str, Any]:
    """The mapping in `text` with `overrides` ("steps.corpus.max_bytes" → "1000") applied; of at
    most so many bytes together. InvalidArgument."""
    size = _bytes_of(text) + sum(_bytes_of(p) + _bytes_of(v) for p, v in overrides.items())
    if size > most:
        raise InvalidArgument(
            f"a pipeline holds at most {most >> 10} KiB, its overrides included; not {size} bytes",
            reason="PIPELINE_INVALID",
        )
    raw = _value(text, "the pipeline is no YAML")
    if not isinstance(raw, dict):
        raise InvalidArgument(
            "a pipeline file is a mapping with the keys name and steps", reason="PIPELINE_INVALID"
        )
    for path, value in overrides.items():
        _override(raw, path, value)
    return raw


def nearest(key: str, right: Collection[str]) -> str:
    """The key that was meant, or those that there are: to be put behind a mistake's description."""
    near = difflib.get_close_matches(key[:_SHOWN], list(right), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there is {', '.join(sorted(right))}" if right else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they can blow up) and without repeated keys (one would win)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidArgument("a pipeline has no YAML aliases (*name); write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode) and len(mapping) != len(node.value):
            raise InvalidArgument(f"a key is given twice in the mapping at{node.start_mark}")
        return mapping


def _value(text: str, wrong: str, field: str = "") -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader, see above)
    # PyYAML's own errors, and what its constructors raise of a value that only looks like one: a
    # 99th day, an integer of 5,000 digits, "!!bool x", "!!timestamp x".
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        raise InvalidArgument(
            f"{wrong}: {plain(error, 500)}", reason="PIPELINE_INVALID", field=field
        ) from error


def _override(raw: dict[str, Any], path: str, value: str) -> None:
    """Sets one value; an empty one takes the key away. Only what is there can be gone into, but
    the last key may be new."""
    shown = path[:_SHOWN]
    *way, last = path.split(".")
    at: Any = raw
    for depth, key in enumerate(way):
        if not isinstance(at, dict) or key not in at:
            there = [str(one) for one in at] if isinstance(at, dict) else []
            where = ".".join(way[: depth + 1])[:_SHOWN]
            raise InvalidArgument(
                f"{shown}: the pipeline has no {where}{nearest(key, there)}", field=shown
            )
        at = at[key]
    if not isinstance(at, dict):
        raise InvalidArgument(f"{shown}: {'.'.join(way)[:_SHOWN]} is no mapping", field=shown)
    parsed = _value(value, f"{shown}: the value is no YAML", shown)
    if parsed is None:
        at.pop(last, None)
    else:
        at[last] = parsed


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
