"""Ids of answers."""

from __future__ import annotations

import pytest

from plinth.shared.answer_ids import CHAT, COMPLETION, answer_id, bare_id, check_answer_id
from plinth.shared.canary import answer_key
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import MAX_REQUEST_ID_CHARS, call_scope


@pytest.mark.parametrize("prefix", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "request_id",
    ["0" * 32, "trace-7", "chatcmpl-mine", "cmpl-chatcmpl-mine", "cmpl-", "chatcmpl", "x-cmpl-y"],
)
def test_an_answer_is_named_by_its_id_and_by_its_request_s(prefix: str, request_id: str) -> None:
    with call_scope(request_id=request_id):
        id = answer_id(prefix)
    assert id == f"{prefix}-{request_id}"
    assert bare_id(id) == bare_id(request_id)
    assert answer_key("acme", id) == answer_key("acme", request_id) != answer_key("other", id)
    check_answer_id(id, "response_id")


def test_other_requests_have_other_ids() -> None:
    ids = ["mine", "mine-cmpl-", "chatcmpl", "chatcmplmine", "CMPL-mine"]
    assert len({bare_id(id) for id in ids}) == len(ids)


def test_what_is_no_id_is_refused() -> None:
    longest = "x" * MAX_REQUEST_ID_CHARS
    check_answer_id(f"chatcmpl-{longest}", "response_id")
    for wrong in ("", "two words", "\n", longest + "x", f"chatcmpl-{longest}x", "chatcmpl-é"):
        with pytest.raises(InvalidArgument, match="x-request-id") as caught:
            check_answer_id(wrong, "response_id")
        assert caught.value.field == "response_id"
