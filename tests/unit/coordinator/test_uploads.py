"""Files that come in pieces: stopped, sent twice, at once, with another digest, by another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from artifact_calls import ADMIN, BEN, Caller, digest
from plinth.coordinator import upload_records, uploads
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from plinth.v1 import artifacts_pb2 as pb

FILES = {"config.json": b"{}", "sub/weights": b"0123456789abcdef!", "empty": b""}


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return Caller((tmp_path / "store").as_uri())


async def whole(call: Caller, upload: pb.Upload) -> pb.Upload:
    found: pb.Upload = (await call("GetUpload", pb.GetUploadRequest(name=upload.name))).upload
    return found


async def test_pieces_become_an_artifact(call: Caller) -> None:
    upload = await call.upload(FILES)
    assert (upload.piece_bytes, upload.owner.tenant) == (4, "anna")
    assert upload.expire_time.seconds - upload.create_time.seconds == 7 * 86400
    for path, data in FILES.items():
        await call.send(upload, path, data)
    made = await call.finish(upload, FILES)
    assert (made.name, made.kind) == ("artifacts/drop@1", pb.ARTIFACT_KIND_FILES)
    assert (made.owner.tenant, made.size_bytes) == ("anna", 19)
    folder = call.store.fetch("drop")
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert await call.finish(upload, FILES) == made, "again"
    after = await whole(call, upload)
    assert after.status.state == pb.UPLOAD_STATE_FINISHED
    assert after.status.artifact == "artifacts/drop@1"
    with pytest.raises(FailedPrecondition, match="it became drop@1"):
        await call.write(upload, "config.json", 0, b"{}")
    assert call.store.storage.names(f"{upload.name}/pieces") == []


async def test_one_that_stopped_goes_on_at_another_replica(call: Caller) -> None:
    upload = await call.upload(FILES)
    await call.write(upload, "sub/weights", 0, b"0123")
    await call.write(upload, "sub/weights", 8, b"89ab")
    other = Caller(call.store.url)
    status = (await whole(other, upload)).status
    assert {one.path: one.committed_bytes for one in status.files} == {
        "config.json": 0,
        "sub/weights": 4,
        "empty": 0,
    }
    with pytest.raises(FailedPrecondition, match=r"config\.json from 0 of 2, sub/weights from 4"):
        await other.finish(upload, FILES)
    for path, data in FILES.items():
        await other.send(upload, path, data)
    assert (await other.finish(upload, FILES)).version == 1


async def test_a_piece_comes_twice(call: Caller) -> None:
    upload = await call.upload(FILES)
    same = [call.write(upload, "sub/weights", 0, b"0123") for _ in range(5)]
    await asyncio.gather(*same)
    with pytest.raises(AlreadyExists) as caught:
        await call.write(upload, "sub/weights", 0, b"9999")
    assert caught.value.reason == "PIECE_DIFFERS"


async def test_finished_twice_at_once_is_one_artifact(call: Caller) -> None:
    upload = await call.upload(FILES)
    for path, data in FILES.items():
        await call.send(upload, path, data)
    made = await asyncio.gather(*(call.finish(upload, FILES) for _ in range(3)))
    assert {one.name for one in made} == {"artifacts/drop@1"}
    assert len(call.store.list()) == 1


async def test_another_digest_publishes_nothing(call: Caller) -> None:
    upload = await call.upload(FILES)
    for path, data in FILES.items():
        await call.send(upload, path, data)
    digests = {path: digest(data) for path, data in FILES.items()}
    wrong = digests | {"sub/weights": digest(b"other")}
    for bad, reason in (
        (wrong, "DIGEST_MISMATCH"),
        ({}, "INVALID_ARGUMENT"),
        (digests | {"more": digest(b"")}, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await call("FinishUpload", pb.FinishUploadRequest(name=upload.name, digests=bad))
        assert caught.value.reason == reason
    assert call.store.list() == []
    assert call.store.storage.names("artifacts/drop/content") == []
    assert (await call.finish(upload, FILES)).version == 1


@pytest.mark.parametrize(
    ("path", "offset", "data"),
    [
        ("other", 0, b"0123"),
        ("sub/weights", 2, b"2345"),
        ("sub/weights", 20, b"0123"),
        ("sub/weights", 0, b"012"),
        ("sub/weights", 0, b"01234"),
        ("sub/weights", 16, b"0123"),
        ("empty", 0, b""),
    ],
)
async def test_pieces_that_fit_nowhere(call: Caller, path: str, offset: int, data: bytes) -> None:
    upload = await call.upload(FILES)
    with pytest.raises((InvalidArgument, NotFound)):
        await call.write(upload, path, offset, data)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"../x": b""},
        {"/etc/passwd": b""},
        {"manifest.json": b""},
        {"a": b"", "a/b": b""},
        {str(n): b"" for n in range(1001)},
    ],
)
async def test_what_can_be_no_artifact(call: Caller, files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidArgument):
        await call.upload(files)


async def test_more_of_what_can_be_no_artifact(call: Caller) -> None:
    file = pb.UploadFile(path="a", size_bytes=1)
    for spec in (
        pb.UploadSpec(artifact_id="Drop", files=[file]),
        pb.UploadSpec(artifact_id="drop", files=[file], kind=pb.ARTIFACT_KIND_MODEL),
        pb.UploadSpec(artifact_id="drop", files=[file, file]),
        pb.UploadSpec(artifact_id="drop", files=[pb.UploadFile(path="a", size_bytes=1 << 41)]),
    ):
        with pytest.raises(InvalidArgument):
            await call("CreateUpload", pb.CreateUploadRequest(upload=pb.Upload(spec=spec)))
    with pytest.raises(InvalidArgument, match="request_id"):
        await call.upload(FILES, request_id="with blanks")


async def test_a_request_makes_one_upload(call: Caller) -> None:
    first = await call.upload(FILES, request_id="r1")
    assert await call.upload(FILES, request_id="r1") == first
    assert (await call.upload(FILES, request_id="r2")).name != first.name
    assert (await call.upload(FILES)).name != (await call.upload(FILES)).name
    with pytest.raises(AlreadyExists):
        await call.upload({"a": b"1"}, request_id="r1")
    assert (await call.by(BEN).upload({"a": b"1"}, request_id="r1")).name != first.name


async def test_nobody_makes_the_next_version_of_anothers(call: Caller) -> None:
    upload = await call.upload({"a": b""})
    await call.finish(upload, {"a": b""})
    with pytest.raises(PermissionDenied):
        await call.by(BEN).upload(FILES)
    await call.by(ADMIN).upload(FILES)
    await call.upload(FILES)


async def test_a_name_that_was_taken_meanwhile_is_anothers(call: Caller) -> None:
    files, ben = {"a": b""}, call.by(BEN)
    upload = await ben.upload(files)
    made = await call.finish(await call.upload(files), files)
    with pytest.raises(PermissionDenied, match="artifact drop"):
        await ben.finish(upload, files)
    assert [one.ref for one in call.store.list()] == [made.name.removeprefix("artifacts/")]


async def test_another_tenants_upload_is_not_changed(call: Caller) -> None:
    upload = await call.upload(FILES)
    ben = call.by(BEN)
    assert (await whole(ben, upload)).owner.tenant == "anna"
    for act in (
        ben.write(upload, "config.json", 0, b"{}"),
        ben.finish(upload, FILES),
        ben("DeleteUpload", pb.DeleteUploadRequest(name=upload.name)),
    ):
        with pytest.raises(PermissionDenied):
            await act
    await call.by(ADMIN)("DeleteUpload", pb.DeleteUploadRequest(name=upload.name))
    with pytest.raises(NotFound):
        await whole(call, upload)
    assert call.store.storage.names("uploads") == []


async def test_a_tenant_has_so_many_and_they_expire(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_ACTIVE", 3)
    made = [await call.upload(FILES, request_id=str(n)) for n in range(3)]
    with pytest.raises(ResourceExhausted, match="3 uploads"):
        await call.upload(FILES)
    await call.by(BEN).upload(FILES)
    request, names = pb.ListUploadsRequest(page_size=2), list[str]()
    for _ in range(2):
        page = await call("ListUploads", request)
        names += [one.name for one in page.uploads]
        request.page_token = page.next_page_token
    assert len(names) == 4 and {one.name for one in made} < set(names)
    assert not any(one.spec.files for one in page.uploads)
    monkeypatch.setattr(upload_records, "LIFETIME_MS", -1)
    await call.upload(FILES)
    assert len(call.store.storage.names("uploads")) == 1


async def test_a_damaged_record_hides_no_other(call: Caller) -> None:
    kept = await call.upload(FILES)
    bad = await call.upload(FILES, request_id="r")
    record = call.store.storage.local(f"{bad.name}/upload.json")
    assert record is not None
    record.write_bytes(b"{")
    page = await call("ListUploads", pb.ListUploadsRequest())
    assert [one.name for one in page.uploads] == [kept.name]
    assert list(page.unreachable) == [bad.name]
    with pytest.raises(DataLoss):
        await whole(call, bad)
    await call.upload(FILES)


@pytest.mark.parametrize("license", ["x" * 201, "a\nb"])
async def test_a_license_is_named_not_told(call: Caller, license: str) -> None:
    file = pb.UploadFile(path="a", size_bytes=1)
    spec = pb.UploadSpec(artifact_id="drop", files=[file], license=license)
    with pytest.raises(InvalidArgument, match="at most 200") as caught:
        await call("CreateUpload", pb.CreateUploadRequest(upload=pb.Upload(spec=spec)))
    assert caught.value.field == "upload.spec.license"


async def test_what_can_be_no_digest_is_refused_before_anything_is_read(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await call.upload({"a": b"1"})
    await call.send(upload, "a", b"1")

    def read(*_: object) -> bytes:
        raise AssertionError("a piece was read")

    monkeypatch.setattr(uploads.Uploads, "_content", read)
    for said in ("", "sha256:", digest(b"1").upper(), digest(b"1")[7:]):
        with pytest.raises(InvalidArgument, match="64 of 0-9 a-f") as caught:
            request = pb.FinishUploadRequest(name=upload.name, digests={"a": said})
            await call("FinishUpload", request)
        assert caught.value.field == "digests.a"


async def test_what_has_expired_takes_nothing(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await call.upload(FILES, request_id="r")
    await call.write(upload, "config.json", 0, b"{}")
    with monkeypatch.context() as later:
        later.setattr(upload_records, "LIFETIME_MS", -1)
        for act in (
            whole(call, upload),
            call.write(upload, "sub/weights", 0, b"0123"),
            call.finish(upload, FILES),
        ):
            with pytest.raises(NotFound):
                await act
        await call.upload(FILES, request_id="r")  # which removes the first
    again = await whole(call, await call.upload(FILES, request_id="r"))
    assert not any(one.committed_bytes for one in again.status.files)


@pytest.mark.parametrize("end", ["delete", "finish"])
async def test_a_piece_that_comes_late_is_left_nowhere(
    call: Caller, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    upload, files = await call.upload({"a": b"1"}), {"a": b"1"}
    await call.send(upload, "a", b"1")
    record = call.uploads.get(upload.name.removeprefix("uploads/"))
    if end == "delete":
        call.uploads.delete(record)
        with pytest.raises(NotFound):
            call.uploads.write(record, "a", 0, b"1")
    else:
        await call.finish(upload, files)
        call.uploads.write(record, "a", 0, b"1")
    assert call.store.storage.names(f"{upload.name}/pieces") == []


async def test_a_piece_that_goes_while_it_is_compared_is_sent_again(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await call.upload({"a": b"1"})
    await call.send(upload, "a", b"1")
    storage = call.store.storage
    create = storage.create

    def gone(path: str, data: bytes) -> bool:
        made = create(path, data)
        storage.remove_tree(f"{upload.name}/pieces")
        return made

    monkeypatch.setattr(storage, "create", gone)
    with pytest.raises(Unavailable, match="send this one again"):
        await call.send(upload, "a", b"1")
