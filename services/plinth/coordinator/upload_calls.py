"""The RPCs of ArtifactService for uploads; see artifacts.proto."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

from plinth.coordinator.upload_records import UploadRecord
from plinth.coordinator.uploads import Uploads
from plinth.shared.api.owners import calling_owner, check_owner
from plinth.shared.api.paging import Pages
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.times import timestamp
from plinth.shared.artifact_messages import artifact_message
from plinth.shared.artifact_rights import check_next_version
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import REQUEST_ID, current_principal
from plinth.shared.manifest import check_name
from plinth.shared.store import ArtifactStore
from plinth.v1 import artifacts_pb2 as pb

UPLOAD = Pattern("uploads/{upload}", r"[a-z0-9]{1,64}")
_FILES = "files"  # the kind


class UploadCalls:
    """Part of ArtifactServicer."""

    _store: ArtifactStore
    _uploads: Uploads
    _pages: Pages

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: Any
    ) -> pb.CreateUploadResponse:
        spec = request.upload.spec
        if spec.kind not in (pb.ARTIFACT_KIND_UNSPECIFIED, pb.ARTIFACT_KIND_FILES):
            raise InvalidArgument(
                f"{pb.ArtifactKind.Name(spec.kind)} is not uploaded as such: upload "
                "ARTIFACT_KIND_FILES, and make it of those by a job",
                field="upload.spec.kind",
            )
        if request.request_id and not REQUEST_ID.fullmatch(request.request_id):
            raise InvalidArgument(
                "request_id: use 1 to 128 of A-Z a-z 0-9 . _ : -", field="request_id"
            )
        name = check_name(spec.artifact_id, "upload.spec.artifact_id")
        await asyncio.to_thread(check_next_version, self._store, name, current_principal())
        record = await asyncio.to_thread(
            self._uploads.create,
            calling_owner(),
            request.request_id,
            artifact_id=name,
            kind=_FILES,
            license=spec.license,
            files=[(file.path, file.size_bytes) for file in spec.files],
        )
        return pb.CreateUploadResponse(upload=await self._whole(record))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(upload=await self._whole(await self._upload(request.name)))

    async def ListUploads(
        self, request: pb.ListUploadsRequest, context: Any
    ) -> pb.ListUploadsResponse:
        size, after = self._pages.size(request), self._pages.position(request)

        damaged: list[str] = []

        def look() -> list[UploadRecord]:
            return list(islice(self._uploads.each(after, damaged.append), size + 1))

        found = await asyncio.to_thread(look)
        more = len(found) > size
        return pb.ListUploadsResponse(
            uploads=[upload_message(one) for one in found[:size]],
            next_page_token=self._pages.token(request, found[size - 1].id) if more else "",
            unreachable=[
                UPLOAD.name(one) for one in damaged if not more or one < found[size - 1].id
            ],
        )

    async def WriteUpload(
        self, request: pb.WriteUploadRequest, context: Any
    ) -> pb.WriteUploadResponse:
        record = await self._own(request.name)
        await asyncio.to_thread(
            self._uploads.write, record, request.path, request.offset, request.data
        )
        return pb.WriteUploadResponse()

    async def FinishUpload(
        self, request: pb.FinishUploadRequest, context: Any
    ) -> pb.FinishUploadResponse:
        record = await self._own(request.name)
        if not record.finished:  # another tenant may have taken the name meanwhile
            name, principal = record.artifact_id, current_principal()
            await asyncio.to_thread(check_next_version, self._store, name, principal)
        made = await asyncio.to_thread(self._uploads.finish, record, dict(request.digests))
        return pb.FinishUploadResponse(artifact=artifact_message(made))

    async def DeleteUpload(
        self, request: pb.DeleteUploadRequest, context: Any
    ) -> pb.DeleteUploadResponse:
        await asyncio.to_thread(self._uploads.delete, await self._own(request.name))
        return pb.DeleteUploadResponse()

    async def _upload(self, name: str) -> UploadRecord:
        return await asyncio.to_thread(self._uploads.get, UPLOAD.id(name))

    async def _own(self, name: str) -> UploadRecord:
        """One that whoever is being served may change."""
        record = await self._upload(name)
        check_owner(record.owner, current_principal(), f"upload {record.id}")
        return record

    async def _whole(self, record: UploadRecord) -> pb.Upload:
        if record.finished:
            return upload_message(record, files=True)
        return upload_message(
            record, await asyncio.to_thread(self._uploads.committed, record), files=True
        )


def upload_message(
    record: UploadRecord, committed: Sequence[int] = (), *, files: bool = False
) -> pb.Upload:
    """The resource. committed: bytes that are there, of each file; none: not told. files: whether
    to name them."""
    state = pb.UPLOAD_STATE_FINISHED if record.finished else pb.UPLOAD_STATE_ACTIVE
    message = pb.Upload(
        name=UPLOAD.name(record.id),
        spec=pb.UploadSpec(
            artifact_id=record.artifact_id, kind=pb.ARTIFACT_KIND_FILES, license=record.license
        ),
        status=pb.UploadStatus(
            state=state, artifact=f"artifacts/{record.finished}" if record.finished else ""
        ),
        owner=record.owner if record.tenant else None,
        create_time=timestamp(record.created_unix_ms),
        expire_time=timestamp(record.expires_unix_ms),
        piece_bytes=record.piece_bytes,
    )
    for path, size in record.files if files else ():
        message.spec.files.add(path=path, size_bytes=size)
    for (path, size), done in zip(record.files, committed, strict=False):
        message.status.files.add(path=path, size_bytes=size, committed_bytes=done)
    return message
