"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import chat_pb2, tokenization_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_ENCODE = Method.of(tokenization_pb2.DESCRIPTOR, "TokenizationService", "Encode")
_DECODE = Method.of(tokenization_pb2.DESCRIPTOR, "TokenizationService", "Decode")
_APPLY_CHAT_TEMPLATE = Method.of(
    tokenization_pb2.DESCRIPTOR, "TokenizationService", "ApplyChatTemplate"
)


class TokenizationService:
    """Encodes and decodes text as models see it.

    `model` names a model that is served ("chat" or "models/chat": its revision that is served
    now), or an artifact of kind model, reward or tokenizer by reference ("chat@7",
    "chat:prod"). NOT_FOUND: there is neither. FAILED_PRECONDITION: the artifact has no
    tokenizer, or no chat template.
    """

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def encode(
        self,
        model: str = "",
        *,
        texts: Iterable[str] | None = None,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.EncodeResponse:
        """Text to token ids.

        model: A served model or an artifact reference.
        texts: At most 4,096 texts and 1 MiB in all, each encoded by itself.
        parse_special_tokens: What a text spells like a special token ("<|im_start|>") becomes
          that token. False: it is plain text, as it has to be where its writer is not to speak
          for the model's template.
        add_special_tokens: Add what the tokenizer adds by itself, such as a beginning-of-
          sequence id.
        """
        response: tokenization_pb2.EncodeResponse = self._calls.unary(
            _ENCODE,
            request(
                tokenization_pb2.EncodeRequest,
                model=model,
                texts=texts,
                parse_special_tokens=parse_special_tokens,
                add_special_tokens=add_special_tokens,
            ),
            timeout,
            metadata,
        )
        return response

    def decode(
        self,
        model: str = "",
        *,
        sequences: Iterable[tokenization_pb2.TokenSequence] | None = None,
        skip_special_tokens: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.DecodeResponse:
        """Token ids to text.

        model: A served model or an artifact reference.
        sequences: At most 4,096 sequences of at most 4,000,000 ids together.
        skip_special_tokens: Leave special tokens out of the text.
        """
        response: tokenization_pb2.DecodeResponse = self._calls.unary(
            _DECODE,
            request(
                tokenization_pb2.DecodeRequest,
                model=model,
                sequences=sequences,
                skip_special_tokens=skip_special_tokens,
            ),
            timeout,
            metadata,
        )
        return response

    def apply_chat_template(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        add_generation_prompt: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.ApplyChatTemplateResponse:
        """A conversation to text and token ids by the model's chat template.

        model: A served model or an artifact reference.
        messages: The conversation, 1 to 1,024 messages.
        add_generation_prompt: Open the assistant's turn at the end, as Chat does.
        """
        response: tokenization_pb2.ApplyChatTemplateResponse = self._calls.unary(
            _APPLY_CHAT_TEMPLATE,
            request(
                tokenization_pb2.ApplyChatTemplateRequest,
                model=model,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
            ),
            timeout,
            metadata,
        )
        return response


class AsyncTokenizationService:
    """Encodes and decodes text as models see it.

    `model` names a model that is served ("chat" or "models/chat": its revision that is served
    now), or an artifact of kind model, reward or tokenizer by reference ("chat@7",
    "chat:prod"). NOT_FOUND: there is neither. FAILED_PRECONDITION: the artifact has no
    tokenizer, or no chat template.
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def encode(
        self,
        model: str = "",
        *,
        texts: Iterable[str] | None = None,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.EncodeResponse:
        """Text to token ids.

        model: A served model or an artifact reference.
        texts: At most 4,096 texts and 1 MiB in all, each encoded by itself.
        parse_special_tokens: What a text spells like a special token ("<|im_start|>") becomes
          that token. False: it is plain text, as it has to be where its writer is not to speak
          for the model's template.
        add_special_tokens: Add what the tokenizer adds by itself, such as a beginning-of-
          sequence id.
        """
        response: tokenization_pb2.EncodeResponse = await self._calls.unary(
            _ENCODE,
            request(
                tokenization_pb2.EncodeRequest,
                model=model,
                texts=texts,
                parse_special_tokens=parse_special_tokens,
                add_special_tokens=add_special_tokens,
            ),
            timeout,
            metadata,
        )
        return response

    async def decode(
        self,
        model: str = "",
        *,
        sequences: Iterable[tokenization_pb2.TokenSequence] | None = None,
        skip_special_tokens: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.DecodeResponse:
        """Token ids to text.

        model: A served model or an artifact reference.
        sequences: At most 4,096 sequences of at most 4,000,000 ids together.
        skip_special_tokens: Leave special tokens out of the text.
        """
        response: tokenization_pb2.DecodeResponse = await self._calls.unary(
            _DECODE,
            request(
                tokenization_pb2.DecodeRequest,
                model=model,
                sequences=sequences,
                skip_special_tokens=skip_special_tokens,
            ),
            timeout,
            metadata,
        )
        return response

    async def apply_chat_template(
        self,
        model: str = "",
        *,
        messages: Iterable[chat_pb2.ChatMessage] | None = None,
        add_generation_prompt: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tokenization_pb2.ApplyChatTemplateResponse:
        """A conversation to text and token ids by the model's chat template.

        model: A served model or an artifact reference.
        messages: The conversation, 1 to 1,024 messages.
        add_generation_prompt: Open the assistant's turn at the end, as Chat does.
        """
        response: tokenization_pb2.ApplyChatTemplateResponse = await self._calls.unary(
            _APPLY_CHAT_TEMPLATE,
            request(
                tokenization_pb2.ApplyChatTemplateRequest,
                model=model,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
            ),
            timeout,
            metadata,
        )
        return response
