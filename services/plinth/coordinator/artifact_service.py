"""ArtifactService: what lies on the store, and what is uploaded to it.

Here are artifacts; aliases are `alias_calls.py`, uploads `upload_calls.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from plinth.coordinator.alias_calls import AliasCalls, bare_id
from plinth.coordinator.downloads import download
from plinth.coordinator.upload_calls import UploadCalls
from plinth.coordinator.uploads import Uploads
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.owners import check_owner
from plinth.shared.api.paging import Pages
from plinth.shared.api.times import moment
from plinth.shared.artifact_messages import (
    ARTIFACT,
    KINDS,
    artifact_message,
    record_of,
    reference_in,
)
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import current_principal
from plinth.shared.rpc.server import GrpcService
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import artifacts_pb2 as pb
from plinth.v1 import artifacts_pb2_grpc as rpc

_LOOKED_AT = 2000  # artifacts that one page of a list looks at
_FULL_PAGE = 50  # so that a message is of some megabytes at most
# What points to a version beside the store itself, for people.
InUse = Callable[[ArtifactRecord], Awaitable[Sequence[str]]]
_Row = tuple[ArtifactRecord, list[str]]  # with its aliases

_FILTERS = Filters(
    {
        "name": Field(lambda row: ARTIFACT.name(row[0].ref), str),
        "artifact_id": Field(lambda row: row[0].name, str),
        "version": Field(lambda row: row[0].version, int),
        "kind": Field(
            lambda row: row[0].kind.upper(), str, tuple(sorted(kind.upper() for kind in KINDS))
        ),
        "digest": Field(lambda row: row[0].digest, str),
        "create_time": Field(lambda row: moment(row[0].created_unix_ms), datetime),
        "owner.tenant": Field(lambda row: row[0].tenant, str),
        "owner.key_id": Field(lambda row: row[0].key_id, str),
        "aliases": Field(lambda row: row[1], list),
    }
)


class ArtifactServicer(AliasCalls, UploadCalls, rpc.ArtifactServiceServicer):
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
        full = request.view == pb.ARTIFACT_VIEW_FULL
        size = min(size, _FULL_PAGE) if full else size
        damaged: list[str] = []
        found, last = await asyncio.to_thread(self._page, after, size, wanted, damaged)
        return pb.ListArtifactsResponse(
            artifacts=[artifact_message(*row, manifest=full) for row in found],
            next_page_token=self._pages.token(request, last.ref) if last else "",
            unreachable=map(ARTIFACT.name, damaged),
        )

    def _page(
        self, after: tuple[str, int], size: int, wanted: Callable[[_Row], bool], damaged: list[str]
    ) -> tuple[list[_Row], ArtifactRecord | None]:
        """(artifacts, the one behind which the next page begins; None: this is the last). damaged:
        gets the references of those in between that can't be read."""
        found: list[_Row] = []
        last: ArtifactRecord | None = None
        aliases: tuple[str, dict[str, int]] = ("", {})
        passed: list[str] = []  # damaged ones behind `last`: the next page tells them
        for looked, record in enumerate(self._store.each(after, passed.append)):
            if len(found) >= size or looked >= _LOOKED_AT:
                return found, last
            damaged += passed
            passed.clear()
            if record.name != aliases[0]:
                aliases = record.name, self._store.aliases(record.name)
            row = record, [one for one, to in aliases[1].items() if to == record.version]
            if wanted(row):
                found.append(row)
            last = record
        damaged += passed
        return found, None

    async def ListArtifactVersions(
        self, request: pb.ListArtifactVersionsRequest, context: Any
    ) -> pb.ListArtifactVersionsResponse:
        name = bare_id(request.name, "name")
        size, position = self._pages.size(request), self._pages.position(request)

        damaged: list[str] = []

        def look() -> tuple[list[ArtifactRecord], dict[str, int]]:
            below = int(position) if position else None
            versions = self._store.versions(name, below=below, damaged=damaged.append)
            return list(islice(versions, size + 1)), self._store.aliases(name)

        found, aliases = await asyncio.to_thread(look)
        if not (found or damaged or position):
            await self._record(request.name)  # NotFound says what there is
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
            unreachable=[
                ARTIFACT.name(one)
                for one in damaged
                if not more or int(one.rpartition("@")[2]) > page[-1].version
            ],
        )

    async def ListArtifactFiles(
        self, request: pb.ListArtifactFilesRequest, context: Any
    ) -> pb.ListArtifactFilesResponse:
        size = self._pages.size(request)
        version, _, after = self._pages.position(request).partition(":")
        name = request.parent
        if version:  # an alias may have moved since the first page
            name = ARTIFACT.name(f"{reference_in(name, 'parent').name}@{version}")
        record = await self._record(name, "parent")
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

    # -- finding ---------------------------------------------------------------------------

    async def _record(self, name: str, field: str = "name") -> ArtifactRecord:
        return await asyncio.to_thread(record_of, self._store, name, field)

    def _aliases_of(self, record: ArtifactRecord) -> list[str]:
        aliases = self._store.aliases(record.name)
        return [alias for alias, version in aliases.items() if version == record.version]


def _position(said: str) -> tuple[str, int]:
    name, _, version = said.partition("@")
    return name, int(version or 0)


async def _awaited(act: Awaitable[Sequence[str]]) -> Sequence[str]:
    return await act
