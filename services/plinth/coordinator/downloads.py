"""Files of artifacts sent in pieces, from any offset."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import IO

from plinth.shared.artifact_messages import record_of, reference_in
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound, PlinthError
from plinth.shared.manifest import MANIFEST, canonical_json
from plinth.shared.storage import check_path
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import artifacts_pb2 as pb

PIECE_BYTES = 1 << 20
_TOKEN = re.compile(r"([1-9][0-9]{0,7}):([0-9]{1,19})", re.ASCII)


async def download(
    store: ArtifactStore, request: pb.DownloadArtifactRequest
) -> AsyncIterator[pb.DownloadArtifactResponse]:
    """The file's bytes. NotFound: no such artifact, or no such file in it; InvalidArgument: an
    offset behind its end, a token of another call; DataLoss: it is shorter than published."""
    name, offset = request.name, request.offset
    if request.resume_token:
        version, offset = _position(request.resume_token)
        name = f"artifacts/{reference_in(request.name).name}@{version}"
    record = await asyncio.to_thread(record_of, store, name)
    size = _size(record, request.path)
    if offset > size:
        raise InvalidArgument(
            f"offset {offset} is behind the end of {request.path}, which has {size} bytes",
            field="offset",
        )
    async with aclosing(_pieces(store, record, request.path, offset, size)) as pieces:
        async for piece in pieces:
            yield pb.DownloadArtifactResponse(
                data=piece,
                offset=offset,
                resume_token=f"{record.version}:{offset + len(piece)}",
                size_bytes=size,
            )
            offset += len(piece)


async def _pieces(
    store: ArtifactStore, record: ArtifactRecord, path: str, offset: int, size: int
) -> AsyncGenerator[bytes, None]:
    where = f"{record.path}/{check_path(path)}"
    try:
        file = await asyncio.to_thread(store.storage.open, where)
    except FileNotFoundError as error:
        raise await _short(store, record, path, 0, size) from error
    try:
        await asyncio.to_thread(file.seek, offset)
        while offset < size:
            piece = await asyncio.to_thread(_read, file, min(PIECE_BYTES, size - offset))
            if not piece:
                raise await _short(store, record, path, offset, size)
            offset += len(piece)
            yield piece
    finally:
        file.close()


def _read(file: IO[bytes], most: int) -> bytes:
    return file.read(most)


def _size(record: ArtifactRecord, path: str) -> int:
    if path == MANIFEST:
        return len(canonical_json(record.manifest))
    if path not in record.manifest["files"]:
        raise NotFound(
            f"{record.ref} has no file {path[:200]!r}; ListArtifactFiles lists those that it has",
            reason="FILE_NOT_FOUND",
            field="path",
        )
    return int(record.manifest["files"][path]["size"])


def _position(token: str) -> tuple[int, int]:
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidArgument(
            f"resume_token {token[:40]!r} is none of DownloadArtifact's: give the last response's "
            "as it was, or none to begin at offset",
            field="resume_token",
        )
    return int(found[1]), int(found[2])


async def _short(
    store: ArtifactStore, record: ArtifactRecord, path: str, there: int, size: int
) -> PlinthError:
    try:
        await asyncio.to_thread(store.get, record.ref)
    except NotFound as deleted:  # since the download began: nothing is damaged
        return deleted
    return DataLoss(
        f"{path} of {record.ref} ends after {there} bytes of {size} on the store",
        reason="ARTIFACT_DAMAGED",
    )
