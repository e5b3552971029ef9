"""The status as JSON leaves out nothing of what the platform says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from plinth.shared import status_views
from plinth.shared.api import enums, times
from plinth.v1 import operations_pb2

NAMES = {"ready_shards": "ready"}  # of a model: "3 of 4 ready"


def filled(message: Message) -> Message:
    """Each field with a value of its own."""
    for number, field in enumerate(message.DESCRIPTOR.fields, 1):
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            filled(getattr(message, field.name))
        elif field.is_repeated:
            getattr(message, field.name).append(f"{field.name}-{number}")
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, f"{field.name}-{number}")
        else:
            setattr(message, field.name, number)
    return message


def as_json(message: Message) -> Any:
    found = {}
    for field in message.DESCRIPTOR.fields:
        name, value = field.name, getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_ENUM:
            value = enums.word(EnumTypeWrapper(field.enum_type), value)
        elif isinstance(value, Duration):
            name, value = f"{name}_s", times.seconds(value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            value = as_json(value)
        found[NAMES.get(name, name)] = list(value) if field.is_repeated else value
    return found


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (status_views.replica, operations_pb2.ReplicaStatus()),
        (status_views.model, operations_pb2.ModelStatus()),
        (status_views.queue, operations_pb2.Queue()),
        (status_views.canary, operations_pb2.CanaryStatus()),
    ],
    ids=["replica", "model", "queue", "canary"],
)
def test_a_view_shows_every_field(view: Callable[[Any], Any], message: Message) -> None:
    assert view(filled(message)) == as_json(message)


def test_what_is_not_known_is_none() -> None:
    assert status_views.replica(operations_pb2.ReplicaStatus())["kv_use"] is None
    assert status_views.canary(operations_pb2.CanaryStatus())["stable"]["ttft_p95_s"] is None
