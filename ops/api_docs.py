"""`docs/api.md`, made of the public protos: every call with the scope that it needs, and every
message with its comments. `--check` exits 1 where the committed file differs.

Usage: `python ops/api_docs.py [--check]`; `make protos` runs it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as d
from grpc_tools import protoc

from plinth.shared.identity import ROLES
from plinth.v1 import options_pb2

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "api.md"
OWN, PRIVATE = "plinth.v1", "plinth/internal/"
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6  # of FileDescriptorProto
_INNER = 2  # of a service's methods, of a message's fields, of an enum's values
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in d.FieldDescriptorProto.Type.items()
}
_REPEATABLE = {
    d.MethodOptions.IDEMPOTENCY_UNKNOWN: "",
    d.MethodOptions.NO_SIDE_EFFECTS: "reads",
    d.MethodOptions.IDEMPOTENT: "yes",
}
PREFACE = """\
# The gRPC API

Made of the comments in `protos/` by `make protos`; [grpc.md](grpc.md) is the guide to read first.

A call's key comes as `authorization: Bearer <key>` in its metadata; the key needs the call's scope,
or "admin". Errors carry a `google.rpc.ErrorInfo` whose reason is the word in capitals in a call's
description (`KEY_NOT_FOUND`). Besides those that are named there, every call can end with
UNAUTHENTICATED (MISSING_API_KEY, INVALID_API_KEY), PERMISSION_DENIED (SCOPE_MISSING; OTHER_TENANT
where it would change what another tenant's key made), RESOURCE_EXHAUSTED (the tenant's quota),
INVALID_ARGUMENT (what is wrong with which field) and UNAVAILABLE (a part of the platform is away).

- **Names**: a resource's `name` is its collection and its id ("keys/3f2a…"); requests take it
  whole.
- **Lists** come in pages: `page_size` at most, from `page_token`, which is `next_page_token` of the
  page before and goes with the same `parent` and `filter`. What is there all the time comes once,
  whatever is made or deleted meanwhile.
- **Filters** are comparisons joined by AND: `state = RUNNING AND create_time >=
  "2026-11-01T00:00:00Z"`; `=` with a star at the end compares the beginning, `:` asks whether a
  list holds a value. Values of enums are written without their prefix: RUN_STATE_RUNNING as
  RUNNING.
- **Changes**: `update_mask` names the fields that are set; with an `etag` a resource is changed
  only if it still has that one, else ABORTED (ETAG_MISMATCH) tells the present one.
- **Repeating**: a call that "reads", or whose repetition is "yes", does the same when it is sent
  twice. Others are sent again only where the client knows that the first one did not arrive.

"""


def main() -> None:
    """Writes the file, or with `--check` compares it."""
    text = made()
    if "--check" not in sys.argv:
        DOCS.write_text(text)
    elif not DOCS.exists() or DOCS.read_text() != text:
        raise SystemExit("docs/api.md is out of date: run `make protos`")


def made() -> str:
    """The whole of it."""
    with tempfile.TemporaryDirectory() as scratch:
        files = _read(Path(scratch) / "set")
    public = [file for file in files if not file.name.startswith(PRIVATE)]
    public.sort(key=lambda file: (file.package != OWN, file.name))
    pages = [_Page(file) for file in public]
    calls = "".join(row for page in pages for row in page.calls())
    heads = " | ".join(f"role {role}" for role in ROLES)
    table = f"| call | scope | {heads} | repeatable |\n|{'---|' * (3 + len(ROLES))}\n{calls}"
    text = f"{PREFACE}## Calls and scopes\n\n{table}"
    return text + "".join(page.text() for page in pages)


def _read(path: Path) -> list[d.FileDescriptorProto]:
    protos = ROOT / "protos"
    sources = sorted(str(p.relative_to(protos)) for p in protos.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{protos}", f"-I{include}", f"--descriptor_set_out={path}"]
    if protoc.main([*arguments, "--include_source_info", *sources]) != 0:
        raise SystemExit("api_docs: protoc failed")
    return list(d.FileDescriptorSet.FromString(path.read_bytes()).file)


class _Page:
    """What one file has to tell."""

    def __init__(self, file: d.FileDescriptorProto) -> None:
        self._file = file
        self._said = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}

    def calls(self) -> Iterator[str]:
        """Rows of the table of calls."""
        for service in self._file.service:
            for method in service.method:
                scope = method.options.Extensions[options_pb2.scope]
                marks = " | ".join(
                    "yes" if not scope or scope in scopes else "" for scopes in ROLES.values()
                )
                name = f"{service.name}.{method.name}"
                again = _REPEATABLE[method.options.idempotency_level]
                link = f"[{name}](#{_anchor(name)})"
                yield f"| {link} | {scope or 'any key'} | {marks} | {again} |\n"

    def text(self) -> str:
        """Services, messages and enums in their order."""
        parts = [self._service(at, one) for at, one in enumerate(self._file.service)]
        parts += [
            self._message((_MESSAGE, at), one, one.name)
            for at, one in enumerate(self._file.message_type)
        ]
        parts += [self._enum(at, one) for at, one in enumerate(self._file.enum_type)]
        return "".join(parts)

    def _service(self, at: int, service: d.ServiceDescriptorProto) -> str:
        full = f"{self._file.package}.{service.name}"
        text = f"\n## {service.name}\n\n`{full}`. {self._paragraphs(_SERVICE, at)}\n"
        for index, method in enumerate(service.method):
            takes = _link(method.input_type, stream=method.client_streaming)
            gives = _link(method.output_type, stream=method.server_streaming)
            scope = method.options.Extensions[options_pb2.scope]
            needs = f'scope "{scope}"' if scope else "any key"
            about = self._paragraphs(_SERVICE, at, _INNER, index)
            text += (
                f"\n### {service.name}.{method.name}\n\n{takes} → {gives}; {needs}.\n\n{about}\n"
            )
        return text

    def _message(self, path: tuple[int, ...], message: d.DescriptorProto, name: str) -> str:
        text = f"\n### {name}\n\n{self._paragraphs(*path)}\n"
        if message.field:
            text += "\n| field | type | |\n|---|---|---|\n"
        maps = {f".{self._file.package}.{name}.{one.name}": one for one in message.nested_type}
        for index, field in enumerate(message.field):
            about = _cell(self._paragraphs(*path, _INNER, index))
            if field.HasField("oneof_index") and not field.proto3_optional:
                about = f"One of `{message.oneof_decl[field.oneof_index].name}`. {about}"
            text += f"| `{field.name}` | {_type(field, maps)} | {about} |\n"
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                text += self._message((*path, 3, index), nested, f"{name}.{nested.name}")
        return text

    def _enum(self, at: int, enum: d.EnumDescriptorProto) -> str:
        text = f"\n### {enum.name}\n\n{self._paragraphs(_ENUM, at)}\n\n| value | |\n|---|---|\n"
        for index, value in enumerate(enum.value):
            about = _cell(self._paragraphs(_ENUM, at, _INNER, index))
            text += f"| `{value.name}` = {value.number} | {about} |\n"
        return text

    def _paragraphs(self, *path: int) -> str:
        """A comment: its paragraphs each in one line, its lists as they are, and what is indented
        as code."""
        text, before = "", ""  # before: of the last line, "words", "list", "code" or empty
        for said in self._said.get(path, "").splitlines():
            line = said.removeprefix(" ").rstrip()
            kind = "code" if line.startswith(" ") and before != "list" else "words"
            if not line:
                kind = ""
            elif line.startswith("- ") or (before == "list" and line.startswith(" ")):
                kind = "list"
            if kind == "words" and before == "words":
                text += f" {line}"
            elif kind:
                text += ("" if kind == before else "\n") + "\n" + "  " * (kind == "code") + line
            before = kind
        return text.strip()


def _type(field: d.FieldDescriptorProto, maps: dict[str, d.DescriptorProto]) -> str:
    entry = maps.get(field.type_name)
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    named = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    if field.label == d.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {named}"
    return f"optional {named}" if field.proto3_optional else named


def _link(type_name: str, *, stream: bool = False) -> str:
    name = type_name.lstrip(".")
    if name.startswith("google."):
        shown = name.removeprefix("google.protobuf.")
    else:
        short = re.sub(r"^(plinth\.v1|inference)\.", "", name)
        shown = f"[{short}](#{_anchor(short)})"
    return f"stream of {shown}" if stream else shown


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
