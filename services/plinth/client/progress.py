"""What has come of a stream, so that it can go on where it broke without telling anything twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from plinth.client.methods import Method, is_heartbeat


class Progress(Protocol):
    """Of one stream. request: what to ask for next. resumes: whether it can go on once it has
    begun. restarts: whether each call tells all of it again."""

    request: Any
    resumes: bool
    restarts: bool

    def took(self, message: Any) -> bool:
        """Notes it. Whether it is for the caller, who gets it as it is now. LostAnswer where
        nothing can go on."""
        ...

    def broke(self) -> None:
        """The next message is the first of another call."""
        ...


class LostAnswer(Exception):
    """An answer that is made again is another one."""


def progress_of(method: Method, request: Any) -> Progress:
    """Of a stream that nobody has begun."""
    if method.resumable:
        return Positions(request)
    if method.replayable:
        return Answers(request)
    return Once(request)


class Once:
    """A stream that ends where it breaks."""

    resumes = restarts = False

    def __init__(self, request: Any) -> None:
        self.request = request

    def took(self, message: Any) -> bool:
        return True

    def broke(self) -> None:
        return


class Positions:
    """A stream whose messages carry the position behind them, for the next request."""

    resumes, restarts = True, False

    def __init__(self, request: Any) -> None:
        self.request = _copy(request)

    def took(self, message: Any) -> bool:
        self.request.resume_token = message.resume_token or self.request.resume_token
        return not is_heartbeat(message)

    def broke(self) -> None:
        return


@dataclass
class _Answer:
    """One of the answers side by side. ids, chars: what the caller has of it; made_ids, made_chars:
    how much of it this call has made."""

    ids: list[int] = field(default_factory=list)
    chars: int = 0
    ended: bool = False
    made_ids: int = 0
    made_chars: int = 0


class Answers:
    """A stream of generated text. One that broke is made again from its beginning, by the same
    seed, and what the caller has of it is passed over: the same seed, weights and prompt give the
    same tokens."""

    resumes = restarts = True

    def __init__(self, request: Any) -> None:
        self.request = _copy(request)
        self._weights = ""
        self._answers: dict[int, _Answer] = {}
        self._begins = True

    def broke(self) -> None:
        self._begins = True
        for answer in self._answers.values():
            answer.made_ids = answer.made_chars = 0

    def took(self, message: Any) -> bool:
        again = bool(self._weights)
        if self._begins:
            self._begin(message)
            if again:  # the caller knows these as they were
                for name in _OF_THE_FIRST:
                    message.ClearField(name)
        answer = self._answers.setdefault(message.index, _Answer())
        _pass_over(message, answer)
        if answer.ended:
            message.ClearField("finish_reason")
        answer.ended = answer.ended or bool(message.finish_reason)
        said = message.text or message.tokens or message.finish_reason or message.HasField("usage")
        return bool(said) or not again

    def _begin(self, first: Any) -> None:
        """The first message of a call says by which weights and seed it answers."""
        self._begins = False
        if self._weights and first.weights_digest != self._weights:
            raise LostAnswer(f"{first.revision} answers by now")
        self._weights = first.weights_digest
        self.request.options.sampling.seed = first.seed


_OF_THE_FIRST = ("id", "create_time", "model", "revision", "weights_digest", "seed")


def _pass_over(message: Any, answer: _Answer) -> None:
    """Takes out of a piece what the caller has of the answer."""
    ids = [token.id for token in message.tokens]
    known = answer.ids[answer.made_ids : answer.made_ids + len(ids)]
    if ids[: len(known)] != known:
        raise LostAnswer("the same seed made another one")
    answer.made_ids += len(ids)
    answer.ids += ids[len(known) :]
    del message.tokens[: len(known)]
    passed = min(answer.chars - answer.made_chars, len(message.text))
    answer.made_chars += len(message.text)
    message.text = message.text[passed:]
    answer.chars = max(answer.chars, answer.made_chars)


def _copy(request: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy
