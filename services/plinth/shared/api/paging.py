"""Pages of a list (AIP-158).

A page's token says behind what it begins, not how many came before, so that what is added or
removed meanwhile moves nothing: everything that is there all the time comes once. It is signed and
belongs to its request; the list itself is held nowhere between two calls.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

from google.protobuf.message import Message

from plinth.shared.errors import InvalidArgument

_MAC_BYTES = 16
_MAX_TOKEN_CHARS = 4096


class Pages:
    """Reads and makes page tokens.

    secret: the cluster's token; every replica of a service has the same.
    default, most: of `page_size`; a request for more gets `most`.
    """

    def __init__(self, secret: str, *, default: int = 50, most: int = 1000) -> None:
        self._key = hashlib.sha256(b"plinth page token\0" + secret.encode()).digest()
        self._default, self._most = default, most

    def size(self, request: Any) -> int:
        """How many the page has at most. InvalidArgument for a negative number."""
        if request.page_size < 0:
            raise InvalidArgument(
                f"page_size is at least 0 (0: {self._default}), not {request.page_size}",
                field="page_size",
            )
        return min(request.page_size or self._default, self._most)

    def position(self, request: Any) -> str:
        """Behind what the page begins; empty: at the start. InvalidArgument for a token that this
        list did not give."""
        if not (token := request.page_token):
            return ""
        try:
            if len(token) > _MAX_TOKEN_CHARS:
                raise ValueError
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError:
            raise _foreign() from None
        mac, position = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(request, position)):
            raise _foreign()
        return position.decode()

    def token(self, request: Any, position: str) -> str:
        """`next_page_token` of a page that ends with what is at `position`."""
        raw = position.encode()
        return base64.urlsafe_b64encode(self._mac(request, raw) + raw).decode()

    def _mac(self, request: Message, position: bytes) -> bytes:
        asked = type(request)()
        asked.CopyFrom(request)
        asked.ClearField("page_token")
        asked.ClearField("page_size")  # may change from page to page
        said = asked.SerializeToString(deterministic=True)
        name = request.DESCRIPTOR.full_name.encode()
        message = b"\0".join([name, str(len(said)).encode(), said, position])
        return hmac.new(self._key, message, hashlib.sha256).digest()[:_MAC_BYTES]


def _foreign() -> InvalidArgument:
    return InvalidArgument(
        "page_token is not of this list: give the next_page_token of the page before, with the "
        "same parent and filter; or none, for the first page",
        reason="PAGE_TOKEN",
        field="page_token",
    )
