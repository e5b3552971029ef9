"""Errors there and back: through a status, to OpenAI's body, through pickle."""

from __future__ import annotations

import math
import pickle
from urllib.parse import quote

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from hostile_texts import nasty_text
from plinth.shared.errors import (
    ERROR_TYPES,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
    to_openai_body,
)
from plinth.shared.rpc.status import from_rpc_error, to_status


def received(error: PlinthError) -> grpc.aio.AioRpcError:
    """What a client would get for `error`."""
    status = to_status(error)
    trailers = grpc.aio.Metadata(*(status.trailing_metadata or ()))
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, status.details)


@pytest.mark.parametrize("kind", ERROR_TYPES.values())
def test_every_type_has_its_code_and_comes_back(kind) -> None:
    error = kind("what", reason="WHY", field="a.b", retry_after_s=2.5, metadata={"model": "chat"})
    wire = received(error)
    assert wire.code().value[0] == code_pb2.Code.Value(kind.code)
    back = from_rpc_error(wire)
    assert type(back) is kind
    for name in ("message", "reason", "field", "retry_after_s", "metadata"):
        assert getattr(back, name) == getattr(error, name)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.__dict__ == error.__dict__


@given(
    st.sampled_from([InvalidArgument, ResourceExhausted]),
    nasty_text(),
    nasty_text(),
    st.dictionaries(nasty_text().filter(lambda key: key.__hash__), nasty_text(), max_size=20),
)
def test_any_text_fits_into_the_trailers(kind, message, word, metadata) -> None:
    status = to_status(kind(message, reason=word, field=word, retry_after_s=1.5, metadata=metadata))
    # HTTP/2 header lists are limited to 8 KiB by default. There each byte of the message that is
    # not printable ASCII is three, and what ends in -bin is base64.
    size = len(quote(status.details, safe=""))
    for key, value in status.trailing_metadata:
        size += len(key) + 4 * math.ceil(len(value) / 3) + 32
    assert size < 8192 - 500  # the request id, and what the server adds
    status_pb2.Status.FromString(dict(status.trailing_metadata)["grpc-status-details-bin"])


def test_lone_surrogates_in_a_message_do_no_harm() -> None:
    assert from_rpc_error(received(NotFound("no model '\ud800'"))).message == "no model '\\ud800'"


def test_a_foreign_servers_error_is_the_nearest_one() -> None:
    def foreign(code: grpc.StatusCode, *pairs: tuple[str, bytes]) -> PlinthError:
        trailers = grpc.aio.Metadata(*pairs)
        return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, "x"))

    assert foreign(grpc.StatusCode.NOT_FOUND).code == "NOT_FOUND"
    assert foreign(grpc.StatusCode.UNKNOWN).code == "INTERNAL"
    assert foreign(grpc.StatusCode.UNIMPLEMENTED).code == "INTERNAL"
    damaged = ("grpc-status-details-bin", b"\xff\xff\xff")
    assert foreign(grpc.StatusCode.ABORTED, damaged).code == "ABORTED"


def test_openai_bodies() -> None:
    error = NotFound("no model 'x'", reason="MODEL_NOT_FOUND", field="model")
    assert to_openai_body(error) == {
        "error": {
            "message": "no model 'x'",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert to_openai_body(ResourceExhausted("full"))["error"]["type"] == "rate_limit_error"
    body = to_openai_body(RuntimeError("the password is hunter2"))
    assert body["error"]["type"] == "server_error"
    assert "hunter2" not in str(body)
