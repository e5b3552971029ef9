"""Compressed bodies, unpacked no further than a body may be large.

https://www.rfc-editor.org/rfc/rfc9110#name-content-encoding
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument, PlinthError

ACCEPTED = ("gzip", "deflate")
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_PIECE = 64 * 1024  # what is unpacked at once
MAX_MEMBERS = 64  # of gzip, one behind the other: each costs as much as all that follow it


class UnsupportedEncoding(PlinthError):
    """A content encoding that is not read (HTTP 415)."""

    code = "INVALID_ARGUMENT"
    http = 415
    openai_type = "invalid_request_error"


class TooLarge(Exception):
    """More bytes come out than are allowed."""


def encoding_of(headers: Sequence[str]) -> str:
    """The one encoding of a body, in all lines of its header: "", "gzip" or "deflate".
    UnsupportedEncoding for another one, and for several on top of one another."""
    header = ", ".join(headers)
    named = [part.strip().lower() for part in header.split(",")]
    encodings = [one.removeprefix("x-") for one in named if one not in ("", "identity")]
    if not encodings:
        return ""
    if len(encodings) > 1 or encodings[0] not in ACCEPTED:
        raise UnsupportedEncoding(
            f"content-encoding: {header[:64]!r} is not read; one of {', '.join(ACCEPTED)} "
            "is, or none",
            reason="UNSUPPORTED_CONTENT_ENCODING",
            field="content-encoding",
        )
    return encodings[0]


def unpacked(packed: bytes | bytearray, encoding: str, limit: int) -> bytearray:
    """The body that `packed` holds, at most `limit` bytes. TooLarge beyond them; InvalidArgument
    for what is cut off, damaged, or followed by something else."""
    whole, members = bytearray(), 0
    rest = bytes(packed)
    bits = _GZIP if encoding == "gzip" else _deflate_bits(rest)
    try:
        while True:
            member = zlib.decompressobj(bits)
            while not member.eof:
                piece = member.decompress(rest, _PIECE)
                rest = member.unconsumed_tail
                whole += piece
                if len(whole) > limit:
                    raise TooLarge
                if not piece and not rest and not member.eof:
                    raise zlib.error("it is cut off")
            rest = member.unused_data
            if not rest:
                return whole
            members += 1
            if encoding != "gzip" or members == MAX_MEMBERS:
                raise zlib.error("something follows it")
    except zlib.error as error:
        raise InvalidArgument(
            f"the body is not valid {encoding}, as its content-encoding says: {error}",
            reason="INVALID_CONTENT_ENCODING",
            field="content-encoding",
        ) from None


def _deflate_bits(packed: bytes) -> int:
    """ "deflate" is zlib's format, but some clients send it without zlib's header."""
    has_header = (
        len(packed) >= 2 and packed[0] & 0x0F == 8 and (packed[0] << 8 | packed[1]) % 31 == 0
    )
    return _ZLIB if has_header else _RAW
