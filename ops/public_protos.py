"""The public protos with their comments, as a generator of code reads them."""

from __future__ import annotations

import re

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

PACKAGE = "plinth.v1"
# Numbers of descriptor.proto, of which comments' paths are made.
SERVICE, METHOD = 6, 2
_MESSAGE, _FIELD = 4, 2


class Protos:
    """The public files with their comments."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.files = [file for file in files.file if file.package == PACKAGE]
        self.messages: dict[str, tuple[FileDescriptorProto, DescriptorProto]] = {}
        self.modules: dict[str, tuple[str, str]] = {}  # type: (its module, its name there)
        self._comments: dict[tuple[str, ...], str] = {}
        for file in self.files:
            module = file.name.rsplit("/", 1)[-1].removesuffix(".proto") + "_pb2"
            self._names(file, module)
            for location in file.source_code_info.location:
                key = (file.name, *map(str, location.path))
                self._comments[key] = location.leading_comments

    def comment(self, file: FileDescriptorProto, *path: int) -> str:
        """What stands over something: a line for each of its paragraphs."""
        told = self._comments.get((file.name, *map(str, path)), "")
        paragraphs = re.split(r"\n\s*\n", told.strip())
        return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def field_comment(self, message: str, index: int) -> str:
        file, found = self.messages[message]
        at = list(file.message_type).index(found)
        return self.comment(file, _MESSAGE, at, _FIELD, index)

    def _names(self, file: FileDescriptorProto, module: str) -> None:
        def add(prefix: str, message: DescriptorProto) -> None:
            name = f"{prefix}{message.name}"
            self.messages[f".{PACKAGE}.{name}"] = (file, message)
            self.modules[f".{PACKAGE}.{name}"] = (module, name)
            for enum in message.enum_type:
                self.modules[f".{PACKAGE}.{name}.{enum.name}"] = (module, f"{name}.{enum.name}")
            for nested in message.nested_type:
                add(f"{name}.", nested)

        for message in file.message_type:
            add("", message)
        for enum in file.enum_type:
            self.modules[f".{PACKAGE}.{enum.name}"] = (module, enum.name)
