"""The answers of one request as messages of GenerationService: whole, and as pieces of a stream.

Chats and completions differ in their messages alone, which have the same fields by the same names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.chooser import Chosen
from plinth.gateway.generation.session import Session
from plinth.gateway.generation.tally import Tally
from plinth.shared.answer_ids import answer_id
from plinth.shared.api import enums
from plinth.shared.tasks import next_turn
from plinth.v1 import chat_pb2
from plinth.v1 import generation_pb2 as pb


class Answers:
    """One request's, by an entered session. prefix: of their id, "chatcmpl"."""

    def __init__(self, session: Session, prefix: str) -> None:
        self._session = session
        self._tally = Tally(session.prepared)
        self._running = sum(one.samples for one in session.prepared)
        self._id = answer_id(prefix)
        self._created = Timestamp()
        self._created.GetCurrentTime()

    async def stream(self, kind: type[Any]) -> AsyncGenerator[Any, None]:
        """Messages of `kind` as pieces come: the first has the head, the last what it cost."""
        head = self._head()
        async with aclosing(self._session.events()) as events:
            async for index, event in events:
                self._tally.count(event)
                self._running -= bool(event.finish)
                piece = kind(
                    **head,
                    index=index,
                    text=event.text,
                    tokens=event.tokens,
                    finish_reason=event.finish,
                )
                if not self._running:
                    piece.usage.CopyFrom(self._tally.usage())
                head = {}
                yield piece

    async def collected(self) -> list[list[TextEvent]]:
        """All pieces of each answer."""
        answers: list[list[TextEvent]] = [[] for _ in range(self._running)]
        async with aclosing(self._session.events()) as events:
            async for index, event in events:
                self._tally.count(event)
                answers[index].append(event)
        return answers

    async def whole(
        self, kind: type[Any], answers: Sequence[Sequence[TextEvent]], chosen: Sequence[Chosen]
    ) -> Any:
        """A message of `kind` with all `answers`; or, where some were, with the `chosen` ones."""
        message = kind(**self._head(), usage=self._tally.usage())
        ordered: Sequence[Chosen | None] = chosen or [None] * len(answers)
        for index, one in enumerate(ordered):
            choice = message.choices.add(index=index)
            events = answers[index if one is None else one.sample]
            text = "".join(event.text for event in events)
            if isinstance(choice, pb.ChatChoice):
                choice.message.CopyFrom(chat_pb2.ChatMessage(role="assistant", content=text))
            else:
                choice.text = text
            for event in events:
                choice.tokens.extend(event.tokens)
                choice.finish_reason = event.finish or choice.finish_reason
            if one is not None:
                choice.selected.CopyFrom(selected(one))
            await next_turn()
        return message

    def _head(self) -> dict[str, Any]:
        first = self._session.prepared[0]
        return {
            "id": self._id,
            "create_time": self._created,
            "model": first.model.name,
            "revision": self._session.revision,
            "weights_digest": first.model.weights_digest,
            "seed": first.sampling.seed,
        }


def selected(chosen: Chosen) -> pb.Selected:
    """How an answer was chosen."""
    note = chosen.note
    reasons = note.get("reasons", {})
    by: Any = enums.number(pb.SelectBy, note["by"])
    return pb.Selected(
        sample=chosen.sample,
        by=by,
        score=note["score"],
        parts=[
            pb.SelectedPart(source=source, value=value, reason=reasons.get(source, ""))
            for source, value in note.get("parts", {}).items()
        ],
        answer=note.get("answer"),
        votes=note.get("votes", 0),
        weight=note.get("weight", 0.0),
    )
