"""The RPCs of ArtifactService for aliases; see artifacts.proto."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

from plinth.shared.aliases import Alias
from plinth.shared.api.etags import check_etag
from plinth.shared.api.owners import check_owner
from plinth.shared.api.paging import Pages
from plinth.shared.artifact_messages import alias_etag, alias_message, record_of, reference_in
from plinth.shared.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from plinth.shared.identity import current_principal
from plinth.shared.manifest import Reference
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import artifacts_pb2 as pb


class AliasCalls:
    """Part of ArtifactServicer."""

    _store: ArtifactStore
    _pages: Pages

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.GetAliasResponse:
        name, alias = _alias(request.name, "name")
        found = await asyncio.to_thread(self._store.alias, name, alias)
        return pb.GetAliasResponse(alias=alias_message(found))

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Any
    ) -> pb.ListAliasesResponse:
        name = bare_id(request.parent, "parent")
        size, after = self._pages.size(request), self._pages.position(request)

        def look() -> list[Alias]:
            record_of(self._store, request.parent, "parent")
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
        if request.create_only and given.etag:
            raise InvalidArgument(
                "create_only is for an alias that is not there, an etag for one that is: give one "
                "of them",
                field="create_only",
            )
        target = reference_in(given.artifact, "alias.artifact")
        if target.name != name:
            raise InvalidArgument(
                f"{given.name[:140]} names versions of {name!r} alone, not of {target.name!r}",
                field="alias.artifact",
            )
        record = await asyncio.to_thread(record_of, self._store, given.artifact, "alias.artifact")
        check_owner(record.owner, current_principal(), record.ref)
        found = await asyncio.to_thread(self._set, alias, record, request)
        return pb.SetAliasResponse(alias=alias_message(found))

    def _set(self, alias: str, record: ArtifactRecord, request: pb.SetAliasRequest) -> Alias:
        def move(now: Alias | None) -> None:
            if request.create_only and now is not None and now.version != record.version:
                raise AlreadyExists(
                    f"there is an alias {now.ref} already, of version {now.version}",
                    reason="ALIAS_EXISTS",
                    field="alias.name",
                    metadata={"etag": alias_etag(now)},
                )
            expected = now.version if now else None
            self._store.set_alias(record.name, alias, record.version, expected=expected)

        self._moved(record.name, alias, request.alias.etag, move)
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
        """An alias is of who made the version that it names, and nobody's where that has gone."""
        try:
            record = self._store.get(f"{alias.name}@{alias.version}")
        except NotFound:
            return
        check_owner(record.owner, current_principal(), f"alias {alias.ref}")


def bare_id(name: str, field: str) -> str:
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
