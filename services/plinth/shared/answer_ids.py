"""The ids of answers: the id of the request behind what kind of answer it is, so that one id names
it in the response, in logs and in verdicts."""

from __future__ import annotations

import re

from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import REQUEST_ID, current_request_id

CHAT, COMPLETION = "chatcmpl", "cmpl"  # their prefixes, as OpenAI has them
_PREFIXES = re.compile(rf"(?:(?:{CHAT}|{COMPLETION})-)+")


def answer_id(prefix: str) -> str:
    """Of the answer to this call: "chatcmpl-<request id>"."""
    return f"{prefix}-{current_request_id()}"


def bare_id(given: str) -> str:
    """The same for an answer's id and for its request's, whatever a client calls its requests."""
    match = _PREFIXES.match(given)
    return given if match is None else given[match.end() :]


def check_answer_id(given: str, field: str) -> None:
    """InvalidArgument for what can be neither an answer's id nor a request's."""
    if not (REQUEST_ID.fullmatch(given) or REQUEST_ID.fullmatch(bare_id(given))):
        raise InvalidArgument(
            f"{field}: the id that a response has ({CHAT}-…, {COMPLETION}-…), or its x-request-id",
            field=field,
        )
