"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import chat_pb2, generation_pb2, sampling_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CHAT = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "Chat")
_COMPLETE = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "Complete")


class GenerationService:
    """Text in, text out."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        sampling: sampling_pb2.SamplingParams | None = None,
        stop: Iterable[str] | None = None,
        user: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[generation_pb2.ChatResponse, None, None]:
        """A chat completion, streamed: one answer. Several (n, best_of, select) come by REST
        alone. Survives the death of the shard that makes it. Trailing metadata x-plinth-model:
        the revision that answered ("chat@8").

        stop: Strings that end the answer; at most 8, 256 characters each, empty ones are none.
          Not part of the answer.
        user: Who asks, in the client's own words: a user stays with one revision while a canary
          is on.
        """
        return self._calls.stream(
            _CHAT,
            request(
                generation_pb2.ChatRequest,
                model=model,
                messages=messages,
                sampling=sampling,
                stop=stop,
                user=user,
            ),
            timeout,
            metadata,
        )

    def complete(
        self,
        model: str = "",
        *,
        prompt: str = "",
        sampling: sampling_pb2.SamplingParams | None = None,
        stop: Iterable[str] | None = None,
        special_tokens: bool | None = None,
        user: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[generation_pb2.CompleteResponse, None, None]:
        """A text completion, streamed.

        special_tokens: What the prompt spells like special tokens ("<|im_start|>") is meant as
          such, and a prompt with some of them is answered up to the end of a turn. Unset: true.
          False: the prompt is plain text.
        user: Who asks, in the client's own words: a user stays with one revision while a canary
          is on.
        """
        return self._calls.stream(
            _COMPLETE,
            request(
                generation_pb2.CompleteRequest,
                model=model,
                prompt=prompt,
                sampling=sampling,
                stop=stop,
                special_tokens=special_tokens,
                user=user,
            ),
            timeout,
            metadata,
        )


class AsyncGenerationService:
    """Text in, text out."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    def chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        sampling: sampling_pb2.SamplingParams | None = None,
        stop: Iterable[str] | None = None,
        user: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[generation_pb2.ChatResponse, None]:
        """A chat completion, streamed: one answer. Several (n, best_of, select) come by REST
        alone. Survives the death of the shard that makes it. Trailing metadata x-plinth-model:
        the revision that answered ("chat@8").

        stop: Strings that end the answer; at most 8, 256 characters each, empty ones are none.
          Not part of the answer.
        user: Who asks, in the client's own words: a user stays with one revision while a canary
          is on.
        """
        return self._calls.stream(
            _CHAT,
            request(
                generation_pb2.ChatRequest,
                model=model,
                messages=messages,
                sampling=sampling,
                stop=stop,
                user=user,
            ),
            timeout,
            metadata,
        )

    def complete(
        self,
        model: str = "",
        *,
        prompt: str = "",
        sampling: sampling_pb2.SamplingParams | None = None,
        stop: Iterable[str] | None = None,
        special_tokens: bool | None = None,
        user: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[generation_pb2.CompleteResponse, None]:
        """A text completion, streamed.

        special_tokens: What the prompt spells like special tokens ("<|im_start|>") is meant as
          such, and a prompt with some of them is answered up to the end of a turn. Unset: true.
          False: the prompt is plain text.
        user: Who asks, in the client's own words: a user stays with one revision while a canary
          is on.
        """
        return self._calls.stream(
            _COMPLETE,
            request(
                generation_pb2.CompleteRequest,
                model=model,
                prompt=prompt,
                sampling=sampling,
                stop=stop,
                special_tokens=special_tokens,
                user=user,
            ),
            timeout,
            metadata,
        )
