"""The generated calls, each against what the protos say of its method."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

import plinth.v1
from plinth.client.calls import AsyncServices, Services
from plinth.client.methods import Method
from plinth.client.pages import AsyncPager, Pager


def public_methods() -> dict[str, MethodDescriptor]:
    """Of all services, by "runs.GetRun": the file, and so the client's attribute, and the name."""
    found = {}
    for module in pkgutil.iter_modules(plinth.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"plinth.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                for method in service.methods:
                    found[f"{module.name.removesuffix('_pb2')}.{method.name}"] = method
    return found


METHODS = public_methods()


class Recorder:
    """A transport that answers with empty messages, and keeps what it was asked."""

    def __init__(self, awaited: bool) -> None:
        self._awaited = awaited
        self.asked: list[tuple[Method, Any]] = []

    def _answer(self, method: Method, request: Any) -> Any:
        self.asked.append((method, request))
        answer = method.parse(b"")
        if not self._awaited:
            return answer

        async def later() -> Any:
            return answer

        return later()

    def unary(self, method: Method, request: Any, *_: Any) -> Any:
        return self._answer(method, request)

    upload = unary

    def stream(self, method: Method, request: Any, *_: Any) -> Any:
        self.asked.append((method, request))
        return iter(())


def named(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def test_there_are_some() -> None:
    assert {"generation", "runs", "jobs", "artifacts"} < {
        name.partition(".")[0] for name in METHODS
    }


@pytest.mark.parametrize("services", [Services, AsyncServices])
@pytest.mark.parametrize("name", METHODS)
async def test_a_method_is_called_by_its_fields(name: str, services: Any) -> None:
    method = METHODS[name]
    transport = Recorder(awaited=services is AsyncServices)
    service = getattr(services(transport), name.partition(".")[0])
    call = getattr(service, named(method.name))
    arguments = dict(inspect.signature(call).parameters)
    for own in ("timeout", "metadata"):
        assert arguments.pop(own).kind is inspect.Parameter.KEYWORD_ONLY
    if method.client_streaming:
        assert list(arguments) == ["requests"]
        given: dict[str, Any] = {"requests": []}
    else:
        fields = {field.name for field in method.input_type.fields}
        assert set(arguments) == fields - {"page_token"}
        given = {}
    result = call(**given)
    if inspect.isawaitable(result):
        result = await result
    elif isinstance(result, AsyncPager):
        assert [one async for one in result] == []
    elif isinstance(result, Pager):
        assert list(result) == []
    (asked, request), *more = transport.asked
    assert not more
    assert asked.path == f"/{method.containing_service.full_name}/{method.name}"
    if not method.client_streaming:
        assert request.DESCRIPTOR is method.input_type
        assert request.ListFields() == []
    if "next_page_token" in method.output_type.fields_by_name:
        assert isinstance(result, AsyncPager | Pager)
    elif not method.server_streaming:
        kinds = {None, method.output_type, *(f.message_type for f in method.output_type.fields)}
        assert getattr(result, "DESCRIPTOR", None) in kinds
