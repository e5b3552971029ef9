"""The storage that a URL names: on a file system, or in a bucket."""

from __future__ import annotations

import secrets

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.local_storage import LocalStorage
from plinth.shared.storage import EXCLUSIVE, Storage


def open_storage(url: str) -> Storage:
    """The storage at `url`, probed: FailedPrecondition when it can't create exclusively."""
    protocol, separator, _ = url.partition("://")
    if not separator:
        raise InvalidArgument(
            f"store URL {url!r} has no protocol: use file:///path, s3://bucket/path or gs://…",
            field="store_url",
        )
    if protocol not in ("file", "local", "s3", "gs"):
        raise FailedPrecondition(
            f"the store {protocol}:// can't create a file exclusively, so two writers could "
            "overwrite each other: use one of file, s3, gs",
            reason="STORE_NOT_EXCLUSIVE",
            field="store_url",
        )
    storage = LocalStorage(url) if protocol in ("file", "local") else _in_a_bucket(url)
    _probe(storage)
    return storage


def _in_a_bucket(url: str) -> Storage:
    try:  # the client is a package of an extra
        from plinth.shared.object_storage import ObjectStorage  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "obstore":
            raise
        raise FailedPrecondition(
            "a store in a bucket needs a package that is not installed: "
            "pip install 'plinth-llm[object-stores]'",
            reason="STORE_PACKAGE_MISSING",
            field="store_url",
        ) from error
    return ObjectStorage(url)


def _probe(storage: Storage) -> None:
    """Creates one file twice; the second time must be refused. Leaves nothing behind."""
    folder = f".probe-{secrets.token_hex(8)}"
    first = storage.create(f"{folder}/once", b"1")
    try:
        second = storage.create(f"{folder}/once", b"2")
    finally:
        storage.remove_tree(folder)
    if not first or second:
        raise FailedPrecondition(
            f"the store {storage.url} let one file be created twice: it has no conditional "
            f"create, and two writers could overwrite each other; {EXCLUSIVE}",
            reason="STORE_NOT_EXCLUSIVE",
            field="store_url",
        )
