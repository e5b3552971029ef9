"""Which fields an update sets (AIP-134)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from plinth.shared.errors import InvalidArgument

_MOST_PATHS = 100
M = TypeVar("M", bound=Message)


def updated(present: M, given: M, mask: FieldMask, settable: Collection[str]) -> M:
    """A copy of `present` with the fields of `given` that `mask` names.

    settable: paths that a client may set ("spec", "spec.shards"). Without a mask those of them that
    are set in `given` are meant; "*" means all, and a message ("spec") those in it. A field that is
    named and not set becomes its default. InvalidArgument for a path that does not exist or is the
    platform's to set.
    """
    paths = list(dict.fromkeys(mask.paths))
    if len(paths) > _MOST_PATHS:
        raise _wrong(f"names {len(paths)} paths, of at most {_MOST_PATHS}", sorted(settable))
    if paths == ["*"]:
        paths = sorted(settable)
    known = sorted(settable)
    kind: Any = present.DESCRIPTOR
    for path in paths:
        if not FieldMask(paths=[path]).IsValidForDescriptor(kind):
            raise _wrong(f"{path!r} is no field of {present.DESCRIPTOR.name}", known)
        if not any(f"{path}.".startswith(f"{one}.") or _within(one, path) for one in settable):
            raise _wrong(f"{path!r} is set by the platform", known)
    paths = [leaf for path in paths for leaf in _leaves(path, known)]
    if not paths:
        paths = [path for path in known if _is_set(given, path)]
    result = type(present)()
    result.CopyFrom(present)
    for path in paths:
        _copy(given, result, path.split("."))
    return result


def _within(path: str, message: str) -> bool:
    return path.startswith(f"{message}.")


def _leaves(path: str, known: Collection[str]) -> Sequence[str]:
    """Of a message those fields that a client may set."""
    return [one for one in known if _within(one, path)] or [path]


def _copy(source: Message, target: Message, path: list[str]) -> None:
    first, *rest = path
    field = target.DESCRIPTOR.fields_by_name[first]
    if rest:
        _copy(getattr(source, first), getattr(target, first), rest)
        return
    target.ClearField(first)
    if field.is_repeated:
        if len(getattr(source, first)):
            getattr(target, first).MergeFrom(getattr(source, first))
    elif field.message_type is not None:
        if source.HasField(first):
            getattr(target, first).CopyFrom(getattr(source, first))
    elif not field.has_presence or source.HasField(first):
        setattr(target, first, getattr(source, first))


def _is_set(message: Message, path: str) -> bool:
    *parents, last = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    return any(field.name == last for field, _ in message.ListFields())


def _wrong(what: str, known: Collection[str]) -> InvalidArgument:
    return InvalidArgument(
        f"update_mask: {what}; it may name {', '.join(known)}",
        reason="UPDATE_MASK",
        field="update_mask",
    )
