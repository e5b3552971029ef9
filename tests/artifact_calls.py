"""ArtifactService as a client with a key calls it, without the network between."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from plinth.coordinator.artifact_service import ArtifactServicer
from plinth.coordinator.uploads import Uploads
from plinth.shared.api.owners import calling_owner
from plinth.shared.api.paging import Pages
from plinth.shared.identity import Principal, call_scope
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import artifacts_pb2 as pb

ANNA = Principal("anna", "key-a", frozenset({"artifacts"}))
BEN = Principal("ben", "key-b", frozenset({"artifacts"}))
ADMIN = Principal("ops", "key-o", frozenset({"admin"}))


class Caller:
    """Calls as `principal`; `uses` is what else points to artifacts."""

    def __init__(self, url: str, principal: Principal = ANNA, piece_bytes: int = 4) -> None:
        self.store = ArtifactStore(url, maker=calling_owner)
        self.uses: list[str] = []
        self.principal = principal
        self.uploads = Uploads(self.store, piece_bytes=piece_bytes)
        self._servicer: Any = ArtifactServicer(
            self.store, self.uploads, Pages("a secret"), self._in_use
        )

    async def _in_use(self, record: ArtifactRecord) -> Sequence[str]:
        return list(self.uses)

    def by(self, principal: Principal) -> Caller:
        return Caller(self.store.url, principal)

    async def __call__(self, method: str, request: Any) -> Any:
        with call_scope(principal=self.principal):
            return await getattr(self._servicer, method)(request, None)

    async def download(self, **asked: Any) -> list[pb.DownloadArtifactResponse]:
        with call_scope(principal=self.principal):
            request = pb.DownloadArtifactRequest(**asked)
            return [piece async for piece in self._servicer.DownloadArtifact(request, None)]

    async def upload(self, files: dict[str, bytes], request_id: str = "") -> pb.Upload:
        spec = pb.UploadSpec(artifact_id="drop")
        for path, data in files.items():
            spec.files.add(path=path, size_bytes=len(data))
        request = pb.CreateUploadRequest(upload=pb.Upload(spec=spec), request_id=request_id)
        upload: pb.Upload = (await self("CreateUpload", request)).upload
        return upload

    async def write(self, upload: pb.Upload, path: str, offset: int, data: bytes) -> None:
        request = pb.WriteUploadRequest(name=upload.name, path=path, offset=offset, data=data)
        await self("WriteUpload", request)

    async def send(self, upload: pb.Upload, path: str, data: bytes) -> None:
        """All pieces of a file, the last one first."""
        for offset in reversed(range(0, len(data), upload.piece_bytes)):
            await self.write(upload, path, offset, data[offset : offset + upload.piece_bytes])

    async def finish(self, upload: pb.Upload, files: dict[str, bytes]) -> pb.Artifact:
        digests = {path: digest(data) for path, data in files.items()}
        request = pb.FinishUploadRequest(name=upload.name, digests=digests)
        artifact: pb.Artifact = (await self("FinishUpload", request)).artifact
        return artifact


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
