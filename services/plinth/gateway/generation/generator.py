"""From a text request to text events: tokenizer, shard, detokeniser, stop strings.

Both APIs ask here. One answer is one generator: a task collects the shard's tokens, and what has
come by the time that the last piece is out is detokenised together, so that a slow step anywhere
makes pieces larger and never the answer slower. Closing the generator frees the shard at once.

Whoever reads slowly slows down no one else: the task holds a bounded number of messages, then stops
reading, and flow control carries that to the shard, which makes no more than a bound either.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from plinth.gateway import limits
from plinth.gateway.generation.answer_writer import AnswerWriter, TextEvent
from plinth.gateway.generation.catalogue import Catalogue, ServedModel
from plinth.gateway.generation.failover import SampleRequest, Shards
from plinth.gateway.generation.texts import Encoded, Texts
from plinth.internal.v1 import inference_pb2
from plinth.shared.errors import DeadlineExceeded, InvalidArgument
from plinth.shared.identity import Principal, current_request_id, remaining_s
from plinth.shared.tasks import cancel_for_certain, next_turn
from plinth.v1 import chat_pb2, sampling_pb2

MAX_AT_ONCE = 16  # answers of one request; a thousand prompts would fill every shard's queue
SEED_BITS = 53  # what every JSON reader keeps exactly
GROUP_PROMPTS = 64  # whose ids are asked for together
GROUP_SIZE = 128 << 10  # characters or ids of them, together
INBOX_MESSAGES = 64  # of one answer, not yet made into text

Prompt = str | Sequence[int] | Sequence[chat_pb2.ChatMessage]


@dataclass(frozen=True)
class TextRequest:
    """What a client asks for. `sampling` may lack seed and max_tokens; fields name errors."""

    model: str
    prompt: Prompt
    sampling: sampling_pb2.SamplingParams
    stop: tuple[str, ...] = ()
    samples: int = 1
    prompt_field: str = "prompt"
    samples_field: str = "n"
    sampling_prefix: str = ""  # of the fields of `sampling`
    answers: int = 0  # to all prompts of one request, where this is one of several
    whole: bool = False  # the answer is sent when it is complete, and held until then
    user: str = ""  # who asks, in the client's words: stays with one revision
    special_tokens: bool = True  # those that a prompt of text spells are meant; a chat's never are
    deaths: set[str] = field(default_factory=set)  # shards that died under it, so far


@dataclass(frozen=True)
class Prepared:
    """A request that shards can take: ids, a seed, and a max_tokens that fits the context."""

    model: ServedModel
    prompt_ids: Sequence[int]  # a protobuf message's, so that it is cheap to ask shards for them
    sampling: sampling_pb2.SamplingParams
    stop: tuple[str, ...]
    samples: int
    principal: Principal
    started: float
    deadline: float
    impatient: bool = False  # another revision answers where this one has no shard
    deaths: set[str] = field(default_factory=set)  # the request's own, whatever answers it
    prompt_field: str = "prompt"
    sampling_prefix: str = ""


class Generator:
    """The core that REST and gRPC share."""

    def __init__(
        self, catalogue: Catalogue, texts: Texts, shards: Shards, deadline_s: float
    ) -> None:
        self.catalogue = catalogue
        self.texts = texts
        self._shards = shards
        self._deadline_s = deadline_s

    async def prepare(
        self,
        principal: Principal,
        requests: Sequence[TextRequest],
        model: ServedModel,
        *,
        impatient: bool = False,
    ) -> list[Prepared]:
        """One client's requests with the ids of their prompts, checked against the model's
        context, and a seed where none was given."""
        started = time.monotonic()
        left_s = remaining_s()
        deadline = started + min(self._deadline_s, left_s if left_s is not None else 1e9)
        prepared = []
        async for request, encoded in self._encoded(principal, requests, model):
            prepared.append(
                Prepared(
                    model,
                    encoded.ids,
                    _sampling(request, encoded, model),
                    request.stop,
                    request.samples,
                    principal,
                    started,
                    deadline,
                    impatient,
                    request.deaths,
                    request.prompt_field,
                    request.sampling_prefix,
                )
            )
        return prepared

    async def _encoded(
        self, principal: Principal, requests: Sequence[TextRequest], model: ServedModel
    ) -> AsyncGenerator[tuple[TextRequest, Encoded], None]:
        """The requests in order, a group of prompts at a time: other requests have their turn."""
        for texts in _groups(requests):
            found: Sequence[Encoded]
            prompts = [cast("str", request.prompt) for request in texts]
            if isinstance(prompts[0], str):
                found = await self.texts.encode(
                    principal,
                    model.artifact,
                    prompts,
                    special_tokens=texts[0].special_tokens,
                    max_ids=model.context_length,
                )
            else:
                found = [await self._of(principal, request, model) for request in texts]
            for request, encoded in zip(texts, found, strict=True):
                yield request, encoded
            await next_turn()

    async def _of(self, principal: Principal, request: TextRequest, model: ServedModel) -> Encoded:
        """Of a prompt that is a chat, or ids already."""
        prompt = request.prompt
        if not prompt or isinstance(prompt[0], int):
            return Encoded(cast("Sequence[int]", prompt), len(prompt))
        messages = cast("Sequence[chat_pb2.ChatMessage]", prompt)
        return await self.texts.chat(
            principal, model.artifact, messages, max_ids=model.context_length
        )

    async def answer(self, prepared: Prepared, sample: int = 0) -> AsyncGenerator[TextEvent, None]:
        """Pieces of one sample's text as they become certain; the last has a finish reason."""
        stream = self.texts.stream(prepared.principal, prepared.model.artifact)
        inbox: asyncio.Queue[inference_pb2.GenerateResponse | BaseException] = asyncio.Queue(
            INBOX_MESSAGES
        )
        reader = asyncio.create_task(self._collect(_sample_request(prepared, sample), inbox))
        try:
            writer = AnswerWriter(
                stream,
                prepared.stop,
                model=prepared.model.name,
                prompt_tokens=len(prepared.prompt_ids),
                started=prepared.started,
            )
            while not writer.finished:
                batch = [await inbox.get()]
                while not inbox.empty():
                    batch.append(inbox.get_nowait())
                event = await writer.write(
                    [item for item in batch if not isinstance(item, BaseException)]
                )
                if event is not None:
                    yield event
                if isinstance(batch[-1], BaseException) and not writer.finished:
                    raise _in_the_clients_words(batch[-1], prepared)
                if writer.late:
                    raise DeadlineExceeded("the answer ran out of its time", reason="DEADLINE")
        finally:
            # No awaiting here: whoever closes this may be cancelled already.
            cancel_for_certain(reader)
            stream.close()

    async def _collect(
        self,
        request: SampleRequest,
        inbox: asyncio.Queue[inference_pb2.GenerateResponse | BaseException],
    ) -> None:
        try:
            async with aclosing(self._shards.tokens(request)) as messages:
                async for message in messages:
                    await inbox.put(message)
        except Exception as error:  # noqa: BLE001 - raised again in `answer`
            await inbox.put(error)


def _in_the_clients_words(error: BaseException, prepared: Prepared) -> BaseException:
    """A shard's complaint, by the names that the request has for what it is about."""
    if isinstance(error, InvalidArgument):
        if error.field == "input":
            error.field = prepared.prompt_field
        elif error.field in sampling_pb2.SamplingParams.DESCRIPTOR.fields_by_name:
            error.field = prepared.sampling_prefix + error.field
    return error


def _groups(requests: Sequence[TextRequest]) -> Iterator[Sequence[TextRequest]]:
    """Requests whose prompts are encoded together: of one kind, and not long together."""
    group: list[TextRequest] = []
    size = 0
    for request in requests:
        size += len(request.prompt)
        kind = isinstance(request.prompt, str)
        if group and (
            len(group) == GROUP_PROMPTS
            or size > GROUP_SIZE
            or kind != isinstance(group[0].prompt, str)
        ):
            yield group
            group, size = [], len(request.prompt)
        group.append(request)
    if group:
        yield group


def _sampling(
    request: TextRequest, encoded: Encoded, model: ServedModel
) -> sampling_pb2.SamplingParams:
    """`request.sampling` with max_tokens, a seed, and the ids that end a turn."""
    sampling = sampling_pb2.SamplingParams()
    sampling.CopyFrom(request.sampling)
    asked = sampling.max_tokens if sampling.HasField("max_tokens") else None
    room = limits.room(encoded.count, asked, model.context_length, request.prompt_field)
    answers = request.answers or request.samples
    if request.whole and sampling.top_logprobs:
        room = min(room, limits.held_tokens(answers, sampling.top_logprobs))
    if asked is None:
        room = min(room, limits.MAX_TOKENS_TOGETHER // answers)
    limits.check_together(answers, room, request.samples_field)
    sampling.max_tokens = room
    if not sampling.ignore_eos:
        sampling.stop_token_ids.extend(
            id_ for id_ in encoded.stop_ids if id_ not in sampling.stop_token_ids
        )
    if not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(SEED_BITS)
    return sampling


def _sample_request(prepared: Prepared, sample: int) -> SampleRequest:
    sampling = sampling_pb2.SamplingParams()
    sampling.CopyFrom(prepared.sampling)
    sampling.sample_index += sample
    return SampleRequest(
        current_request_id(),
        prepared.model,
        prepared.prompt_ids,
        sampling,
        prepared.principal,
        prepared.deadline,
        prepared.impatient,
        prepared.deaths,
    )


async def merged(
    answers: Sequence[AsyncGenerator[TextEvent, None]],
) -> AsyncGenerator[tuple[int, TextEvent], None]:
    """(index of the answer, its event), as they come; MAX_AT_ONCE answers are made at a time, of
    each of which an event is held at most, and one that waits to be. Closing it closes all."""
    at_once = min(len(answers), MAX_AT_ONCE)
    inbox: asyncio.Queue[tuple[int, TextEvent | BaseException | None]] = asyncio.Queue(at_once)
    waiting = iter(enumerate(answers))

    async def pump() -> None:
        for index, answer in waiting:
            try:
                async with aclosing(answer):
                    async for event in answer:
                        await inbox.put((index, event))
                await inbox.put((index, None))
            except Exception as error:  # noqa: BLE001 - raised again below
                await inbox.put((index, error))

    running = len(answers)
    tasks = [asyncio.create_task(pump()) for _ in range(min(running, MAX_AT_ONCE))]
    try:
        while running:
            index, item = await inbox.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        cancel_for_certain(*tasks)
