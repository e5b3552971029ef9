"""What an upload announces, and whether that makes sense."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.manifest import MANIFEST
from plinth.shared.storage import check_path
from plinth.v1 import owner_pb2

MAX_FILES = 1000
MAX_BYTES = 1 << 40
LIFETIME_MS = 7 * 86_400_000
MAX_LICENSE = 200
_SHOWN = 5
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class UploadRecord:
    """One upload. files: (path, size in bytes), in their order. finished: the artifact that it
    became, "chat@7"; empty: it takes pieces."""

    id: str
    artifact_id: str
    kind: str
    license: str
    files: tuple[tuple[str, int], ...]
    piece_bytes: int
    tenant: str
    key_id: str
    created_unix_ms: int
    finished: str = ""

    @property
    def expires_unix_ms(self) -> int:
        return self.created_unix_ms + LIFETIME_MS

    @property
    def owner(self) -> owner_pb2.Owner:
        return owner_pb2.Owner(tenant=self.tenant, key_id=self.key_id)

    @property
    def announced(self) -> tuple[Any, ...]:
        """What the client said."""
        return self.artifact_id, self.kind, self.license, self.files

    def number(self, path: str) -> int:
        """The file's place in `files`. NotFound."""
        for number, (known, _) in enumerate(self.files):
            if known == path:
                return number
        raise NotFound(
            f"upload {self.id} has no file {path[:200]!r}: only what was announced when it was "
            "created",
            reason="FILE_NOT_FOUND",
            field="path",
        )

    def offsets(self, number: int) -> range:
        """Where the file's pieces begin."""
        return range(0, self.files[number][1], self.piece_bytes)


def checked_files(files: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    found = tuple(files)
    field = "upload.spec.files"
    if not 1 <= len(found) <= MAX_FILES:
        raise InvalidArgument(
            f"an upload has 1 to {MAX_FILES} files, not {len(found)}", field=field
        )
    paths, all_paths = set[str](), {path for path, _ in found}
    for path, _ in found:
        try:
            check_path(path)
        except InvalidArgument as wrong:
            wrong.field = field
            raise
        if path == MANIFEST:
            raise InvalidArgument(
                f"{MANIFEST} is the artifact's own file, which the platform writes", field=field
            )
        folders = {"/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)}
        if path in paths or folders & all_paths:
            raise InvalidArgument(f"{path[:200]!r} is there twice, or as a folder", field=field)
        paths.add(path)
    total = sum(size for _, size in found)
    if total > MAX_BYTES:
        raise InvalidArgument(f"{total} bytes in all; at most {MAX_BYTES}", field=field)
    return found


def check_license(license: str) -> str:
    if len(license) > MAX_LICENSE or not license.isprintable():
        raise InvalidArgument(
            f"a license is named by at most {MAX_LICENSE} printable characters, such as "
            "'apache-2.0'; its text is one of the files",
            field="upload.spec.license",
        )
    return license


def check_digests(upload: UploadRecord, digests: Mapping[str, str]) -> None:
    """InvalidArgument unless there is one of each file, and each can be one."""
    paths = {path for path, _ in upload.files}
    if wrong := sorted(paths ^ set(digests)):
        raise InvalidArgument(
            f"digests names each file and no other; {', '.join(wrong[:_SHOWN])[:200]} is "
            f"{'missing' if wrong[0] in paths else 'no file of it'}",
            field="digests",
        )
    for path, said in digests.items():
        if not _DIGEST.fullmatch(said):
            raise InvalidArgument(
                f"the digest of {path[:200]} is {said[:80]!r}; write sha256: and 64 of 0-9 a-f",
                field=f"digests.{path}",
            )
