"""Where a gateway's gRPC API is, and with which key it is called."""

from __future__ import annotations

import os
from pathlib import Path

from plinth.client.channels import GatewayAddress
from plinth.shared.errors import FailedPrecondition, InvalidArgument

DEFAULT = "127.0.0.1:8081"
URL, KEY, KEY_FILE = "PLINTH_URL", "PLINTH_API_KEY", "PLINTH_API_KEY_FILE"


def address_of(given: GatewayAddress | str | None) -> GatewayAddress:
    """The address that is given; else that of PLINTH_URL, or 127.0.0.1:8081. InvalidArgument for
    what is none."""
    if isinstance(given, GatewayAddress):
        return given
    return GatewayAddress.parse(given or os.environ.get(URL, "").strip() or DEFAULT)


def key_of(given: str | None) -> str:
    """The key that is given ("": none is sent); else PLINTH_API_KEY, or what the file that
    PLINTH_API_KEY_FILE names holds. InvalidArgument for what can be no key, FailedPrecondition
    when the file can't be read."""
    if given is not None:
        return checked(given.strip(), "key") if given else ""  # files end in a newline
    if key := os.environ.get(KEY, "").strip():
        return checked(key, KEY)
    if not (path := os.environ.get(KEY_FILE, "").strip()):
        return ""
    try:
        return checked(Path(path).read_text("utf-8", "replace").strip(), path)
    except OSError as error:
        raise FailedPrecondition(
            f"{path}, which {KEY_FILE} names, can't be read: {error.strerror}",
            reason="MISSING_API_KEY",
        ) from error


def checked(key: str, source: str) -> str:
    """It goes into a header, which takes printable ASCII and nothing else."""
    if not key or not (key.isascii() and key.isprintable()):
        raise InvalidArgument(
            f"{source} holds no API key: one is printable ASCII, like plinth-…, on one line",
            reason="INVALID_API_KEY",
        )
    return key
