"""The store in a bucket, on servers that check signatures: what is promised and refused."""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buckets import ObjectServer
from certificates import Authority
from plinth.shared import object_storage
from plinth.shared.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.storage_url import open_storage
from plinth.shared.store import ArtifactStore
from store_rivals import race


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "config").write_text("{}")
    (folder / "sub" / "weights").write_text("w" * 1000)
    return folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that isn't there is asked twice, not for half a minute."""
    monkeypatch.setattr(object_storage, "_RETRY", {"max_retries": 1})


def test_publish_and_fetch(bucket: str, source: Path, tmp_path: Path) -> None:
    store = ArtifactStore(bucket, cache_dir=tmp_path / "cache")
    record = store.publish("chat", "model", source)
    assert record.uri.startswith(f"{bucket}/artifacts/chat/content/")
    path = store.fetch("chat")
    assert path.is_relative_to(tmp_path / "cache") and store.fetch(record) == path
    assert (path / "sub" / "weights").read_text() == "w" * 1000
    store.set_alias("chat", "prod", 1)
    fresh = ArtifactStore(bucket)
    assert fresh.list() == [record] and fresh.get("chat:prod") == record
    fresh.verify(record)
    with pytest.raises(NotFound, match="there is: chat"):
        fresh.get("char")


def test_a_damaged_original_is_never_cached(bucket: str, source: Path, tmp_path: Path) -> None:
    store = ArtifactStore(bucket, cache_dir=tmp_path / "cache")
    record = store.publish("chat", "model", source)
    store.storage.remove(f"{record.path}/config")
    with pytest.raises(DataLoss, match="config is missing"):
        store.fetch(record)
    assert store.storage.create(f"{record.path}/config", b"[]")
    for read in (store.fetch, store.verify):
        with pytest.raises(DataLoss, match="config is damaged"):
            read(record)
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_of_every_size_and_name(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = 5 << 20  # the least that S3 takes
    monkeypatch.setattr(object_storage, "_PART_BYTES", part)
    storage = open_storage(bucket)
    files = {
        f"{i} of/a%b #ä~[{i}]": os.urandom(size)
        for i, size in enumerate((0, 1, part - 1, part, part + 1, 2 * part + 3))
    }
    with storage.new_tree("tree/deep") as tree:
        for name, data in files.items():
            tree.write(name, (data[at : at + 999_983] for at in range(0, len(data), 999_983)))
        tree.commit()
    for name, data in files.items():
        with storage.open(f"tree/deep/{name}") as file:
            assert file.read(10) + file.read() == data
        assert storage.read(f"tree/deep/{name}") == data
    assert storage.names("tree/deep") == sorted(name.partition("/")[0] for name in files)
    assert storage.names("tree") == ["deep"] and storage.names("tre") == []
    storage.remove_tree("tree")
    storage.remove_tree("tree")
    assert storage.names("tree") == []


def test_a_tree_is_removed_and_its_neighbour_is_not(bucket: str) -> None:
    storage = open_storage(bucket)
    for path in ("a/x", "ab/x", "a/y/z"):
        assert storage.create(path, b"")
    storage.remove("a/x")
    storage.remove("a/x")
    assert storage.names("a") == ["y"]
    storage.remove_tree("a")
    assert storage.names("a") == [] and storage.names("ab") == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_tree_that_breaks_off_is_gone(bucket: str, error: type[BaseException]) -> None:
    """Nobody has to ask for it: not everybody who writes trees sweeps."""
    storage = open_storage(bucket)
    with pytest.raises(error), storage.new_tree("tree") as tree:
        tree.write("a", [b"a"])
        raise error
    assert storage.names("tree") == [] and list(storage.abandoned()) == []


def test_a_tree_that_could_not_be_removed_is_abandoned(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(bucket)

    def fails(*_: object) -> None:
        raise Unavailable("away")

    with pytest.raises(RuntimeError, match="first"), storage.new_tree("tree") as tree:
        tree.write("a", [b"a"])
        monkeypatch.setattr(storage, "remove_tree", fails)
        raise RuntimeError("first")
    assert list(storage.abandoned()) == ["tree"]


def test_rivals(bucket: str, tmp_path: Path) -> None:
    race(bucket, tmp_path)


def _publish_some(url: str, folder: str, count: int) -> None:
    store = ArtifactStore(url)
    for i in range(count):
        (Path(folder) / "a").write_text(f"{folder} {i}")
        store.publish("chat", "model", Path(folder))


def test_rival_processes(bucket: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    rivals = [spawn.Process(target=_publish_some, args=(bucket, str(f), 10)) for f in folders]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(60)
        assert rival.exitcode == 0
        rival.close()
    records = ArtifactStore(bucket).list()
    assert [record.version for record in records] == list(range(20, 0, -1))
    assert len({record.digest for record in records}) == 20


def test_a_publication_that_fails_leaves_nothing(
    object_server: ObjectServer, bucket: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(bucket)
    with (source / "big").open("wb") as file:
        file.truncate(12 << 20)
    monkeypatch.setattr(object_storage, "_PART_BYTES", 5 << 20)
    read = HashingReads(fail_at=6 << 20)
    monkeypatch.setattr("plinth.shared.manifest.HashedChunks.__iter__", read)
    with pytest.raises(ResourceExhausted, match="full"):
        store.publish("chat", "model", source)
    assert store.list() == [] and store.storage.names("artifacts/chat/content") == []
    assert object_server.uploads() == 0, "parts of a file that nobody finishes cost money"


class HashingReads:
    """Stands for HashedChunks.__iter__: zeros, and then an error as a disk's."""

    def __init__(self, fail_at: int) -> None:
        self._left = fail_at

    def __call__(self) -> Iterator[bytes]:
        while self._left > 0:
            self._left -= 1 << 20
            yield bytes(1 << 20)
        raise OSError(28, "No space left on device")


# -- answers that get lost -------------------------------------------------------------------------


def test_an_answer_that_is_lost_costs_nothing(
    object_server: ObjectServer, bucket: str, source: Path
) -> None:
    """The client asks again, and is told that the file is there: it is its own."""
    store = ArtifactStore(bucket)
    object_server.fault("loses-an-answer")
    assert store.storage.create("x/1", b"mine")
    assert not store.storage.create("x/1", b"mine")
    object_server.fault("loses-an-answer")
    assert store.publish("chat", "model", source).version == 1
    assert len(store.list()) == 1


@pytest.mark.usefixtures("impatient")
def test_a_record_whose_answer_never_came_names_what_is_there(
    object_server: ObjectServer, bucket: str, source: Path
) -> None:
    store = ArtifactStore(bucket)
    object_server.fault("hangs-up")
    with pytest.raises(Unavailable):
        store.publish("chat", "model", source)
    object_server.fault("none")
    again = ArtifactStore(bucket)
    again.verify("chat@1")
    assert again.publish("chat", "model", source).version == 1


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ignores-conditions", "knows-no-conditions"])
def test_a_store_without_conditional_create(
    object_server: ObjectServer, bucket: str, fault: str
) -> None:
    object_server.fault(fault)
    with pytest.raises(FailedPrecondition, match=r"conditional create.*Amazon S3") as told:
        open_storage(bucket)
    assert told.value.reason == "STORE_NOT_EXCLUSIVE"


def test_a_full_store(object_server: ObjectServer, bucket: str, source: Path) -> None:
    store = ArtifactStore(bucket)
    object_server.fault("is-full")
    with pytest.raises(ResourceExhausted, match="XMinioStorageFull"):
        store.publish("chat", "model", source)


def test_no_such_bucket(object_server: ObjectServer) -> None:
    with pytest.raises(FailedPrecondition, match="no such bucket; make it") as told:
        open_storage(f"{object_server.kind}://modles/x")
    assert told.value.reason == "STORE_BUCKET_MISSING"


@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "AKIAWRONG", "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(FailedPrecondition, match=f"{told}.*check AWS_ACCESS_KEY_ID") as error:
        open_storage(bucket)
    assert error.value.reason == "STORE_PERMISSION"


@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
def test_who_may_only_read(
    object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(bucket)
    object_server.enter(monkeypatch, "reader")
    with pytest.raises(FailedPrecondition, match=r"AccessDenied.*get, put, list and delete"):
        open_storage(bucket)
    object_server.enter(monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for ask in (lambda s: s.names("x"), lambda s: s.read("x"), lambda s: s.open("x")):
        with pytest.raises(FailedPrecondition, match="refuses us"):
            ask(object_storage.ObjectStorage(bucket))
    assert storage.names("x") == []


@pytest.mark.parametrize("object_server", ["gs"], indirect=True)
def test_wrong_keys_of_google(
    object_server: ObjectServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text()
    wrong = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(wrong))
    for text, told in (
        (key.replace("plinth@", "mallory@"), "AuthenticationRequired.*GOOGLE_APPLICATION"),
        ("{}", "GOOGLE_APPLICATION_CREDENTIALS"),
        (None, "GOOGLE_APPLICATION_CREDENTIALS"),
    ):
        wrong.unlink(missing_ok=True)
        if text is not None:
            wrong.write_text(text)
        with pytest.raises(FailedPrecondition, match=told):
            open_storage(bucket)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
def test_no_credentials_at_all(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(PlinthError, match=r"no credentials are set.*AWS_ACCESS_KEY_ID"):
        open_storage(bucket)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there(
    object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(bucket)
    object_server.fault("is-down")
    with pytest.raises(Unavailable, match="SlowDown"):
        storage.names("x")
    for name in ("AWS_ENDPOINT_URL", "GOOGLE_BASE_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(Unavailable, match=rf"{bucket} failed.*127\.0\.0\.1") as told:
        open_storage(bucket)
    assert "\n" not in told.value.message


class NoBucket(BaseHTTPRequestHandler):
    """An S3 that holds nothing."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<Error><Code>NoSuchBucket</Code></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
def test_a_certificate_of_ones_own_authority(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued["certificate"], issued["key"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), NoBucket)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.server_port}")
        with pytest.raises(Unavailable):
            open_storage(bucket)
        monkeypatch.setenv("SSL_CERT_FILE", str(issued["ca"]))
        with pytest.raises(FailedPrecondition, match="no such bucket"):
            open_storage(bucket)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    "url", ["s3://", "s3://k:hunter2@b/p", "s3://b/p?x", "gs://B/p", "gs://b/../c", "s3://b/a b"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"store URL|file name") as told:
        open_storage(url)
    assert "hunter2" not in told.value.message


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "plinth.shared.object_storage")
    with pytest.raises(FailedPrecondition, match=r"pip install 'plinth-llm\[object-stores\]'"):
        open_storage("s3://bucket/path")
