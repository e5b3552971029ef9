"""Packed bodies are unpacked, no further than a body may be large, and what is damaged is told."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.gateway.rest.content_encoding import (
    TooLarge,
    UnsupportedEncoding,
    encoding_of,
    unpacked,
)
from plinth.shared.errors import InvalidArgument


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS = {"gzip": [gzip.compress], "deflate": [zlib.compress, raw_deflate]}


@given(st.binary(max_size=200_000), st.sampled_from([("gzip", 0), ("deflate", 0), ("deflate", 1)]))
def test_what_was_packed_comes_out(data: bytes, how: tuple[str, int]) -> None:
    packed = PACKERS[how[0]][how[1]](data)
    assert unpacked(packed, how[0], 200_000) == data
    with pytest.raises(InvalidArgument, match="cut off"):
        unpacked(packed[:-1], how[0], 200_000)


def test_members_behind_one_another() -> None:
    assert unpacked(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", 10) == b"ab"
    with pytest.raises(InvalidArgument):
        unpacked(gzip.compress(b"") * 100_000, "gzip", 10)  # each copies all behind it
    with pytest.raises(InvalidArgument):
        unpacked(zlib.compress(b"a") * 2, "deflate", 10)


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_what_is_not_packed_is_told(data: bytes, encoding: str) -> None:
    try:
        unpacked(data, encoding, 1_000_000)
    except InvalidArgument as error:
        assert encoding in error.message


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_stays_small(encoding: str) -> None:
    bomb = PACKERS[encoding][0](b"\0" * 200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            unpacked(bomb, encoding, 2_000_000)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        ([], ""),
        ([""], ""),
        (["identity"], ""),
        (["GZIP"], "gzip"),
        (["x-gzip"], "gzip"),
        (["deflate"], "deflate"),
        (["identity", "gzip"], "gzip"),
    ],
)
def test_names(lines: list[str], encoding: str) -> None:
    assert encoding_of(lines) == encoding


@pytest.mark.parametrize(
    "lines", [["br"], ["zstd"], ["gzip, gzip"], ["gzip, br"], ["gzip", "gzip"], ["x" * 10_000]]
)
def test_another_encoding_is_refused_with_what_is_read(lines: list[str]) -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip, deflate") as caught:
        encoding_of(lines)
    assert caught.value.http == 415
