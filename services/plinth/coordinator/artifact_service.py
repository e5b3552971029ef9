"""ArtifactService: what lies on the store, and what is uploaded to it.

Here are artifacts and aliases; uploads are `upload_calls.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from plinth.coordinator.downloads import download
from plinth.coordinator.upload_calls import UploadCalls
from plinth.coordinator.uploads import Uploads
from plinth.shared.aliases import Alias
from plinth.shared.api.etags import check_etag
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.owners import check_owner
from plinth.shared.api.paging import Pages
from plinth.shared.api.times import moment
from plinth.shared.artifact_messages import (
    KINDS,
    alias_etag,
    alias_message,
    artifact_message,
    reference_in,
)
from plinth.shared.errors import Aborted, InvalidArgument, NotFound
from plinth.shared.identity import current_principal
from plinth.shared.manifest import Reference
from plinth.shared.rpc.server import GrpcService
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import artifacts_pb2 as pb
from plinth.v1 import artifacts_pb2_grpc as rpc

_LOOKED_AT = 2000  # artifacts that one page of a list looks at
# What points to a version beside the store itself, for people.
InUse = Callable[[ArtifactRecord], Awaitable[Sequence[str]]]
_Row = tuple[ArtifactRecord, list[str]]  # with its aliases

_FILTERS = Filters(
    {
        "artifact_id": Field(lambda row: row[0].name, str),
        "version": Field(lambda row: row[0].version, int),
        "kind": Field(
            lambda row: row[0].kind.upper(), str, tuple(sorted(kind.upper() for kind in KINDS))
        ),
        "digest": Field(lambda row: row[0].digest, str),
        "create_time": Field(lambda row: moment(row[0].created_unix_ms), datetime),
        "owner.tenant": Field(lambda row: row[0].tenant, str),
        "aliases": Field(lambda row: row[1], list),
    }
)


class ArtifactServicer(UploadCalls, rpc.ArtifactServiceServicer):
    """The RPCs; see artifacts.proto. in_use: what points to a version, beside the store itself."""

    def __init__(self, store: ArtifactStore, uploads: Uploads, pages: Pages, in_use: InUse) -> None:
        self._store, self._uploads = store, uploads
        self._pages, self._in_use = pages, in_use

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.ArtifactService",
            lambda server: rpc.add_ArtifactServiceServicer_to_server(self, server),
        )

    # -- artifacts -------------------------------------------------------------------------

    async def GetArtifact(
        self, request: pb.GetArtifactRequest, context: Any
    ) -> pb.GetArtifactResponse:
        record = await self._record(request.name)
        aliases = await asyncio.to_thread(self._aliases_of, record)
        return pb.GetArtifactResponse(artifact=artifact_message(record, aliases))

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Any
    ) -> pb.ListArtifactsResponse:
        wanted = _FILTERS.parse(request.filter)
        size, after = self._pages.size(request), _position(self._pages.position(request))
        found, last = await asyncio.to_thread(self._page, after, size, wanted)
        return pb.ListArtifactsResponse(
            artifacts=[artifact_message(*row, manifest=False) for row in found],
            next_page_token=self._pages.token(request, last.ref) if last else "",
        )

    def _page(
        self, after: tuple[str, int], size: int, wanted: Callable[[_Row], bool]
    ) -> tuple[list[_Row], ArtifactRecord | None]:
        """(artifacts, the one behind which the next page begins; None: this is the last)."""
        found: list[_Row] = []
        last: ArtifactRecord | None = None
        aliases: tuple[str, dict[str, int]] = ("", {})
        for looked, record in enumerate(self._store.each(after)):
            if len(found) >= size or looked >= _LOOKED_AT:
                return found, last
            if record.name != aliases[0]:
                aliases = record.name, self._store.aliases(record.name)
            row = record, [one for one, to in aliases[1].items() if to == record.version]
            if wanted(row):
                found.append(row)
            last = record
        return found, None

    async def ListArtifactVersions(
        self, request: pb.ListArtifactVersionsRequest, context: Any
    ) -> pb.ListArtifactVersionsResponse:
        name = _bare(request.name, "name")
        size, position = self._pages.size(request), self._pages.position(request)

        def look() -> tuple[list[ArtifactRecord], dict[str, int]]:
            if not position:
                self._store.get(name)  # NotFound says what there is
            below = int(position) if position else None
            versions = self._store.versions(name, below=below)
            return list(islice(versions, size + 1)), self._store.aliases(name)

        found, aliases = await asyncio.to_thread(look)
        page = found[:size]
        more = len(found) > size
        return pb.ListArtifactVersionsResponse(
            artifacts=[
                artifact_message(
                    one, [a for a, to in aliases.items() if to == one.version], manifest=False
                )
                for one in page
            ],
            next_page_token=self._pages.token(request, str(page[-1].version)) if more else "",
        )

    async def ListArtifactFiles(
        self, request: pb.ListArtifactFilesRequest, context: Any
    ) -> pb.ListArtifactFilesResponse:
        size = self._pages.size(request)
        version, _, after = self._pages.position(request).partition(":")
        reference = reference_in(request.name)
        record = await self._record(
            f"artifacts/{reference.name}@{version}" if version else request.name
        )
        files = record.manifest["files"]
        paths = sorted(path for path in files if path > after)
        page = paths[:size]
        more = len(paths) > size
        return pb.ListArtifactFilesResponse(
            files=[
                pb.ArtifactFile(
                    path=path, size_bytes=files[path]["size"], digest=files[path]["sha256"]
                )
                for path in page
            ],
            next_page_token=(
                self._pages.token(request, f"{record.version}:{page[-1]}") if more else ""
            ),
            artifact=f"artifacts/{record.ref}",
        )

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        async for piece in download(self._store, request):
            yield piece

    async def DeleteArtifact(
        self, request: pb.DeleteArtifactRequest, context: Any
    ) -> pb.DeleteArtifactResponse:
        reference = reference_in(request.name)
        if reference.version is None:
            raise InvalidArgument(
                f"{request.name[:140]!r} names no version: write artifacts/{reference.name}@7, so "
                "that nothing else is deleted than what is meant",
                reason="RESOURCE_NAME",
                field="name",
            )
        record = await self._record(request.name)
        check_owner(record.owner, current_principal(), record.ref)
        loop = asyncio.get_running_loop()

        def in_use(record: ArtifactRecord) -> Sequence[str]:
            return asyncio.run_coroutine_threadsafe(_awaited(self._in_use(record)), loop).result()

        await asyncio.to_thread(self._store.delete, record.ref, in_use)
        return pb.DeleteArtifactResponse()

    # -- aliases ---------------------------------------------------------------------------

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.GetAliasResponse:
        name, alias = _alias(request.name, "name")
        found = await asyncio.to_thread(self._store.alias, name, alias)
        return pb.GetAliasResponse(alias=alias_message(found))

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Any
    ) -> pb.ListAliasesResponse:
        name = _bare(request.parent, "parent")
        size, after = self._pages.size(request), self._pages.position(request)

        def look() -> list[Alias]:
            self._store.get(name)
            return list(islice(self._store.each_alias(name, after=after), size + 1))

        found = await asyncio.to_thread(look)
        page = found[:size]
        token = self._pages.token(request, page[-1].alias) if len(found) > size else ""
        return pb.ListAliasesResponse(
            aliases=[alias_message(one) for one in page], next_page_token=token
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        given = request.alias
        name, alias = _alias(given.name, "alias.name")
        target = reference_in(given.artifact, "alias.artifact")
        if target.name != name:
            raise InvalidArgument(
                f"{given.name[:140]} names versions of {name!r} alone, not of {target.name!r}",
                field="alias.artifact",
            )
        record = await self._record(given.artifact, "alias.artifact")
        check_owner(record.owner, current_principal(), record.ref)
        found = await asyncio.to_thread(self._set, alias, record, given.etag)
        return pb.SetAliasResponse(alias=alias_message(found))

    def _set(self, alias: str, record: ArtifactRecord, etag: str) -> Alias:
        def move(now: Alias | None) -> None:
            expected = now.version if now else None
            self._store.set_alias(record.name, alias, record.version, expected=expected)

        self._moved(record.name, alias, etag, move)
        return self._store.alias(record.name, alias)

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Any
    ) -> pb.DeleteAliasResponse:
        name, alias = _alias(request.name, "name")

        def remove(now: Alias | None) -> None:
            self._store.delete_alias(name, alias, expected=now.version if now else None)

        await asyncio.to_thread(self._moved, name, alias, request.etag, remove)
        return pb.DeleteAliasResponse()

    def _moved(
        self, name: str, alias: str, etag: str, move: Callable[[Alias | None], None]
    ) -> None:
        """Moves an alias from what its etag says, or from whatever it is. `move` raises Aborted if
        it is no longer what it is given."""
        while True:
            try:
                now = self._store.alias(name, alias)
            except NotFound:
                now = None
            if now is not None:
                self._check_mover(now)
            check_etag(etag, alias_etag(now) if now else "", f"alias {name}:{alias}")
            try:
                return move(now)
            except Aborted as error:
                if error.reason != "ALIAS_MOVED":
                    raise

    def _check_mover(self, alias: Alias) -> None:
        """An alias is of who made the version that it names."""
        record = self._store.get(f"{alias.name}@{alias.version}")
        check_owner(record.owner, current_principal(), f"alias {alias.ref}")

    # -- finding ---------------------------------------------------------------------------

    async def _record(self, name: str, field: str = "name") -> ArtifactRecord:
        reference = reference_in(name, field)
        return await asyncio.to_thread(self._store.get, str(reference))

    def _aliases_of(self, record: ArtifactRecord) -> list[str]:
        aliases = self._store.aliases(record.name)
        return [alias for alias, version in aliases.items() if version == record.version]


def _position(said: str) -> tuple[str, int]:
    name, _, version = said.partition("@")
    return name, int(version or 0)


def _bare(name: str, field: str) -> str:
    """Of "artifacts/chat" the id."""
    reference = reference_in(name, field)
    if reference.version is not None or reference.alias is not None:
        raise InvalidArgument(
            f"{field}: write artifacts/{reference.name}, without a version or an alias",
            reason="RESOURCE_NAME",
            field=field,
        )
    return reference.name


def _alias(name: str, field: str) -> tuple[str, str]:
    """Of "artifacts/chat:prod" both parts."""
    reference: Reference = reference_in(name, field)
    if reference.alias is None:
        raise InvalidArgument(
            f"{field} is the name of an alias, 'artifacts/chat:prod', not {name[:140]!r}",
            reason="RESOURCE_NAME",
            field=field,
        )
    return reference.name, reference.alias


async def _awaited(act: Awaitable[Sequence[str]]) -> Sequence[str]:
    return await act
