"""The calls of `plinth.client`, made of the public protos: `services/plinth/client/calls`.

A module for each service, with a class whose calls block and one for asyncio; a method for each of
its methods, with the request's fields as arguments. The first field may be given by place, the rest
by name. A response that holds one message is that message, a list an iterator over its pages.
`make protos` runs it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from public_protos import METHOD, SERVICE, Protos

F = FieldDescriptorProto
HEADER = '"""Generated from protos/plinth/v1 by `make protos`. Never edit."""\n'
_SCALARS = {
    F.TYPE_STRING: ("str", '""'),
    F.TYPE_BYTES: ("bytes", 'b""'),
    F.TYPE_BOOL: ("bool", "False"),
    F.TYPE_DOUBLE: ("float", "0.0"),
    F.TYPE_FLOAT: ("float", "0.0"),
}
_WELL_KNOWN = {
    ".google.protobuf.Timestamp": "datetime | timestamp_pb2.Timestamp",
    ".google.protobuf.Duration": "timedelta | duration_pb2.Duration",
    ".google.protobuf.Struct": "Mapping[str, Any] | struct_pb2.Struct",
    ".google.protobuf.FieldMask": "Iterable[str]",
}
# Arguments that each call has.
_OWN = ("timeout", "metadata", "self")


def write(files: FileDescriptorSet, folder: Path) -> None:
    """The modules, into `folder`."""
    protos = Protos(files)
    folder.mkdir(parents=True, exist_ok=True)
    services = []
    for file in sorted(protos.files, key=lambda file: file.name):
        for at, service in enumerate(file.service):
            name = file.name.rsplit("/", 1)[-1].removesuffix(".proto")
            assert len(file.service) == 1, f"{file.name}: a service of the client is a file's only"
            (folder / f"{name}.py").write_text(_module(protos, file, at, service))
            services.append((name, service.name))
    (folder / "__init__.py").write_text(_index(services))


def _index(services: list[tuple[str, str]]) -> str:
    lines = [
        HEADER,
        "from __future__ import annotations\n",
        "from functools import cached_property",
        "from typing import TYPE_CHECKING, Any\n",
        "if TYPE_CHECKING:",
        *(
            f"    from plinth.client.calls.{module} import {min(name, f'Async{name}')}, "
            f"{max(name, f'Async{name}')}"
            for module, name in services
        ),
    ]
    for prefix, about in (("", "calls that block"), ("Async", "calls for asyncio")):
        lines += [
            f"\n\nclass {prefix}Services:",
            f'    """The public services: {about}. Each is imported when it is first used."""',
            "\n    def __init__(self, transport: Any) -> None:",
            "        self._calls = transport",
        ]
        for module, name in services:
            lines += [
                "\n    @cached_property",
                f"    def {module}(self) -> {prefix}{name}:",
                f"        from plinth.client.calls.{module} import {prefix}{name}\n",
                f"        return {prefix}{name}(self._calls)",
            ]
    return "\n".join(lines) + "\n"


def _module(
    protos: Protos, file: FileDescriptorProto, at: int, service: ServiceDescriptorProto
) -> str:
    name = service.name
    own = file.name.rsplit("/", 1)[-1].removesuffix(".proto") + "_pb2"
    constants, bodies = [], {"": "", "Async": ""}
    for index, method in enumerate(service.method):
        constants.append(
            f'_{_snake(method.name).upper()} = Method.of({own}.DESCRIPTOR, "{service.name}", '
            f'"{method.name}")'
        )
        comment = protos.comment(file, SERVICE, at, METHOD, index)
        for prefix in bodies:
            bodies[prefix] += "\n" + _method(protos, method, comment, bool(prefix))
    classes = ""
    about = protos.comment(file, SERVICE, at)
    for prefix, text in bodies.items():
        transport = f"{prefix}Transport"
        classes += f"\n\nclass {prefix}{name}:\n{_docstring(about or f'{service.name}.', 4)}"
        classes += f"\n    def __init__(self, calls: {transport}) -> None:\n"
        classes += f"        self._calls = calls\n{text}"
    head = [HEADER, "from __future__ import annotations\n", *_imports(classes)]
    used = sorted({own, *re.findall(r"\b(\w+_pb2)\.", classes)} - {
        "timestamp_pb2", "duration_pb2", "struct_pb2"
    })  # fmt: skip
    head += [f"from plinth.v1 import {', '.join(used)}\n", "if TYPE_CHECKING:"]
    head += ["    from plinth.client.asynchronous import AsyncTransport"]
    head += ["    from plinth.client.blocking import Transport\n"]
    return "\n".join(head) + "\n" + "\n".join(constants) + "\n" + classes


def _imports(text: str) -> Iterator[str]:
    """Of what the classes name."""
    collections = [n for n in _ABSTRACT if re.search(rf"\b{n}\b", text)]
    yield f"from collections.abc import {', '.join(collections)}"
    times = [n for n in ("datetime", "timedelta") if re.search(rf"\b{n}\b", text)]
    if times:
        yield f"from datetime import {', '.join(times)}"
    yield f"from typing import {'TYPE_CHECKING, Any' if 'Any' in text else 'TYPE_CHECKING'}\n"
    known = [n for n in ("duration_pb2", "struct_pb2", "timestamp_pb2") if n in text]
    if known:
        yield f"from google.protobuf import {', '.join(known)}\n"
    functions = [n for n in ("Method", "mask", "request") if n == "Method" or f"{n}(" in text]
    yield f"from plinth.client.methods import {', '.join(functions)}"
    pagers = [n for n in ("AsyncPager", "Pager") if re.search(rf"\b{n}\b", text)]
    if pagers:
        yield f"from plinth.client.pages import {', '.join(pagers)}"


_ABSTRACT = ("AsyncGenerator", "AsyncIterable", "Generator", "Iterable", "Mapping")


def _method(protos: Protos, method: MethodDescriptorProto, comment: str, is_async: bool) -> str:
    """The text of one method of a class."""
    constant = f"_{_snake(method.name).upper()}"
    _, asked = protos.messages[method.input_type]
    _, answer = protos.messages[method.output_type]
    response = ".".join(protos.modules[method.output_type])
    arguments: list[str] = []
    passed: list[str] = []
    told: list[tuple[str, str]] = []
    if method.client_streaming:
        kind = ".".join(protos.modules[method.input_type])
        streams = f"Iterable[{kind}] | AsyncIterable[{kind}]" if is_async else f"Iterable[{kind}]"
        arguments.append(f"requests: {streams}")
    else:
        for index, field in enumerate(asked.field):
            assert field.name not in _OWN, f"{asked.name}.{field.name}: the client's own argument"
            if field.name == "page_token":
                continue
            arguments += [_argument(protos, field), *(["*"] if not index else [])]
            value = f"mask({field.name})" if _is_mask(field) else field.name
            passed.append(f"{field.name}={value}")
            told.append((field.name, protos.field_comment(method.input_type, index)))
    if "*" not in arguments:
        arguments.append("*")
    arguments += ["timeout: float | None = None", "metadata: Mapping[str, str] | None = None"]
    if method.client_streaming:
        made = "requests"
    else:
        made = f"request({', '.join(['.'.join(protos.modules[method.input_type]), *passed])})"
    call = f"{constant}, {made}, timeout, metadata"
    head, body = _call(protos, method, answer, response, call, is_async)
    signature = f"    {head[0]}(\n        self,\n"
    signature += "".join(f"        {argument},\n" for argument in arguments)
    signature += f"    ) -> {head[1]}:\n"
    return signature + _docstring(comment, 8, told) + textwrap.indent(body, " " * 8) + "\n"


def _call(
    protos: Protos,
    method: MethodDescriptorProto,
    answer: DescriptorProto,
    response: str,
    call: str,
    is_async: bool,
) -> tuple[tuple[str, str], str]:
    """((how the method begins, what it gives), its body)."""
    name, wait = _snake(method.name), "await " if is_async else ""
    plain, awaited = f"def {name}", f"{'async ' if is_async else ''}def {name}"
    if method.client_streaming:
        assert not method.server_streaming, method.name
        body = f"response: {response} = {wait}self._calls.upload({call})\n"
        result, body = _unwrapped(protos, answer, response, body)
        return (awaited, result), body
    if method.server_streaming:
        stream = (
            f"AsyncGenerator[{response}, None]"
            if is_async
            else f"Generator[{response}, None, None]"
        )
        return (plain, stream), f"return self._calls.stream({call})"
    if items := _items(answer):
        kind = ".".join(protos.modules[items.type_name]) if items.type_name else "str"
        pager = "AsyncPager" if is_async else "Pager"
        constant, rest = call.split(", ", 1)
        made = rest.removesuffix(", timeout, metadata")
        body = f"return {pager}(\n"
        body += f"    lambda asked: self._calls.unary({constant}, asked, timeout, metadata),\n"
        body += f'    {made},\n    "{items.name}",\n)'
        return (plain, f"{pager}[{kind}, {response}]"), body
    body = f"response: {response} = {wait}self._calls.unary({call})\n"
    result, body = _unwrapped(protos, answer, response, body)
    return (awaited, result), body


def _unwrapped(
    protos: Protos, answer: DescriptorProto, response: str, body: str
) -> tuple[str, str]:
    """(type, body) of what a response comes to: the one message in it, nothing, or itself."""
    fields = list(answer.field)
    if not fields:
        return "None", body.partition("= ")[2].rstrip()
    if (
        len(fields) == 1
        and fields[0].type == F.TYPE_MESSAGE
        and fields[0].label != F.LABEL_REPEATED
    ):
        known = protos.modules.get(fields[0].type_name)
        if known is not None:
            return ".".join(known), body + f"return response.{fields[0].name}"
    return response, body + "return response"


def _items(answer: DescriptorProto) -> FieldDescriptorProto | None:
    """The field that holds a page's items; None where the response is no page."""
    names = {field.name for field in answer.field}
    repeated = [field for field in answer.field if field.label == F.LABEL_REPEATED]
    return repeated[0] if "next_page_token" in names and repeated else None


def _argument(protos: Protos, field: FieldDescriptorProto) -> str:
    """ "name: str = ''"."""
    kind, default = _type(protos, field)
    if field.label == F.LABEL_REPEATED:
        entry = protos.messages.get(field.type_name)
        if entry is not None and entry[1].options.map_entry:
            key, value = (_type(protos, one)[0] for one in entry[1].field)
            return f"{field.name}: Mapping[{key}, {value}] | None = None"
        return f"{field.name}: Iterable[{kind}] | None = None"
    if default == "None" or field.proto3_optional or field.HasField("oneof_index"):
        return f"{field.name}: {kind} | None = None"
    return f"{field.name}: {kind} = {default}"


def _type(protos: Protos, field: FieldDescriptorProto) -> tuple[str, str]:
    """(type, default) of one value."""
    if field.type in _SCALARS:
        return _SCALARS[field.type]
    if field.type == F.TYPE_ENUM:
        return f"{'.'.join(protos.modules[field.type_name])}.ValueType | None", "None"
    if field.type == F.TYPE_MESSAGE:
        known = _WELL_KNOWN.get(field.type_name)
        return known or ".".join(protos.modules[field.type_name]), "None"
    return "int", "0"


def _is_mask(field: FieldDescriptorProto) -> bool:
    return field.type_name == ".google.protobuf.FieldMask"


def _docstring(text: str, indent: int, fields: Iterable[tuple[str, str]] = ()) -> str:
    space = " " * indent
    paragraphs = [(part, space) for part in text.split("\n") if part]
    told = [(" ".join(f"{name}: {about}".split()), f"{space}  ") for name, about in fields if about]
    if not paragraphs and not told:
        return ""
    body = "\n\n".join(_filled(part, space, hanging) for part, hanging in paragraphs)
    if told:
        body += "\n\n" * bool(body) + "\n".join(
            _filled(part, space, hanging) for part, hanging in told
        )
    body = f'{space}"""{body.removeprefix(space)}'
    last = body.rpartition("\n")[2]
    ends = f"\n{space}" if "\n\n" in body or len(last) > 97 else ""
    return f'{body}{" " if body.endswith(chr(34)) and not ends else ""}{ends}"""\n'


def _filled(part: str, space: str, hanging: str) -> str:
    plain = part.replace("\\", "\\\\").replace('"""', "'''")
    return textwrap.fill(plain, 96, initial_indent=space, subsequent_indent=hanging)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
