"""Folders that become artifacts, and artifacts that become folders; what was stopped goes on where
it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.v1 import artifacts_pb2 as pb

if TYPE_CHECKING:
    from plinth.client.calls.artifacts import ArtifactService, AsyncArtifactService

_READ_BYTES = 1 << 20
_PAGE = 1000
_PART = ".part"  # what of a file has come

# A call of ArtifactService and its arguments; what comes back is the call's result.
Step = tuple[str, dict[str, Any]]


def upload(artifacts: ArtifactService, folder: Path, artifact_id: str, license: str) -> pb.Artifact:
    """As `Client.upload`."""
    steps = _uploading(folder, artifact_id, license)
    result: Any = None
    while isinstance(step := _next(steps, result), tuple):
        name, arguments = step
        result = getattr(artifacts, name)(**arguments)
    return step


def download(artifacts: ArtifactService, name: str, folder: Path) -> str:
    """As `Client.download`."""
    version = name
    for page in artifacts.list_artifact_files(name, page_size=_PAGE).pages():
        version = page.artifact
        for file in page.files:
            if (landing := Landing.of(folder, file)) is None:
                continue
            pieces = artifacts.download_artifact(version, path=file.path, offset=landing.size)
            with landing.open() as out:
                for piece in pieces:
                    out.write(piece.data)
            landing.finish()
    return version


async def upload_async(
    artifacts: AsyncArtifactService, folder: Path, artifact_id: str, license: str
) -> pb.Artifact:
    """As `AsyncClient.upload`."""
    steps = _uploading(folder, artifact_id, license)
    result: Any = None
    # Files are read and hashed between two calls.
    while isinstance(step := await asyncio.to_thread(_next, steps, result), tuple):
        name, arguments = step
        result = await getattr(artifacts, name)(**arguments)
    return step


async def download_async(artifacts: AsyncArtifactService, name: str, folder: Path) -> str:
    """As `AsyncClient.download`."""
    version = name
    async for page in artifacts.list_artifact_files(name, page_size=_PAGE).pages():
        version = page.artifact
        for file in page.files:
            if (landing := await asyncio.to_thread(Landing.of, folder, file)) is None:
                continue
            pieces = artifacts.download_artifact(version, path=file.path, offset=landing.size)
            with landing.open() as out:
                async for piece in pieces:
                    await asyncio.to_thread(out.write, piece.data)
            await asyncio.to_thread(landing.finish)
    return version


def _next(steps: Generator[Step, Any, pb.Artifact], result: Any) -> Step | pb.Artifact:
    """The next step, or what came of them all: a StopIteration can't leave a coroutine."""
    try:
        return steps.send(result)
    except StopIteration as ended:
        made: pb.Artifact = ended.value
        return made


def _uploading(folder: Path, artifact_id: str, license: str) -> Generator[Step, Any, pb.Artifact]:
    """The calls of an upload."""
    files = list(_files(folder))
    if not files:
        raise InvalidArgument(f"{folder} has no files", reason="EMPTY_FOLDER", field="folder")
    digests = {path: _digest(folder / path) for path in files}
    spec = pb.UploadSpec(
        artifact_id=artifact_id,
        license=license,
        files=[
            pb.UploadFile(path=path, size_bytes=(folder / path).stat().st_size) for path in files
        ],
    )
    # The same files to the same name are the same upload.
    identity = hashlib.sha256(repr((artifact_id, license, sorted(digests.items()))).encode())
    upload: pb.Upload = yield (
        "create_upload",
        {"upload": pb.Upload(spec=spec), "request_id": f"upload-{identity.hexdigest()[:32]}"},
    )
    if upload.status.state != pb.UPLOAD_STATE_FINISHED:
        upload = yield "get_upload", {"name": upload.name}
        for status in upload.status.files:
            yield from _writing(upload, folder, status)
    made: pb.Artifact = yield "finish_upload", {"name": upload.name, "digests": digests}
    return made


def _writing(
    upload: pb.Upload, folder: Path, status: pb.UploadFileStatus
) -> Generator[Step, Any, None]:
    """The pieces of one file from where it is."""
    with (folder / status.path).open("rb") as file:
        for offset in range(status.committed_bytes, status.size_bytes, upload.piece_bytes):
            file.seek(offset)
            data = file.read(min(upload.piece_bytes, status.size_bytes - offset))
            arguments = {"name": upload.name, "path": status.path, "offset": offset, "data": data}
            yield "write_upload", arguments


def _files(folder: Path) -> Iterator[str]:
    """The paths of all files, with "/" between their parts. InvalidArgument for links and what else
    is no file: what is sent is what lies there."""
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is no folder", reason="NO_FOLDER", field="folder")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArgument(
                f"{path} is a link, or no file: upload a folder that holds the files themselves",
                reason="NO_FILE",
                field="folder",
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@dataclass(frozen=True)
class Landing:
    """Where a file comes down. size: how much of it is there, in bytes."""

    path: Path
    part: Path
    digest: str
    size: int

    @classmethod
    def of(cls, folder: Path, file: pb.ArtifactFile) -> Landing | None:
        """None where the whole file is there. DataLoss for a path that leads out of the folder."""
        parts = PurePosixPath(file.path).parts
        if not parts or ".." in parts or file.path.startswith("/") or "\0" in file.path:
            raise DataLoss(f"{file.path!r} leads out of the artifact", reason="ARTIFACT_PATH")
        path = folder.joinpath(*parts)
        whole = path.is_file() and path.stat().st_size == file.size_bytes
        if whole and _digest(path) == file.digest:
            return None
        part = path.with_name(path.name + _PART)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = part.stat().st_size if part.is_file() else 0
        if size > file.size_bytes:
            part.unlink()
            size = 0
        return cls(path, part, file.digest, size)

    def open(self) -> Any:
        """The part, to be added to."""
        return self.part.open("ab")

    def finish(self) -> None:
        """The whole file takes its place. DataLoss if it is another one than was asked for; then
        nothing of it stays."""
        if (found := _digest(self.part)) != self.digest:
            self.part.unlink()
            raise DataLoss(
                f"{self.path} came with the digest {found}, not {self.digest}; ask for it again",
                reason="DIGEST_MISMATCH",
            )
        self.part.replace(self.path)
