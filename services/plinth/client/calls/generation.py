"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import chat_pb2, generation_pb2, tokenization_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CHAT = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "Chat")
_STREAM_CHAT = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "StreamChat")
_COMPLETE = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "Complete")
_STREAM_COMPLETE = Method.of(generation_pb2.DESCRIPTOR, "GenerationService", "StreamComplete")


class GenerationService:
    """Generates text with a served model, under the same keys, quotas and limits as the REST API.

    NOT_FOUND: no such model is served. INVALID_ARGUMENT: the first field that is wrong, in
    BadRequest details. RESOURCE_EXHAUSTED with RetryInfo: the tenant's quota, or every shard's
    queue, is full. UNAVAILABLE: no shard is up; try again. DEADLINE_EXCEEDED: the call's
    deadline, or the gateway's own for a request, has passed. An answer goes on at another shard
    when its own is lost.

    A chat whose metadata carry `x-plinth-consent: preferences` may become a preference task,
    where the gateway is set to sample some (gateway.preference_sampling_rate; off by default).
    """

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        best_of: int = 0,
        select: generation_pb2.Select | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> generation_pb2.ChatResponse:
        """A chat completion, returned whole. Prefer StreamChat for long answers: nothing of a call
        that breaks is kept.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        messages: The conversation, 1 to 1,024 messages, rendered by the model's chat template
          with the assistant's turn open.
        options: How to generate.
        best_of: Number of candidates to generate, n to 8, of which the n best are returned;
          usage counts all. 0: n, and they are returned as they are.
        select: What makes one candidate better than another; takes best_of. Default:
          SELECT_BY_LIKELIHOOD.
        """
        response: generation_pb2.ChatResponse = self._calls.unary(
            _CHAT,
            request(
                generation_pb2.ChatRequest,
                model=model,
                messages=messages,
                options=options,
                best_of=best_of,
                select=select,
            ),
            timeout,
            metadata,
        )
        return response

    def stream_chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[generation_pb2.StreamChatResponse, None, None]:
        """A chat completion, streamed as it is made. Cancelling the call ends the generation.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        messages: The conversation, 1 to 1,024 messages, rendered by the model's chat template
          with the assistant's turn open.
        options: How to generate. The n answers are streamed side by side.
        """
        return self._calls.stream(
            _STREAM_CHAT,
            request(
                generation_pb2.StreamChatRequest, model=model, messages=messages, options=options
            ),
            timeout,
            metadata,
        )

    def complete(
        self,
        model: str = "",
        *,
        prompt: str | None = None,
        prompt_tokens: tokenization_pb2.TokenSequence | None = None,
        parse_special_tokens: bool | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        best_of: int = 0,
        select: generation_pb2.Select | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> generation_pb2.CompleteResponse:
        """A text completion, returned whole.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        prompt: Text.
        prompt_tokens: Token ids, as they are: nothing is added to them.
        parse_special_tokens: Whether what the text spells like a special token ("<|im_start|>")
          is that token; a prompt with some of them is answered up to the end of a turn. Default
          true. False: it is plain text.
        options: How to generate.
        best_of: Number of candidates to generate, n to 8, of which the n best are returned;
          usage counts all. 0: n, and they are returned as they are.
        select: What makes one candidate better than another; takes best_of. Default:
          SELECT_BY_LIKELIHOOD.
        """
        response: generation_pb2.CompleteResponse = self._calls.unary(
            _COMPLETE,
            request(
                generation_pb2.CompleteRequest,
                model=model,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                parse_special_tokens=parse_special_tokens,
                options=options,
                best_of=best_of,
                select=select,
            ),
            timeout,
            metadata,
        )
        return response

    def stream_complete(
        self,
        model: str = "",
        *,
        prompt: str | None = None,
        prompt_tokens: tokenization_pb2.TokenSequence | None = None,
        parse_special_tokens: bool | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[generation_pb2.StreamCompleteResponse, None, None]:
        """A text completion, streamed as it is made. Cancelling the call ends the generation.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        prompt: Text.
        prompt_tokens: Token ids, as they are: nothing is added to them.
        parse_special_tokens: Whether what the text spells like a special token ("<|im_start|>")
          is that token; a prompt with some of them is answered up to the end of a turn. Default
          true. False: it is plain text.
        options: How to generate. The n answers are streamed side by side.
        """
        return self._calls.stream(
            _STREAM_COMPLETE,
            request(
                generation_pb2.StreamCompleteRequest,
                model=model,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                parse_special_tokens=parse_special_tokens,
                options=options,
            ),
            timeout,
            metadata,
        )


class AsyncGenerationService:
    """Generates text with a served model, under the same keys, quotas and limits as the REST API.

    NOT_FOUND: no such model is served. INVALID_ARGUMENT: the first field that is wrong, in
    BadRequest details. RESOURCE_EXHAUSTED with RetryInfo: the tenant's quota, or every shard's
    queue, is full. UNAVAILABLE: no shard is up; try again. DEADLINE_EXCEEDED: the call's
    deadline, or the gateway's own for a request, has passed. An answer goes on at another shard
    when its own is lost.

    A chat whose metadata carry `x-plinth-consent: preferences` may become a preference task,
    where the gateway is set to sample some (gateway.preference_sampling_rate; off by default).
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        best_of: int = 0,
        select: generation_pb2.Select | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> generation_pb2.ChatResponse:
        """A chat completion, returned whole. Prefer StreamChat for long answers: nothing of a call
        that breaks is kept.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        messages: The conversation, 1 to 1,024 messages, rendered by the model's chat template
          with the assistant's turn open.
        options: How to generate.
        best_of: Number of candidates to generate, n to 8, of which the n best are returned;
          usage counts all. 0: n, and they are returned as they are.
        select: What makes one candidate better than another; takes best_of. Default:
          SELECT_BY_LIKELIHOOD.
        """
        response: generation_pb2.ChatResponse = await self._calls.unary(
            _CHAT,
            request(
                generation_pb2.ChatRequest,
                model=model,
                messages=messages,
                options=options,
                best_of=best_of,
                select=select,
            ),
            timeout,
            metadata,
        )
        return response

    def stream_chat(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[generation_pb2.StreamChatResponse, None]:
        """A chat completion, streamed as it is made. Cancelling the call ends the generation.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        messages: The conversation, 1 to 1,024 messages, rendered by the model's chat template
          with the assistant's turn open.
        options: How to generate. The n answers are streamed side by side.
        """
        return self._calls.stream(
            _STREAM_CHAT,
            request(
                generation_pb2.StreamChatRequest, model=model, messages=messages, options=options
            ),
            timeout,
            metadata,
        )

    async def complete(
        self,
        model: str = "",
        *,
        prompt: str | None = None,
        prompt_tokens: tokenization_pb2.TokenSequence | None = None,
        parse_special_tokens: bool | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        best_of: int = 0,
        select: generation_pb2.Select | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> generation_pb2.CompleteResponse:
        """A text completion, returned whole.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        prompt: Text.
        prompt_tokens: Token ids, as they are: nothing is added to them.
        parse_special_tokens: Whether what the text spells like a special token ("<|im_start|>")
          is that token; a prompt with some of them is answered up to the end of a turn. Default
          true. False: it is plain text.
        options: How to generate.
        best_of: Number of candidates to generate, n to 8, of which the n best are returned;
          usage counts all. 0: n, and they are returned as they are.
        select: What makes one candidate better than another; takes best_of. Default:
          SELECT_BY_LIKELIHOOD.
        """
        response: generation_pb2.CompleteResponse = await self._calls.unary(
            _COMPLETE,
            request(
                generation_pb2.CompleteRequest,
                model=model,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                parse_special_tokens=parse_special_tokens,
                options=options,
                best_of=best_of,
                select=select,
            ),
            timeout,
            metadata,
        )
        return response

    def stream_complete(
        self,
        model: str = "",
        *,
        prompt: str | None = None,
        prompt_tokens: tokenization_pb2.TokenSequence | None = None,
        parse_special_tokens: bool | None = None,
        options: generation_pb2.GenerationOptions | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[generation_pb2.StreamCompleteResponse, None]:
        """A text completion, streamed as it is made. Cancelling the call ends the generation.

        model: Name of a served model: "chat"; its resource name "models/chat" is taken too.
        prompt: Text.
        prompt_tokens: Token ids, as they are: nothing is added to them.
        parse_special_tokens: Whether what the text spells like a special token ("<|im_start|>")
          is that token; a prompt with some of them is answered up to the end of a turn. Default
          true. False: it is plain text.
        options: How to generate. The n answers are streamed side by side.
        """
        return self._calls.stream(
            _STREAM_COMPLETE,
            request(
                generation_pb2.StreamCompleteRequest,
                model=model,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                parse_special_tokens=parse_special_tokens,
                options=options,
            ),
            timeout,
            metadata,
        )
