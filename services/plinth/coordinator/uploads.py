"""Uploads: files that come in pieces, over any number of calls, and become an artifact.

Layout below the store's URL, so that any replica takes any piece:

    uploads/<id>/upload.json                    what was announced, and by whom
    uploads/<id>/pieces/<file>/<offset>         one piece, created exclusively
    uploads/<id>/finished.json                  which artifact it became

A piece has a fixed size and place, so pieces may come in any order, at once and twice. All calls
block. Safe to share between threads and processes.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from plinth.coordinator.upload_records import (
    UploadRecord,
    check_digests,
    check_license,
    checked_files,
)
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.manifest import SCHEMA, canonical_json, check_name, parse_json
from plinth.shared.storage import check_path
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import owner_pb2

MAX_ACTIVE = 20  # of one tenant
PIECE_BYTES = 1 << 20
_ROOT = "uploads"
_SHOWN = 5
_RECORD, _FINISHED = "upload.json", "finished.json"


class Uploads:
    """The uploads on one store. piece_bytes: of those that begin here."""

    def __init__(self, store: ArtifactStore, *, piece_bytes: int = PIECE_BYTES) -> None:
        self._store, self._storage, self._piece_bytes = store, store.storage, piece_bytes

    def create(
        self,
        owner: owner_pb2.Owner,
        request_id: str,
        *,
        artifact_id: str,
        kind: str,
        license: str,
        files: Iterable[tuple[str, int]],
    ) -> UploadRecord:
        """InvalidArgument for what can be no artifact; AlreadyExists: another upload was made by
        this request_id; ResourceExhausted: the tenant has too many."""
        wanted = UploadRecord(
            _id_of(owner.tenant, request_id) if request_id else secrets.token_hex(16),
            check_name(artifact_id, "upload.spec.artifact_id"),
            kind,
            check_license(license),
            checked_files(files),
            self._piece_bytes,
            owner.tenant,
            owner.key_id,
            time.time_ns() // 1_000_000,
        )
        if (there := self._live(wanted.id)) is None:
            self._make_room(owner.tenant)
            row = vars(wanted) | {"files": [list(file) for file in wanted.files]}
            data = canonical_json({**row, "plinth_schema": SCHEMA})
            if self._storage.create(f"{_ROOT}/{wanted.id}/{_RECORD}", data):
                return wanted
            there = self.get(wanted.id)
        if there.announced != wanted.announced:
            raise AlreadyExists(
                f"request_id {request_id!r} made another upload, {there.id}; give another one",
                reason="UPLOAD_EXISTS",
                field="request_id",
            )
        return there

    def get(self, upload_id: str) -> UploadRecord:
        """NotFound."""
        if (found := self._live(upload_id)) is None:
            raise NotFound(
                f"there is no upload {upload_id[:80]!r}; each is removed a week after it began",
                reason="UPLOAD_NOT_FOUND",
                field="name",
            )
        return found

    def each(
        self, after: str = "", damaged: Callable[[str], None] = lambda _: None
    ) -> Iterator[UploadRecord]:
        """All of them, by id, behind the id `after`. damaged: is told the id of one that can't be
        read."""
        for upload_id in self._storage.names(_ROOT):
            if upload_id <= after:
                continue
            try:
                found = self._find(upload_id)
            except DataLoss:
                damaged(upload_id)
                continue
            if found is not None:
                yield found

    def committed(self, upload: UploadRecord) -> list[int]:
        """Of each file, how many bytes from its start are there without a gap."""
        return [
            min((at for at in upload.offsets(number) if at not in there), default=size)
            for number, (_, size) in enumerate(upload.files)
            for there in [self._there(upload, number)]
        ]

    def write(self, upload: UploadRecord, path: str, offset: int, data: bytes) -> None:
        """One piece. InvalidArgument: not where pieces begin, or not as long as the piece there;
        AlreadyExists: another one is there; FailedPrecondition: it is finished."""
        if upload.finished:
            raise FailedPrecondition(
                f"upload {upload.id} is finished: it became {upload.finished}",
                reason="UPLOAD_FINISHED",
            )
        number = upload.number(path)
        if offset not in upload.offsets(number):
            raise InvalidArgument(
                f"offset {offset}: pieces of {path} begin at multiples of {upload.piece_bytes} "
                f"below {upload.files[number][1]}",
                field="offset",
            )
        size = min(upload.piece_bytes, upload.files[number][1] - offset)
        if len(data) != size:
            raise InvalidArgument(
                f"data: the piece of {path} at {offset} has {size} bytes, not {len(data)}",
                field="data",
            )
        where = _piece(upload.id, number, offset)
        try:
            same = self._storage.create(where, data) or self._storage.read(where) == data
        except FileNotFoundError as error:  # the other one was removed since
            self.get(upload.id)
            raise Unavailable(
                f"the pieces of upload {upload.id} were removed meanwhile; send this one again",
                reason="PIECE_REMOVED",
            ) from error
        now = self._storage.names(f"{_ROOT}/{upload.id}")
        if _RECORD not in now or _FINISHED in now:
            # Deleted or finished meanwhile: nobody would find the piece again, or need it.
            self._storage.remove_tree(f"{_ROOT}/{upload.id}/pieces")
            self.get(upload.id)
        elif not same:
            raise AlreadyExists(
                f"another piece of {path} at {offset} is there already; if that was wrong, delete "
                "the upload and begin anew",
                reason="PIECE_DIFFERS",
                field="data",
            )

    def finish(self, upload: UploadRecord, digests: Mapping[str, str]) -> ArtifactRecord:
        """Publishes it. FailedPrecondition: pieces are missing; InvalidArgument: a file has another
        digest. Again: what it became."""
        if upload.finished:
            return self._store.get(upload.finished)
        self._check_complete(upload)
        check_digests(upload, digests)

        def check(entries: Mapping[str, Mapping[str, Any]]) -> None:
            for path, entry in entries.items():
                if entry["sha256"] != digests[path]:
                    raise InvalidArgument(
                        f"{path} came as {entry['sha256']}, not as {digests[path][:80]}: delete "
                        "the upload and send it anew",
                        reason="DIGEST_MISMATCH",
                        field=f"digests.{path}",
                    )

        try:
            made = self._store.owned_by(upload.owner).publish_chunks(
                upload.artifact_id,
                upload.kind,
                ((path, self._content(upload, n)) for n, (path, _) in enumerate(upload.files)),
                about={"license": upload.license or None, "extra": {"source": "upload"}},
                check=check,
            )
        except FileNotFoundError:
            # Another call has finished it, or deleted it, and removed the pieces.
            if now := self.get(upload.id).finished:
                return self._store.get(now)
            raise
        data = canonical_json({"artifact": made.ref, "plinth_schema": SCHEMA})
        self._storage.create(f"{_ROOT}/{upload.id}/{_FINISHED}", data)
        self._storage.remove_tree(f"{_ROOT}/{upload.id}/pieces")
        return self._store.get(self.get(upload.id).finished)

    def delete(self, upload: UploadRecord) -> None:
        """Removes all that came. What it became stays."""
        # The record last: who is stopped in between finds it again.
        self._storage.remove_tree(f"{_ROOT}/{upload.id}/pieces")
        self._storage.remove_tree(f"{_ROOT}/{upload.id}")

    # -- parts -----------------------------------------------------------------------------

    def _live(self, upload_id: str) -> UploadRecord | None:
        """One that there is. What has expired is removed by whoever makes the next one, and takes
        nothing until then: a piece could come in between."""
        found = self._find(upload_id)
        now = time.time_ns() // 1_000_000
        return None if found is None or found.expires_unix_ms <= now else found

    def _find(self, upload_id: str) -> UploadRecord | None:
        try:
            path = f"{_ROOT}/{check_path(upload_id)}/{_RECORD}"
            row = parse_json(self._storage.read(path), path, SCHEMA)
        except FileNotFoundError:
            return None
        files = tuple((str(path), int(size)) for path, size in row.pop("files"))
        row.pop("plinth_schema")
        finished = ""
        try:
            path = f"{_ROOT}/{upload_id}/{_FINISHED}"
            finished = str(parse_json(self._storage.read(path), path, SCHEMA)["artifact"])
        except FileNotFoundError:
            pass
        return UploadRecord(**row | {"files": files, "finished": finished})

    def _make_room(self, tenant: str) -> None:
        """Removes what has expired. ResourceExhausted."""
        now, active = time.time_ns() // 1_000_000, 0
        for upload in self.each():
            if upload.expires_unix_ms <= now:
                self.delete(upload)
            elif upload.tenant == tenant and not upload.finished:
                active += 1
        if active >= MAX_ACTIVE:
            raise ResourceExhausted(
                f"the tenant {tenant!r} has {active} uploads that are not finished, of at most "
                f"{MAX_ACTIVE}: finish or delete one (ListUploads)",
                reason="TOO_MANY_UPLOADS",
            )

    def _there(self, upload: UploadRecord, number: int) -> set[int]:
        names = self._storage.names(f"{_ROOT}/{upload.id}/pieces/{number:06d}")
        return {int(name) for name in names}

    def _check_complete(self, upload: UploadRecord) -> None:
        missing = [
            f"{path} from {done} of {size}"
            for (path, size), done in zip(upload.files, self.committed(upload), strict=True)
            if done < size
        ]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise FailedPrecondition(
                f"upload {upload.id} is not complete: {', '.join(missing[:_SHOWN])}{more}",
                reason="UPLOAD_INCOMPLETE",
            )

    def _content(self, upload: UploadRecord, number: int) -> Iterator[bytes]:
        for offset in upload.offsets(number):
            yield self._storage.read(_piece(upload.id, number, offset))


def _piece(upload_id: str, number: int, offset: int) -> str:
    return f"{_ROOT}/{upload_id}/pieces/{number:06d}/{offset:016d}"


def _id_of(tenant: str, request_id: str) -> str:
    """Of an upload that is found again by its request."""
    return hashlib.sha256(f"{tenant}\0{request_id}".encode()).hexdigest()[:32]
