"""Live answers as preference tasks: with the client's consent, and a share of them only.

A recorder hears the pieces of an answer as the client gets them. When the answer is complete, its
text and prompt go to a short queue, and a task beside the requests hands them to the coordinator,
which asks for a second answer and lets somebody choose. An answer never waits for any of this:
what does not fit, or meets a coordinator that is away, is dropped and counted. The second answer
is paid for out of the tenant's quota, and dropped where there is none left.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from plinth.gateway import metrics
from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.generator import Prepared, TextRequest
from plinth.gateway.limits import MAX_STOP_TOKEN_IDS
from plinth.gateway.quotas.account import RateLimited
from plinth.gateway.quotas.tenants import Quotas
from plinth.shared.errors import DeadlineExceeded, InvalidArgument, PlinthError, Unavailable
from plinth.shared.identity import Principal, current_request_id
from plinth.shared.preference_names import COLLECTIONS, LIVE_COLLECTION
from plinth.shared.rpc.client import StageClients
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

CONSENT = "x-plinth-consent"  # a header, or a key of the call's metadata
PURPOSE = "preferences"
QUEUE_LENGTH = 64
MAX_BYTES = 64 << 10  # of a prompt, and of an answer; what is longer is not recorded
MAX_RESPONSES = 8
MAX_TOKENS = 16_384  # of the second answer
TIMEOUT_S = 10.0
_log = get_logger("plinth.gateway")


def consents(value: str | bytes | None) -> bool:
    """Whether the client agrees. InvalidArgument for a word that means nothing here: a consent
    that was misspelt must not look as if it were one."""
    if value is None:
        return False
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    words = {word.strip().lower() for word in text.split(",")} - {""}
    if unknown := sorted(words - {PURPOSE}):
        raise InvalidArgument(
            f"{CONSENT}: {unknown[0][:40]!r} is not known; {PURPOSE!r} is what can be agreed to",
            reason="CONSENT_UNKNOWN",
            field=CONSENT,
        )
    return bool(words)


def drawn(request_id: str, rate: float) -> bool:
    """Whether this request is in the sample: the same whenever it is asked."""
    digest = hashlib.sha256(f"preferences {request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2**64


class AnswerRecorder:
    """Hears one request's answers, exactly as they go to the client."""

    def __init__(self, to: LivePreferences, prompt: Sequence[chat_pb2.ChatMessage]) -> None:
        self._to = to
        self._prompt = prompt
        self._request_id = current_request_id()
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._cut_off: set[int] = set()
        self._size = 0
        self._tokens = 0

    def record(self, index: int, event: TextEvent) -> None:
        """A piece of one of the answers."""
        self._size += len(event.text)
        self._tokens += len(event.tokens)
        if event.finish == sampling_pb2.FINISH_REASON_LENGTH:
            self._cut_off.add(index)
        if self._size <= MAX_RESPONSES * MAX_BYTES:  # no more is kept than could be used
            self._texts[index].append(event.text)

    def finish(self, prepared: Prepared) -> None:
        """The answers are complete: hands them on. Neither waits nor raises."""
        try:
            self._hand_on(prepared)
        except Exception:  # noqa: BLE001 - the client's answer must not suffer
            _log.exception("a live answer was not recorded")
            self._to.drop("error")

    def _hand_on(self, prepared: Prepared) -> None:
        answers = [(index, "".join(self._texts[index])) for index in sorted(self._texts)]
        texts = list(dict.fromkeys(text for _, text in answers))[:MAX_RESPONSES]
        sizes = [sum(len(m.content.encode()) for m in self._prompt)]
        sizes += [len(text.encode()) for text in texts]
        if self._size > MAX_RESPONSES * MAX_BYTES or max(sizes) > MAX_BYTES:
            self._to.drop("too large")
            return
        if not texts or not all(text.strip() for text in texts):
            self._to.drop("empty answer")
            return
        origin = "\0".join((prepared.principal.tenant, self._request_id, *texts))
        ask = pb.CreatePreferenceTaskRequest(
            parent=COLLECTIONS.name(LIVE_COLLECTION),
            task_id=f"live-{hashlib.sha256(origin.encode()).hexdigest()[:32]}",
        )
        spec = ask.task.spec
        spec.prompt.extend(self._prompt)
        spec.origin = pb.PREFERENCE_TASK_ORIGIN_LIVE
        spec.answered_request_id = self._request_id
        for text in texts:
            index = next(index for index, other in answers if other == text)
            response = spec.responses.add(
                text=text,
                model=prepared.model.artifact,
                weights_digest=prepared.model.weights_digest,
                sampling=prepared.sampling,
                cut_off=index in self._cut_off,
            )
            response.sampling.sample_index += index
        price = 0
        if len(texts) == 1:
            spec.samples.append(self._to.rival(prepared))
            price = len(prepared.prompt_ids) + self._tokens
        self._to.hand_over(ask, prepared.principal, price)


@dataclass(frozen=True)
class _Waiting:
    """price: tokens of the second answer, which is made later and elsewhere. It is taken to be as
    long as the first one, by whose settings it is made."""

    ask: pb.CreatePreferenceTaskRequest
    principal: Principal
    price: int


class LivePreferences:
    """The way from answers to the coordinator; one per gateway."""

    def __init__(self, clients: StageClients, quotas: Quotas, *, rate: float, rival: str) -> None:
        self._clients = clients
        self._quotas = quotas
        self._rate = rate
        self._rival = rival
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(QUEUE_LENGTH)
        self._task: asyncio.Task[None] | None = None

    def recorder(self, consent: str | bytes | None, ask: TextRequest) -> AnswerRecorder | None:
        """For a chat that may be recorded and is drawn; None for any other, and for one with stop
        strings, which the second answer would not end at."""
        if not consents(consent) or not drawn(current_request_id(), self._rate) or ask.stop:
            return None
        messages = [m for m in ask.prompt if isinstance(m, chat_pb2.ChatMessage)]
        if not messages or messages[-1].role != "user":
            return None
        return AnswerRecorder(self, messages)

    def rival(self, prepared: Prepared) -> pb.SampleSpec:
        """How the second answer is made: by the same settings, with another seed. What was greedy
        would only repeat itself, so it is sampled."""
        sampling = sampling_pb2.SamplingParams(
            temperature=prepared.sampling.temperature
            if prepared.sampling.HasField("temperature") and prepared.sampling.temperature > 0
            else 1.0,
            max_tokens=min(prepared.sampling.max_tokens, MAX_TOKENS),
            ignore_eos=prepared.sampling.ignore_eos,
            stop_token_ids=prepared.sampling.stop_token_ids[:MAX_STOP_TOKEN_IDS],
        )
        for name in ("top_p", "top_k"):
            if prepared.sampling.HasField(name):
                setattr(sampling, name, getattr(prepared.sampling, name))
        return pb.SampleSpec(model=self._rival or prepared.model.name, sampling=sampling, count=1)

    def hand_over(
        self, ask: pb.CreatePreferenceTaskRequest, principal: Principal, price: int
    ) -> None:
        """Never waits; a full queue drops it. price: in tokens of the second answer."""
        try:
            self._waiting.put_nowait(_Waiting(ask, principal, price))
        except asyncio.QueueFull:
            self.drop("queue full")

    @staticmethod
    def drop(why: str) -> None:
        """Counted, so that a sample that is thinner than it should be shows."""
        metrics.PREFERENCES.labels(why).inc()

    def open(self) -> None:
        """Starts handing over, if anything may be recorded at all."""
        if self._rate > 0:
            self._task = asyncio.create_task(self._hand_over())

    async def close(self) -> None:
        """Ends it; what waits is lost, and counted."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        while not self._waiting.empty():
            self._waiting.get_nowait()
            self.drop("gateway stopped")

    async def _hand_over(self) -> None:
        while True:
            one = await self._waiting.get()
            try:
                await self._create(one)
                metrics.PREFERENCES.labels("recorded").inc()
            except RateLimited as limited:
                _log.info("a live answer was not recorded", reason=limited.message)
                self.drop("over quota")
            except PlinthError as error:
                away = isinstance(error, Unavailable | DeadlineExceeded)
                _log.info("a live answer was not recorded", reason=error.message)
                self.drop("coordinator away" if away else "refused")
            except asyncio.CancelledError:
                self.drop("gateway stopped")
                raise
            except Exception:  # noqa: BLE001 - nothing here may end the recording
                _log.exception("a live answer was not recorded")
                self.drop("error")

    async def _create(self, one: _Waiting) -> None:
        """RateLimited where the tenant has no quota left for the second answer. What the
        coordinator does not take costs nothing."""
        admission = self._quotas.background(one.principal.tenant)
        await admission.charge(one.price)
        try:
            await self._create_task(one.ask, one.principal)
        except PlinthError:
            admission.spend(-one.price)
            raise

    async def _create_task(self, ask: pb.CreatePreferenceTaskRequest, principal: Principal) -> None:
        # A key that may ask for answers needs no scope of its own for agreeing to this.
        caller = Principal(principal.tenant, principal.key_id, frozenset({"preferences"}))
        channel = self._clients.channel(await self._clients.pick("coordinator"), caller)
        await rpc.PreferenceServiceStub(channel).CreatePreferenceTask(ask, timeout=TIMEOUT_S)
