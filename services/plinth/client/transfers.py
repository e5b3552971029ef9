"""Files to the platform and from it: pieces at a time, going on where an earlier attempt stopped,
with digests that are compared at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from plinth.shared.errors import DataLoss, InvalidArgument, NotFound
from plinth.v1 import artifacts_pb2 as pb

if TYPE_CHECKING:
    from plinth.client.blocking import Client

_AT_ONCE = 4
_FINISH_S = 3600.0  # the platform copies all of it
_PART = ".part"  # what of a file has come

# (bytes done, bytes of all)
Told = Callable[[int, int], None]


def upload(
    client: Client,
    files: Mapping[str, Path],
    artifact_id: str,
    *,
    license: str = "",
    told: Told = lambda done, total: None,
) -> pb.Artifact:
    """The artifact of kind FILES that the files become: path in it → file on this machine.

    The same files under the same id go on where an earlier call stopped. Raises what the platform
    does; InvalidArgument for a file that can't be read, or that changed meanwhile.
    """
    digests = {path: _digest(file) for path, file in files.items()}
    listing = "".join(f"{path}\0{digests[path]}\n" for path in sorted(files))
    request_id = hashlib.sha256(f"{artifact_id}\0{license}\0{listing}".encode()).hexdigest()
    spec = pb.UploadSpec(artifact_id=artifact_id, license=license)
    for path in sorted(files):
        spec.files.add(path=path, size_bytes=files[path].stat().st_size)
    made = client.artifacts.create_upload(pb.Upload(spec=spec), request_id=request_id)
    if made.status.state == pb.UPLOAD_STATE_FINISHED:
        try:
            return client.artifacts.get_artifact(made.status.artifact)
        except NotFound:  # it was deleted since
            client.artifacts.delete_upload(made.name)
            made = client.artifacts.create_upload(pb.Upload(spec=spec), request_id=request_id)
    _send(client, made, files, told)
    return client.artifacts.finish_upload(made.name, digests=digests, timeout=_FINISH_S)


def download(
    client: Client,
    name: str,
    folder: Path,
    *,
    told: Told = lambda done, total: None,
) -> pb.Artifact:
    """Copies all files of an artifact ("artifacts/chat@7") into `folder`; what lies there whole is
    left, and what an earlier call began goes on. DataLoss: a file came as another one than was
    published; nothing of it stays."""
    artifact = client.artifacts.get_artifact(name)
    done = 0
    for file in client.artifacts.list_artifact_files(artifact.name, page_size=1000):
        if (landing := Landing.of(folder, file)) is not None:
            _fetch(client, artifact.name, file, landing)
        done += file.size_bytes
        told(done, artifact.size_bytes)
    return artifact


def read(client: Client, name: str, path: str) -> bytes:
    """One small file of an artifact, "manifest.json" too."""
    return b"".join(piece.data for piece in client.artifacts.download_artifact(name, path=path))


def _send(client: Client, made: pb.Upload, files: Mapping[str, Path], told: Told) -> None:
    total = sum(file.size_bytes for file in made.spec.files)
    done = sum(file.committed_bytes for file in made.status.files)
    told(done, total)

    def pieces() -> Iterator[tuple[str, int]]:
        for file in made.status.files:
            for offset in range(file.committed_bytes, file.size_bytes, made.piece_bytes):
                yield file.path, offset

    def write(at: tuple[str, int]) -> int:
        path, offset = at
        with files[path].open("rb") as source:
            source.seek(offset)
            data = source.read(made.piece_bytes)
        client.artifacts.write_upload(made.name, path=path, offset=offset, data=data)
        return len(data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = pieces()
        while batch := [one for _, one in zip(range(16 * _AT_ONCE), waiting, strict=False)]:
            for sent in pool.map(write, batch):
                done += sent
                told(done, total)


def _fetch(client: Client, name: str, file: pb.ArtifactFile, landing: Landing) -> None:
    pieces = client.artifacts.download_artifact(name, path=file.path, offset=landing.size)
    with landing.part.open("ab") as out:
        for piece in pieces:
            out.write(piece.data)
    landing.finish()


@dataclass(frozen=True)
class Landing:
    """Where a file comes down: under another name first, since what has its name is whole. size:
    how much of it is there, in bytes."""

    path: Path
    part: Path
    digest: str
    size: int

    @classmethod
    def of(cls, folder: Path, file: pb.ArtifactFile) -> Landing | None:
        """None where the whole file is there. DataLoss for a path that leads out of the folder: no
        artifact has one."""
        parts = PurePosixPath(file.path).parts
        path = folder.joinpath(*parts)
        plain = parts and ".." not in parts and "\0" not in file.path
        if not plain or not path.resolve().is_relative_to(folder.resolve()):
            raise DataLoss(f"{file.path!r} leads out of the artifact", reason="ARTIFACT_PATH")
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

    def finish(self) -> None:
        """The whole file takes its place. DataLoss if it is another one than was asked for; then
        nothing of it stays."""
        if (found := _digest(self.part)) != self.digest:
            self.part.unlink()
            raise DataLoss(
                f"{self.path} came as {found}, not {self.digest}; ask for it again",
                reason="DIGEST_MISMATCH",
            )
        self.part.replace(self.path)


def files_of(folder: Path) -> dict[str, Path]:
    """All files in a folder, by their paths there with "/" between the parts. InvalidArgument for
    one without any, and for links and what else is no file: what is sent is what lies there."""
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is no folder", reason="NO_FOLDER", field="folder")
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArgument(
                f"{path} is a link, or no file: upload a folder that holds the files themselves",
                reason="NO_FILE",
                field="folder",
            )
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path
    if not found:
        raise InvalidArgument(f"{folder} has no files", reason="EMPTY_FOLDER", field="folder")
    return found


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as source:
            return f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"
    except OSError as error:
        raise InvalidArgument(f"{file} can't be read: {error.strerror}") from error
