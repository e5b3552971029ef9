"""A shard's messages as events of one answer: text, stop strings, usage, timing.

The same tokens make the same text, log-probs and usage, however the messages were cut: text is
looked at token by token, and an answer that a stop string ends has the tokens up to and including
the one with which that was certain.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from plinth.gateway import metrics
from plinth.gateway.generation.stops import StopStrings
from plinth.gateway.generation.texts import TextStream
from plinth.internal.v1 import inference_pb2
from plinth.v1 import sampling_pb2

STOP = sampling_pb2.FINISH_REASON_STOP
_DEADLINE = sampling_pb2.FINISH_REASON_DEADLINE


@dataclass(frozen=True)
class TextEvent:
    """A piece of one answer; `finish` (and `usage`) are set on the last one.

    offsets: where each token's text starts, in characters of the answer's text. A token comes with
    the text that it completes or after it; one that only a stop string needed starts at the end.
    """

    text: str
    tokens: tuple[sampling_pb2.Token, ...] = ()
    finish: int = 0
    usage: sampling_pb2.Usage | None = None
    offsets: tuple[int, ...] = ()


class AnswerWriter:
    """One answer. `finished`: its last event was made. `late`: it ran out of its time instead."""

    def __init__(
        self,
        stream: TextStream,
        stops: Sequence[str],
        *,
        model: str,
        prompt_tokens: int,
        started: float,
    ) -> None:
        """model: its name, for metrics; started: when the request came (time.monotonic())."""
        self._stream = stream
        self._stops = StopStrings(stops)
        self._model = model
        self._started = started
        self._usage = sampling_pb2.Usage(prompt_tokens=prompt_tokens)
        self._told = False  # by a shard, what the prompt had in its cache
        self._seen = 0  # characters detokenised
        self._released = 0  # characters passed on
        # (token, where its text starts, where it ends): those whose text is held back.
        self._held: deque[tuple[sampling_pb2.Token, int, int]] = deque()
        self._last = 0.0
        self.finished = False
        self.late = False

    async def write(self, batch: Sequence[inference_pb2.GenerateResponse]) -> TextEvent | None:
        """The event that these messages make; None when nothing can be said yet."""
        if not batch:
            return None
        tokens = [token for message in batch for token in message.tokens]
        for message in batch:
            self._count(message)
        finish = int(batch[-1].finish_reason)
        ends = finish not in (sampling_pb2.FINISH_REASON_UNSPECIFIED, _DEADLINE)
        if tokens:
            self._time()
        text = await self._read(tokens, ends=ends)
        if self._stops.hit is not None:
            finish = STOP
            # Whether the shard had told its drafts by now depends on the clock.
            self._usage.draft_proposed = self._usage.draft_accepted = 0
        elif finish == _DEADLINE:
            self.late, finish = True, 0
        self.finished = bool(finish)
        out, offsets = self._release()
        self._usage.completion_tokens += len(out)
        if self.finished:
            return TextEvent(text, out, finish, self._usage, offsets)
        return TextEvent(text, out, offsets=offsets) if text or out else None

    async def _read(self, tokens: Sequence[sampling_pb2.Token], *, ends: bool) -> str:
        """Text that can be passed on now; holds the tokens, up to a stop string."""
        piece = await self._stream.feed([token.id for token in tokens], flush=ends)
        out, at = [], self._seen
        for token, start, end in zip(tokens, piece.starts, piece.ends, strict=True):
            out.append(self._stops.feed(piece.text[at - self._seen : end - self._seen]))
            self._held.append((token, start, max(start, end)))
            at = end
            if self._stops.hit is not None:
                break
        else:
            out.append(self._stops.feed(piece.text[at - self._seen :]))
            if ends:
                out.append(self._stops.finish())
        self._seen += len(piece.text)
        text = "".join(out)
        self._released += len(text)
        return text

    def _release(self) -> tuple[tuple[sampling_pb2.Token, ...], tuple[int, ...]]:
        """Tokens whose text is out, or will never be; with their offsets."""
        tokens, offsets = [], []
        while self._held and (self.finished or self._held[0][2] <= self._released):
            token, start, _ = self._held.popleft()
            tokens.append(token)
            offsets.append(min(start, self._released))
        return tuple(tokens), tuple(offsets)

    def _count(self, message: inference_pb2.GenerateResponse) -> None:
        if not message.HasField("usage"):
            return
        if not self._told:  # later ones, of other shards, count tokens of the answer too
            self._told = True
            self._usage.cached_tokens = min(message.usage.cached_tokens, self._usage.prompt_tokens)
        if message.finish_reason:
            self._usage.draft_proposed = message.usage.draft_proposed
            self._usage.draft_accepted = message.usage.draft_accepted

    def _time(self) -> None:
        now = time.monotonic()
        if self._last:
            metrics.ITL.labels(self._model).observe(now - self._last)
        else:
            metrics.TTFT.labels(self._model).observe(now - self._started)
        self._last = now
