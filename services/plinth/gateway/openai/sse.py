"""Server-sent events as OpenAI sends them: `data: <JSON>` each, `data: [DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.revisions import MODEL_HEADER
from plinth.gateway.generation.session import Session
from plinth.gateway.openai.rendering import Renderer
from plinth.gateway.openai.request_body import Usage
from plinth.gateway.rest.error_handlers import body_of
from plinth.gateway.rest.outcome import stream_failed
from plinth.shared.errors import PlinthError
from plinth.shared.telemetry import get_logger

_DONE = b"data: [DONE]\n\n"
_log = get_logger("plinth.gateway")


def data(body: Any) -> bytes:
    """One event. Line separators beyond ASCII are escaped: some readers split at them."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    for character in "\u2028\u2029\u0085":
        if character in text:
            text = text.replace(character, f"\\u{ord(character):04x}")
    return b"data: " + text.encode() + b"\n\n"


async def stream(session: Session, renderer: Renderer, usage: Usage) -> AsyncGenerator[bytes, None]:
    """The events of one answered request. What goes wrong after the first is an event too."""
    try:
        for opening in renderer.opening():
            yield data(renderer.chunk([opening], usage))
        async for index, event in session.events():
            renderer.count(event)
            for part in _parts(event):
                choice = await renderer.choice(index, part)
                yield data(renderer.chunk([choice], usage))
        if usage != "none":
            yield data(renderer.usage_chunk())
        yield _DONE
    except PlinthError as error:
        _log.warning("a stream ended in an error", reason=error.reason, error=error.message)
        stream_failed(error)
        yield data(body_of(error))
    except Exception as error:  # noqa: BLE001 - logged; the client learns no more
        _log.exception("unexpected error in a stream")
        stream_failed(error)
        yield data(body_of(error))


def _parts(event: TextEvent) -> Sequence[TextEvent]:
    """OpenAI's last chunk says why the answer ended and nothing else."""
    if not event.finish or not (event.text or event.tokens):
        return (event,)
    return (
        TextEvent(event.text, event.tokens, offsets=event.offsets),
        TextEvent("", (), event.finish, event.usage),
    )


class AnswerStream(EventSourceResponse):
    """Sends a stream, and closes what it is made from however sending ends. `owned`: that, from
    the moment on in which the response is made."""

    def __init__(
        self, revision: str, events: AsyncGenerator[bytes, None], owned: AsyncExitStack
    ) -> None:
        headers = {MODEL_HEADER: revision}
        super().__init__(events, headers=headers, ping=15, sep="\n")
        self._owned = owned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._owned:
            await super().__call__(scope, receive, send)
