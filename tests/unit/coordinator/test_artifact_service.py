"""Artifacts and aliases over the API: pages, filters, owners, deletes, downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifact_calls import ADMIN, ANNA, BEN, Caller, digest
from plinth.coordinator.downloads import PIECE_BYTES
from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from plinth.shared.identity import call_scope
from plinth.v1 import artifacts_pb2 as pb


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return Caller((tmp_path / "store").as_uri())


def publish(call: Caller, tmp_path: Path, name: str, text: str, **more: Any) -> str:
    """One version of `name`, made with Anna's key; its reference."""
    (tmp_path / "file.txt").write_text(text)
    kind = more.pop("kind", "model")
    with call_scope(principal=ANNA):
        return call.store.publish(name, kind, tmp_path / "file.txt", **more).ref


async def listed(call: Caller, size: int = 0, **more: Any) -> list[str]:
    """Names on all pages."""
    found: list[str] = []
    request = pb.ListArtifactsRequest(page_size=size, **more)
    while True:
        page = await call("ListArtifacts", request)
        found += [one.name for one in page.artifacts]
        assert not any(one.HasField("manifest") for one in page.artifacts)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_one_version_by_each_of_its_names(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "one", config={"layers": 2, "rate": 0.5}, license="mit")
    publish(call, tmp_path, "chat", "two!", parents=["base@1"], metrics={"loss": 1.25})
    call.store.set_alias("chat", "prod", 1)
    first = (await call("GetArtifact", pb.GetArtifactRequest(name="artifacts/chat:prod"))).artifact
    assert (first.name, first.artifact_id, first.version) == ("artifacts/chat@1", "chat", 1)
    assert (first.kind, list(first.aliases)) == (pb.ARTIFACT_KIND_MODEL, ["prod"])
    assert (first.owner.tenant, first.owner.key_id) == ("anna", "key-a")
    assert (first.size_bytes, first.file_count) == (3, 1)
    assert (first.manifest.license, first.manifest.config["layers"]) == ("mit", 2)
    assert first.create_time.seconds > 1_700_000_000
    latest = (await call("GetArtifact", pb.GetArtifactRequest(name="artifacts/chat"))).artifact
    assert (latest.version, list(latest.parents)) == (2, ["base@1"])
    assert latest.manifest.metrics["loss"] == 1.25
    request = pb.ListArtifactVersionsRequest(name="artifacts/chat", page_size=1)
    page = await call("ListArtifactVersions", request)
    assert [one.version for one in page.artifacts] == [2]
    request.page_token = page.next_page_token
    page = await call("ListArtifactVersions", request)
    assert ([one.version for one in page.artifacts], page.next_page_token) == ([1], "")


@pytest.mark.parametrize("name", ["chat", "artifacts/", "artifacts/a/b", "artifacts/A", "runs/x"])
async def test_what_is_no_name_is_refused(call: Caller, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call("GetArtifact", pb.GetArtifactRequest(name=name))
    assert caught.value.field == "name"


async def test_pages_while_others_are_added(call: Caller, tmp_path: Path) -> None:
    for name in ("b", "d", "f"):
        for version in range(3):
            publish(call, tmp_path, name, f"{name}{version}")
    whole = await listed(call)
    assert whole == [f"artifacts/{name}@{v}" for name in "bdf" for v in (3, 2, 1)]
    request, found = pb.ListArtifactsRequest(page_size=2), list[str]()
    for added in ("a", "d", "e", "f", "g"):
        page = await call("ListArtifacts", request)
        found += [one.name for one in page.artifacts]
        request.page_token = page.next_page_token
        publish(call, tmp_path, added, "new")
    there_all_the_time = [name for name in found if name in whole]
    assert there_all_the_time == whole, "each once"


async def test_filters(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    publish(call, tmp_path, "chat", "2")
    publish(call, tmp_path, "chat-text", "3", kind="corpus")
    call.store.set_alias("chat", "prod", 1)
    for asked, wanted in {
        "kind = CORPUS": ["artifacts/chat-text@1"],
        'name = "artifacts/chat-*"': ["artifacts/chat-text@1"],
        'artifact_id = "chat"': ["artifacts/chat@2", "artifacts/chat@1"],
        "aliases:prod": ["artifacts/chat@1"],
        "version >= 2 AND owner.tenant = anna": ["artifacts/chat@2"],
        'create_time < "2020-01-01T00:00:00Z"': [],
    }.items():
        assert await listed(call, filter=asked) == wanted, asked
        assert await listed(call, 1, filter=asked) == wanted, asked
    with pytest.raises(InvalidArgument, match="knows of kind"):
        await listed(call, filter="kind = model")


# -- aliases ---------------------------------------------------------------------------------------


async def test_an_alias_moves_from_what_was_read(call: Caller, tmp_path: Path) -> None:
    for text in "123":
        publish(call, tmp_path, "chat", text)
    alias = pb.Alias(name="artifacts/chat:prod", artifact="artifacts/chat@1")
    made = (await call("SetAlias", pb.SetAliasRequest(alias=alias))).alias
    assert (made.artifact, bool(made.etag)) == ("artifacts/chat@1", True)
    move = pb.Alias(name=made.name, artifact="artifacts/chat@2", etag=made.etag)
    moved = (await call("SetAlias", pb.SetAliasRequest(alias=move))).alias
    with pytest.raises(Aborted) as caught:
        await call("SetAlias", pb.SetAliasRequest(alias=move))
    assert caught.value.metadata["etag"] == moved.etag
    found = await call("GetAlias", pb.GetAliasRequest(name=made.name))
    assert found.alias == moved
    with pytest.raises(Aborted):
        await call("DeleteAlias", pb.DeleteAliasRequest(name=made.name, etag=made.etag))
    await call("DeleteAlias", pb.DeleteAliasRequest(name=made.name, etag=moved.etag))
    for method, request in (
        ("GetAlias", pb.GetAliasRequest(name=made.name)),
        ("DeleteAlias", pb.DeleteAliasRequest(name=made.name)),
        ("GetArtifact", pb.GetArtifactRequest(name=made.name)),
    ):
        with pytest.raises(NotFound):
            await call(method, request)
    again = (await call("SetAlias", pb.SetAliasRequest(alias=alias))).alias
    assert again.artifact == "artifacts/chat@1"


async def test_aliases_in_pages(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    for alias in ("a", "b", "c"):
        call.store.set_alias("chat", alias, 1)
    call.store.delete_alias("chat", "b")
    request = pb.ListAliasesRequest(parent="artifacts/chat", page_size=1)
    page = await call("ListAliases", request)
    assert [one.name for one in page.aliases] == ["artifacts/chat:a"]
    request.page_token = page.next_page_token
    page = await call("ListAliases", request)
    assert ([one.name for one in page.aliases], page.next_page_token) == (["artifacts/chat:c"], "")


async def test_an_alias_is_of_its_own_artifact(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    publish(call, tmp_path, "base", "1")
    for alias in (
        pb.Alias(name="artifacts/chat:prod", artifact="artifacts/base@1"),
        pb.Alias(name="artifacts/chat@1", artifact="artifacts/chat@1"),
        pb.Alias(name="artifacts/chat:prod", artifact="chat@1"),
    ):
        with pytest.raises(InvalidArgument):
            await call("SetAlias", pb.SetAliasRequest(alias=alias))


# -- deletes and owners ----------------------------------------------------------------------------


async def test_what_is_in_use_is_not_deleted(call: Caller, tmp_path: Path) -> None:
    base = publish(call, tmp_path, "base", "1")
    publish(call, tmp_path, "chat", "2", parents=[base])
    call.store.set_alias("base", "prod", 1)
    call.uses = ["deployment base"]
    delete = pb.DeleteArtifactRequest(name="artifacts/base@1")
    with pytest.raises(FailedPrecondition) as caught:
        await call("DeleteArtifact", delete)
    assert caught.value.reason == "ARTIFACT_IN_USE"
    for user in ("alias base:prod", "artifact chat@1", "deployment base"):
        assert user in caught.value.message
    call.store.delete_alias("base", "prod")
    call.uses = []
    await call("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@1"))
    await call("DeleteArtifact", delete)
    assert await listed(call) == []
    with pytest.raises(NotFound):
        await call("DeleteArtifact", delete)
    assert call.store.storage.names("artifacts/base/content") == []


async def test_a_number_is_not_given_again(call: Caller, tmp_path: Path) -> None:
    for text in "12":
        publish(call, tmp_path, "chat", text)
    await call("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@2"))
    others = call.by(ANNA)  # another replica
    assert publish(others, tmp_path, "chat", "2") == "chat@3"
    assert await listed(call) == ["artifacts/chat@3", "artifacts/chat@1"]
    with pytest.raises(NotFound, match="no version 2"):
        await call("GetArtifact", pb.GetArtifactRequest(name="artifacts/chat@2"))


async def test_content_stays_while_another_name_has_it(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    call.store.link("copy", call.store.get("chat"))
    await call("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@1"))
    call.store.verify("copy@1")
    await call("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/copy@1"))
    assert await listed(call) == []


@pytest.mark.parametrize("name", ["artifacts/chat", "artifacts/chat:prod"])
async def test_only_a_version_is_deleted(call: Caller, tmp_path: Path, name: str) -> None:
    publish(call, tmp_path, "chat", "1")
    call.store.set_alias("chat", "prod", 1)
    with pytest.raises(InvalidArgument, match="names no version"):
        await call("DeleteArtifact", pb.DeleteArtifactRequest(name=name))


async def test_others_read_and_do_not_change(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    alias = pb.Alias(name="artifacts/chat:prod", artifact="artifacts/chat@1")
    await call("SetAlias", pb.SetAliasRequest(alias=alias))
    ben = call.by(BEN)
    assert await listed(ben) == ["artifacts/chat@1"]
    for method, request in (
        ("SetAlias", pb.SetAliasRequest(alias=alias)),
        ("DeleteAlias", pb.DeleteAliasRequest(name=alias.name)),
        ("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@1")),
    ):
        with pytest.raises(PermissionDenied) as caught:
            await ben(method, request)
        assert caught.value.reason == "OTHER_TENANT"
    admin = call.by(ADMIN)
    await admin("DeleteAlias", pb.DeleteAliasRequest(name=alias.name))
    await admin("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@1"))


# -- files -----------------------------------------------------------------------------------------


async def test_a_file_goes_on_where_it_broke(call: Caller, tmp_path: Path) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 256) + b"the end"
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "weights").write_bytes(data)
    (tmp_path / "folder" / "empty").write_bytes(b"")
    call.store.publish("chat", "model", tmp_path / "folder")
    call.store.set_alias("chat", "prod", 1)
    request = pb.ListArtifactFilesRequest(parent="artifacts/chat:prod", page_size=1)
    page = await call("ListArtifactFiles", request)
    assert ([one.path for one in page.files], page.artifact) == (["empty"], "artifacts/chat@1")
    publish(call, tmp_path, "chat", "moved meanwhile")
    call.store.set_alias("chat", "prod", 2)
    request.page_token = page.next_page_token
    page = await call("ListArtifactFiles", request)
    (weights,) = page.files
    assert (weights.path, weights.size_bytes) == ("sub/weights", len(data))
    asked = {"name": "artifacts/chat@1", "path": "sub/weights"}
    pieces = await call.download(**asked)
    assert [piece.offset for piece in pieces] == [0, PIECE_BYTES]
    assert digest(b"".join(piece.data for piece in pieces)) == weights.digest
    assert b"".join(p.data for p in await call.download(**asked, offset=9)) == data[9:]
    rest = await call.download(
        name="artifacts/chat", path="sub/weights", resume_token=pieces[0].resume_token
    )
    assert b"".join(piece.data for piece in rest) == b"the end", "of the version that it began with"
    assert await call.download(**asked, resume_token=pieces[1].resume_token) == []
    assert await call.download(name="artifacts/chat@1", path="empty") == []
    (manifest,) = await call.download(name="artifacts/chat@1", path="manifest.json")
    assert b'"name":"chat"' in manifest.data


async def test_what_can_not_be_downloaded(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "12345")
    asked = {"name": "artifacts/chat@1", "path": "file.txt"}
    for more, kind in (
        ({"path": "other"}, NotFound),
        ({"path": "../1.json"}, NotFound),
        ({"offset": 6}, InvalidArgument),
        ({"resume_token": "1:6"}, InvalidArgument),
        ({"resume_token": "x"}, InvalidArgument),
        ({"name": "artifacts/chat@7"}, NotFound),
    ):
        with pytest.raises(kind):
            await call.download(**asked | more)
    record = call.store.get("chat")
    path = call.store.fetch(record) / "file.txt"
    path.chmod(0o600)
    path.write_bytes(b"12")
    with pytest.raises(DataLoss, match="ends after 2 bytes of 5"):
        await call.download(**asked)


def damage(call: Caller, ref: str) -> None:
    path = call.store.storage.local(call.store.get(ref).path)
    assert path is not None
    (path / "manifest.json").chmod(0o600)
    (path / "manifest.json").write_bytes(b"{")


async def test_a_damaged_version_hides_no_other(call: Caller, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for version in range(3):
            publish(call, tmp_path, name, f"{name}{version}")
    for ref in ("a@3", "a@1", "b@1"):
        damage(call, ref)
    fresh = call.by(ANNA)  # another replica, which has not read them
    request, found, lost = pb.ListArtifactsRequest(page_size=1), list[str](), list[str]()
    while True:
        page = await fresh("ListArtifacts", request)
        found += [one.name for one in page.artifacts]
        lost += page.unreachable
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert found == ["artifacts/a@2", "artifacts/b@3", "artifacts/b@2"]
    assert lost == ["artifacts/a@3", "artifacts/a@1", "artifacts/b@1"]
    versions = await fresh(
        "ListArtifactVersions", pb.ListArtifactVersionsRequest(name="artifacts/a")
    )
    assert [one.version for one in versions.artifacts] == [2]
    assert list(versions.unreachable) == ["artifacts/a@3", "artifacts/a@1"]
    with pytest.raises(DataLoss):
        await fresh("GetArtifact", pb.GetArtifactRequest(name="artifacts/a@3"))


async def test_an_alias_is_only_made(call: Caller, tmp_path: Path) -> None:
    for text in "12":
        publish(call, tmp_path, "chat", text)
    alias = pb.Alias(name="artifacts/chat:prod", artifact="artifacts/chat@1")
    make = pb.SetAliasRequest(alias=alias, create_only=True)
    made = (await call("SetAlias", make)).alias
    assert (await call("SetAlias", make)).alias == made, "again"
    make.alias.artifact = "artifacts/chat@2"
    with pytest.raises(AlreadyExists) as caught:
        await call("SetAlias", make)
    assert (caught.value.reason, caught.value.metadata["etag"]) == ("ALIAS_EXISTS", made.etag)
    make.alias.etag = made.etag
    with pytest.raises(InvalidArgument, match="one of them"):
        await call("SetAlias", make)
    await call("DeleteAlias", pb.DeleteAliasRequest(name=made.name))
    make.alias.etag = ""
    assert (await call("SetAlias", make)).alias.artifact == "artifacts/chat@2"


async def test_an_alias_of_a_version_that_has_gone_can_be_mended(
    call: Caller, tmp_path: Path
) -> None:
    for text in "12":
        publish(call, tmp_path, "chat", text)
    call.store.set_alias("chat", "prod", 1)
    call.store._versions.delete("chat", 1)  # as a version without these checks left it
    alias = pb.Alias(name="artifacts/chat:prod", artifact="artifacts/chat@2")
    assert (await call("SetAlias", pb.SetAliasRequest(alias=alias))).alias.artifact.endswith("@2")


async def test_what_is_deleted_while_it_is_sent_is_not_damaged(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(call, tmp_path, "chat", "1")
    storage, look = call.store.storage, call.store.storage.open

    def late(path: str) -> Any:
        call.store.delete(ref, lambda _: [])
        return look(path)

    monkeypatch.setattr(storage, "open", late)
    with pytest.raises(NotFound):
        await call.download(name="artifacts/chat@1", path="file.txt")


async def test_what_is_not_there_is_told_of_its_field(call: Caller, tmp_path: Path) -> None:
    publish(call, tmp_path, "chat", "1")
    alias = pb.Alias(name="artifacts/chat:prod", artifact="artifacts/chat@9")
    for method, request, field in (
        ("GetArtifact", pb.GetArtifactRequest(name="artifacts/gone"), "name"),
        ("ListArtifactVersions", pb.ListArtifactVersionsRequest(name="artifacts/gone"), "name"),
        ("ListArtifactFiles", pb.ListArtifactFilesRequest(parent="artifacts/chat:gone"), "parent"),
        ("DeleteArtifact", pb.DeleteArtifactRequest(name="artifacts/chat@9"), "name"),
        ("ListAliases", pb.ListAliasesRequest(parent="artifacts/gone"), "parent"),
        ("SetAlias", pb.SetAliasRequest(alias=alias), "alias.artifact"),
        ("GetUpload", pb.GetUploadRequest(name="uploads/0123"), "name"),
    ):
        with pytest.raises(NotFound) as caught:
            await call(method, request)
        assert caught.value.field == field, method
    with pytest.raises(NotFound) as told:
        await call.download(name="artifacts/chat@9", path="file.txt")
    assert told.value.field == "name"
    for name in ("uploads/..", "uploads/a/b", "uploads/É", "runs/a"):
        with pytest.raises(InvalidArgument) as wrong:
            await call("GetUpload", pb.GetUploadRequest(name=name))
        assert wrong.value.field == "name"
    with pytest.raises(InvalidArgument) as path:
        await call.upload({"../x": b""})
    assert path.value.field == "upload.spec.files"
