"""Etags of what is compared and set (AIP-154).

Whoever changes a resource may say which state of it they saw. An empty etag says that it does not
matter.
"""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message

from plinth.shared.errors import Aborted


def etag_of(*parts: str | bytes | Message) -> str:
    """Of a resource's content, the same in every process."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Message):
            raw = part.SerializeToString(deterministic=True)
        else:
            raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]


def check_etag(given: str, present: str, what: str) -> None:
    """Aborted with the present etag where `what` has changed since."""
    if given and given != present:
        raise Aborted(
            f"{what} has changed since it was read: its etag is {present!r}, not {given!r}. "
            "Read it again, and decide anew",
            reason="ETAG_MISMATCH",
            field="etag",
            metadata={"etag": present},
        )
