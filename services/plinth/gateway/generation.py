"""From a text request to text events: tokenizer, shard, detokeniser, stop strings.

Both doors ask here. One answer is one generator: a task collects the shard's tokens, and what has
come by the time that the last piece is out is detokenised together, so that a slow step anywhere
makes pieces larger and never the answer slower. Closing the generator frees the shard at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from plinth.gateway import limits, metrics
from plinth.gateway.catalogue import Catalogue, ServedModel
from plinth.gateway.failover import Order, Shards
from plinth.gateway.stops import StopStrings
from plinth.gateway.texts import Texts, TextStream
from plinth.shared.errors import DeadlineExceeded, InvalidArgument
from plinth.shared.identity import Principal, current_request_id, remaining_s
from plinth.shared.tasks import cancel_for_certain
from plinth.v1 import common_pb2, inference_pb2

STOP = common_pb2.FINISH_REASON_STOP
SEED_BITS = 53  # what every JSON reader keeps exactly

Prompt = str | Sequence[int] | Sequence[common_pb2.ChatMessage]


@dataclass(frozen=True)
class TextRequest:
    """What a client asks for. `sampling` may lack seed and max_tokens; fields name errors."""

    model: str
    prompt: Prompt
    sampling: common_pb2.SamplingParams
    stop: tuple[str, ...] = ()
    samples: int = 1
    prompt_field: str = "prompt"
    samples_field: str = "n"
    user: str = ""  # who asks, in the client's words: stays with one revision
    special_tokens: bool = True  # those that a prompt of text spells are meant; a chat's never are
    deaths: set[str] = field(default_factory=set)  # shards that died under it, so far


@dataclass(frozen=True)
class Prepared:
    """A request that shards can take: ids, a seed, and a max_tokens that fits the context."""

    model: ServedModel
    prompt_ids: tuple[int, ...]
    sampling: common_pb2.SamplingParams
    stop: tuple[str, ...]
    samples: int
    principal: Principal
    started: float
    deadline: float
    impatient: bool = False  # another revision answers where this one has no shard
    deaths: set[str] = field(default_factory=set)  # the request's own, whatever answers it


@dataclass(frozen=True)
class TextEvent:
    """A piece of one answer; `finish` (and `usage`) are set on the last one."""

    text: str
    tokens: tuple[common_pb2.Token, ...] = ()
    finish: int = 0
    usage: common_pb2.Usage | None = None


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
        request: TextRequest,
        model: ServedModel,
        *,
        impatient: bool = False,
    ) -> Prepared:
        """Ids of the prompt, checked against the model's context; a seed where none was given."""
        started = time.monotonic()
        left_s = remaining_s()
        deadline = started + min(self._deadline_s, left_s if left_s is not None else 1e9)
        sampling = common_pb2.SamplingParams()
        sampling.CopyFrom(request.sampling)
        ids = await self._ids(principal, model, request, sampling)
        asked = sampling.max_tokens if sampling.HasField("max_tokens") else None
        sampling.max_tokens = limits.room(
            len(ids), asked, model.context_length, request.prompt_field
        )
        limits.check_together(request.samples, sampling.max_tokens, request.samples_field)
        if not sampling.HasField("seed"):
            sampling.seed = secrets.randbits(SEED_BITS)
        return Prepared(
            model,
            tuple(ids),
            sampling,
            request.stop,
            request.samples,
            principal,
            started,
            deadline,
            impatient,
            request.deaths,
        )

    async def _ids(
        self,
        principal: Principal,
        model: ServedModel,
        request: TextRequest,
        sampling: common_pb2.SamplingParams,
    ) -> list[int]:
        """The prompt's ids; what ends a turn is added to `sampling`."""
        prompt = request.prompt
        if isinstance(prompt, str):
            ids, stop_ids = await self.texts.encode(
                principal, model.artifact, prompt, special_tokens=request.special_tokens
            )
        else:
            messages = [item for item in prompt if isinstance(item, common_pb2.ChatMessage)]
            if not messages:
                return [item for item in prompt if isinstance(item, int)]
            ids, stop_ids = await self.texts.chat(principal, model.artifact, messages)
        if not sampling.ignore_eos:
            sampling.stop_token_ids.extend(
                id_ for id_ in stop_ids if id_ not in sampling.stop_token_ids
            )
        return ids

    async def answer(self, prepared: Prepared, sample: int = 0) -> AsyncGenerator[TextEvent, None]:
        """Pieces of one sample's text as they become certain; the last has a finish reason."""
        stream = self.texts.stream(prepared.principal, prepared.model.artifact)
        inbox: asyncio.Queue[inference_pb2.GenerateResponse | BaseException] = asyncio.Queue()
        reader = asyncio.create_task(self._collect(_order(prepared, sample), inbox))
        try:
            writer = _Writer(prepared, stream)
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
                    raise batch[-1]
        finally:
            # No awaiting here: whoever closes this may be cancelled already.
            cancel_for_certain(reader)
            stream.close()

    async def _collect(
        self,
        order: Order,
        inbox: asyncio.Queue[inference_pb2.GenerateResponse | BaseException],
    ) -> None:
        try:
            async with aclosing(self._shards.tokens(order)) as messages:
                async for message in messages:
                    inbox.put_nowait(message)
        except Exception as error:  # noqa: BLE001 - raised again in `answer`
            inbox.put_nowait(error)


class _Writer:
    """Turns a shard's messages into events: text, stop strings, usage, timing."""

    def __init__(self, prepared: Prepared, stream: TextStream) -> None:
        self._prepared = prepared
        self._stream = stream
        self._stops = StopStrings(prepared.stop)
        self._made = 0
        self._usage = common_pb2.Usage(prompt_tokens=len(prepared.prompt_ids))
        self._last = 0.0
        self.finished = False

    async def write(self, batch: Sequence[inference_pb2.GenerateResponse]) -> TextEvent | None:
        """The event that these messages make; None when nothing can be said yet."""
        if not batch:
            return None
        tokens = tuple(token for message in batch for token in message.tokens)
        for message in batch:
            self._count(message)
        finish = batch[-1].finish_reason
        if finish == common_pb2.FINISH_REASON_DEADLINE:
            raise DeadlineExceeded("the answer ran out of its time", reason="DEADLINE")
        if tokens:
            self._time()
        self._made += len(tokens)
        text = await self._stream.feed([token.id for token in tokens], flush=bool(finish))
        out = self._stops.feed(text)
        if finish:
            out += self._stops.finish()
        if self._stops.hit is not None:
            finish = STOP
        if not finish:
            return TextEvent(out, tokens) if out or tokens else None
        self.finished = True
        self._usage.completion_tokens = self._made
        return TextEvent(out, tokens, finish, self._usage)

    def _count(self, message: inference_pb2.GenerateResponse) -> None:
        if not message.HasField("usage"):
            return
        # After a resumption "cached" may include tokens of the answer.
        self._usage.cached_tokens = min(message.usage.cached_tokens, self._usage.prompt_tokens)
        self._usage.draft_proposed += message.usage.draft_proposed
        self._usage.draft_accepted += message.usage.draft_accepted

    def _time(self) -> None:
        now = time.monotonic()
        name = self._prepared.model.name
        if self._last:
            metrics.ITL.labels(name).observe(now - self._last)
        else:
            metrics.TTFT.labels(name).observe(now - self._prepared.started)
        self._last = now


def _order(prepared: Prepared, sample: int) -> Order:
    sampling = common_pb2.SamplingParams()
    sampling.CopyFrom(prepared.sampling)
    sampling.sample_index += sample
    return Order(
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
    """(index of the answer, its event), as they come. Closing it closes all answers."""
    inbox: asyncio.Queue[tuple[int, TextEvent | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, answer: AsyncGenerator[TextEvent, None]) -> None:
        try:
            async with aclosing(answer):
                async for event in answer:
                    inbox.put_nowait((index, event))
            inbox.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001 - raised again below
            inbox.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, answer)) for index, answer in enumerate(answers)]
    running = len(tasks)
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


def check_sampling(sampling: common_pb2.SamplingParams) -> None:
    """The bounds of common.proto, for requests that come as protobuf."""
    checks = (
        ("temperature", not sampling.HasField("temperature") or 0 <= sampling.temperature <= 2),
        ("top_p", not sampling.HasField("top_p") or 0 < sampling.top_p <= 1),
        ("top_logprobs", sampling.top_logprobs <= limits.MAX_TOP_LOGPROBS),
        ("stop_token_ids", len(sampling.stop_token_ids) <= limits.MAX_STOP_TOKEN_IDS),
        ("first_output_position", sampling.first_output_position == 0),
        ("speculation", sampling.speculation in ("", "off", "lookup", "draft")),
    )
    for name, good in checks:
        if not good:
            raise InvalidArgument(
                f"sampling.{name}: {getattr(sampling, name)!r} is out of range",
                field=f"sampling.{name}",
            )
    if sampling.HasField("max_tokens"):
        limits.check_max_tokens(sampling.max_tokens, "sampling.max_tokens")
