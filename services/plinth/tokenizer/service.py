"""The tokenizer stage: text on one side, ids on the other.

Each call resolves its model, then works in a thread, so that no long text holds up another call.
Chat templates run in the sandbox's process. Training publishes an artifact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import grpc

from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc as rpc
from plinth.shared.api.owners import calling_owner
from plinth.shared.errors import InvalidArgument
from plinth.shared.rpc.handlers import Context
from plinth.shared.rpc.server import GrpcService
from plinth.shared.source_roots import SourceRoots
from plinth.tokenizer.catalog import Catalog
from plinth.tokenizer.codec import Codec, Prompt, StandIns
from plinth.tokenizer.prompts import prompts
from plinth.tokenizer.templates import (
    CONVERSATION,
    Conversation,
    Rendered,
    Renderer,
    check_messages,
    need_template,
)
from plinth.tokenizer.training import position_behind, train_and_publish, train_position
from plinth.tokenizer.turn_ends import turn_ends
from plinth.v1 import chat_pb2

if TYPE_CHECKING:
    from plinth.shared.stage import StageContext

MAX_SEQUENCES = 4096
MAX_CONVERSATIONS = 512
MAX_DECODE_IDS = 4_000_000


def build(context: StageContext) -> TokenizerStage:
    """The stage's front over this context."""
    return TokenizerStage(context)


class TokenizerStage(rpc.TokenizerServiceServicer):
    """StageFront and servicer of `plinth.internal.v1.TokenizerService`."""

    stage = "tokenizer"

    def __init__(self, context: StageContext) -> None:
        self._store = context.store
        self._roots = SourceRoots.of(context.settings)
        self._max_bytes = context.settings.tokenizer.max_text_bytes
        self._catalog = Catalog(context.store)
        self._renderer = Renderer()
        # A training uses every core and most of a gigabyte.
        self._training = asyncio.Semaphore(1)

    # -- StageFront ------------------------------------------------------------------------

    def services(self) -> Sequence[GrpcService]:
        def add(server: grpc.aio.Server) -> None:
            rpc.add_TokenizerServiceServicer_to_server(self, server)

        return [GrpcService("plinth.internal.v1.TokenizerService", add)]

    async def start(self) -> None:
        """Nothing to load: tokenizers are opened when they are asked for."""

    async def check(self) -> None:
        """Healthy while it answers."""

    def announcement(self) -> dict[str, str]:
        return {}

    async def drain(self, grace_s: float) -> None:
        await self._renderer.close()

    # -- TokenizerService ------------------------------------------------------------------

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        self._check_texts(request.texts)
        codec = await self._codec(request.model)

        def encode() -> list[list[int]]:
            return [
                codec.encode(
                    text, parse_special=request.parse_special, add_special=request.add_special
                )
                for text in request.texts
            ]

        sequences = await asyncio.to_thread(encode)
        answer = pb.EncodeResponse(
            sequences=[
                pb.TokenIds(ids=_at_most(request.max_ids, ids), count=len(ids)) for ids in sequences
            ]
        )
        if request.parse_special:
            added = len(codec.encode("", add_special=request.add_special))
            answer.special.extend(codec.has_special(ids[added:]) for ids in sequences)
            if any(answer.special):
                answer.stop_token_ids.extend(await self._stop_ids(codec))
        return answer

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        if len(request.sequences) > MAX_SEQUENCES:
            raise InvalidArgument(f"at most {MAX_SEQUENCES} sequences a call", field="sequences")
        if sum(len(sequence.ids) for sequence in request.sequences) > MAX_DECODE_IDS:
            raise InvalidArgument(f"at most {MAX_DECODE_IDS:,} ids a call", field="sequences")
        codec = await self._codec(request.model)

        def decode() -> pb.DecodeResponse:
            if request.raw:
                return pb.DecodeResponse(raw=[codec.token_bytes(s.ids) for s in request.sequences])
            skip = request.skip_special
            texts = [codec.decode(s.ids, skip_special=skip) for s in request.sequences]
            return pb.DecodeResponse(texts=texts)

        return await asyncio.to_thread(decode)

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Context
    ) -> pb.ApplyChatTemplateResponse:
        conversation = (request.messages, request.add_generation_prompt)
        codec = await self._codec(request.model)
        (prompt,) = await self._prompts(codec, request.model, [conversation])
        ids = await asyncio.to_thread(codec.encode_prompt, prompt)
        return pb.ApplyChatTemplateResponse(
            ids=_at_most(request.max_ids, ids),
            stop_token_ids=await self._stop_ids(codec),
            text="" if request.without_text else prompt.text,
            count=len(ids),
        )

    async def ApplyChatTemplates(
        self, request: pb.ApplyChatTemplatesRequest, context: Context
    ) -> pb.ApplyChatTemplatesResponse:
        if not 1 <= len(request.conversations) <= MAX_CONVERSATIONS:
            raise InvalidArgument(
                f"{len(request.conversations)} conversations, must be 1 to {MAX_CONVERSATIONS}",
                field="conversations",
            )
        codec = await self._codec(request.model)
        try:
            made = await self._prompts(
                codec,
                request.model,
                [(one.messages, one.add_generation_prompt) for one in request.conversations],
            )
        except InvalidArgument as error:
            if number := error.metadata.get(CONVERSATION):
                error.field = f"conversations[{number}].{error.field}"
            raise
        sequences = await asyncio.to_thread(lambda: [codec.encode_prompt(one) for one in made])
        return pb.ApplyChatTemplatesResponse(
            sequences=[pb.TokenIds(ids=ids) for ids in sequences],
            stop_token_ids=await self._stop_ids(codec),
        )

    async def DecodeStream(
        self, request_iterator: AsyncIterator[pb.DecodeStreamRequest], context: Context
    ) -> AsyncIterator[pb.DecodeStreamResponse]:
        stream = None
        async for request in request_iterator:
            if stream is None:
                codec = await self._codec(request.model)
                stream = codec.detokenizer(skip_special=request.skip_special)
            elif request.model:
                raise InvalidArgument(
                    "only a stream's first message names its model", field="model"
                )
            text, starts, ends = stream.add_located(request.ids)
            if request.flush:
                text += stream.flush()
            # One answer a message, empty ones too: the caller knows what belongs to which ids.
            yield pb.DecodeStreamResponse(text=text, starts=starts, ends=ends)

    async def Train(
        self, request: pb.TrainRequest, context: Context
    ) -> AsyncIterator[pb.TrainResponse]:
        told = train_position(request)
        await context.send_initial_metadata(())  # the caller knows now that somebody answers
        if told is None:
            return
        async with self._training:
            store = self._store.owned_by(calling_owner())
            async for progress in train_and_publish(store, self._roots, request):
                if progress.HasField("artifact") or progress.bytes_read > told:
                    told = progress.bytes_read
                    progress.resume_token = position_behind(progress)
                    yield progress

    # -- pieces ----------------------------------------------------------------------------

    async def _prompts(
        self,
        codec: Codec,
        model: str,
        conversations: Sequence[tuple[Sequence[chat_pb2.ChatMessage], bool]],
    ) -> list[Prompt]:
        """The conversations by the model's template, with the special tokens that are its own."""
        plain = [
            Conversation([{"role": m.role, "content": m.content} for m in messages], open_turn)
            for messages, open_turn in conversations
        ]
        left = self._max_bytes
        for number, one in enumerate(plain):
            try:
                left -= check_messages(one.messages, left)
            except InvalidArgument as error:
                error.metadata[CONVERSATION] = str(number)
                raise
        template = need_template(codec.chat_template, model)

        async def render(asked: Sequence[Conversation], stand_ins: StandIns) -> list[Rendered]:
            return await self._renderer.render(
                template, asked, variables=codec.token_names, stand_ins=stand_ins.pairs
            )

        return await prompts(codec, plain, render)

    async def _codec(self, model: str) -> Codec:
        return await asyncio.to_thread(self._catalog.codec, model)

    def _check_texts(self, texts: Sequence[str]) -> None:
        if len(texts) > MAX_SEQUENCES:
            raise InvalidArgument(f"at most {MAX_SEQUENCES} texts a call", field="texts")
        # A character is 1 to 4 bytes: most texts need no encoding to be counted.
        total = sum(len(text) for text in texts)
        if 4 * total > self._max_bytes:
            total = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if total > self._max_bytes:
            raise InvalidArgument(
                f"the texts hold {total:,} bytes; at most {self._max_bytes:,} are taken",
                reason="TEXT_TOO_LONG",
                field="texts",
            )

    async def _stop_ids(self, codec: Codec) -> tuple[int, ...]:
        """Ids that end a turn: what the model's template writes after an assistant's words, and
        end-of-sequence. Raises where the sandbox was ended: what it would have said is not known,
        and an answer without its end would go on and on."""
        if codec.stop_ids is None:
            template = codec.chat_template
            if template is None:
                return codec.eos_ids

            async def render(asked: Sequence[Conversation]) -> list[Rendered]:
                return await self._renderer.render(template, asked, variables=codec.token_names)

            codec.stop_ids = await turn_ends(codec, render)
        return codec.stop_ids


def _at_most(max_ids: int, ids: Sequence[int]) -> Sequence[int]:
    """`ids`; none where a caller wants no more than `max_ids`, if it gives a bound."""
    return () if max_ids and len(ids) > max_ids else ids
