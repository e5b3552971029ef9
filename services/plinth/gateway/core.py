"""What the REST and the gRPC API share: quota, preparation, answers, accounting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from plinth.gateway.generation.catalogue import Catalogue
from plinth.gateway.generation.chooser import Chooser
from plinth.gateway.generation.failover import Replaced, Shards
from plinth.gateway.generation.generator import Generator, TextRequest
from plinth.gateway.generation.revisions import Choice, Refusals, Revisions, falls_back, outcome_of
from plinth.gateway.generation.selection import Selection
from plinth.gateway.generation.session import Session
from plinth.gateway.generation.texts import Texts
from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.keys.keyring import Keyring
from plinth.gateway.keys.manager import KeyManager
from plinth.gateway.preferences.live import AnswerRecorder, LivePreferences
from plinth.gateway.quotas.tenants import Admission, Quotas
from plinth.gateway.services.queue_operations import QueueOperations
from plinth.shared.canary import Canaries
from plinth.shared.connection import connect, redis_errors
from plinth.shared.errors import FailedPrecondition, PlinthError, Unavailable
from plinth.shared.identity import Principal, cluster_token
from plinth.shared.platform_status import PlatformStatus
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.schema import claim_redis
from plinth.shared.settings import Settings
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.gateway")
PING_S = 2.0
MAX_REPLACED = 4  # revisions that may go before one request's first token


class GatewayCore:
    """Everything that both APIs share. One per process."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise FailedPrecondition(
                "the gateway needs Redis: set PLINTH_REDIS_URL (`plinth up` does)",
                reason="SETTINGS_INVALID",
                field="redis_url",
            )
        gateway = settings.gateway
        self.settings = settings
        self.token = cluster_token(settings)
        self._redis = connect(settings.redis_url.get_secret_value())
        self.registry = registry = Registry(self._redis)
        self.clients = StageClients(registry, settings, self.token)
        self.catalogue = Catalogue(registry)
        self.keystore = KeyStore(self._redis, stale_s=gateway.keys_stale_s)
        self.key_manager = KeyManager(self._redis, self.keystore)
        self.keyring = Keyring(self.keystore, settings)
        self.quotas = Quotas(
            self._redis,
            concurrent=gateway.tenant_concurrent_requests,
            tokens_per_minute=gateway.tenant_tokens_per_minute,
        )
        self.texts = Texts(self.clients, gateway.patience_s, gateway.resume_patience_s)
        shards = Shards(self.clients, self.catalogue, gateway.patience_s, gateway.resume_patience_s)
        self.generator = Generator(self.catalogue, self.texts, shards, gateway.request_deadline_s)
        self.chooser = Chooser(
            self.clients,
            patience_s=gateway.patience_s,
            pattern_s=gateway.pattern_s,
        )
        self.preferences = LivePreferences(
            self.clients,
            self.quotas,
            rate=gateway.preference_sampling_rate,
            rival=gateway.preference_rival,
        )
        # Connections of its own: a burst of look-ups must not cost the canary its share.
        self._canary_redis = connect(settings.redis_url.get_secret_value())
        canaries = Canaries(self._canary_redis)
        self.revisions = Revisions(self.catalogue, canaries, gateway.request_deadline_s)
        self.status = PlatformStatus(self._redis, registry, canaries)
        self.queues = QueueOperations(self._redis)
        self._fresh: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts what runs beside the requests. FailedPrecondition: Redis is a newer Plinth's,
        or another release's."""
        await claim_redis(self._redis, self.settings.release)
        await self.keyring.open()
        self._fresh = asyncio.create_task(self.keyring.keep_fresh())
        self.quotas.open()
        self.preferences.open()

    async def close(self) -> None:
        """Ends it, and the connections."""
        if self._fresh is not None:
            await cancel_and_wait(self._fresh)
        await self.preferences.close()
        await self.chooser.close()
        await self.quotas.close()
        await self.revisions.drain()
        await self.clients.close()
        await self._canary_redis.aclose()
        await self._redis.aclose()

    async def check_may_generate(self, principal: Principal) -> None:
        """Before anything is read for it: PermissionDenied without the scope, RateLimited where
        the tenant has nothing left to spend."""
        principal.require("inference")
        await self.quotas.check(principal.tenant)

    @asynccontextmanager
    async def session(
        self,
        principal: Principal,
        requests: Sequence[TextRequest],
        recorder: AnswerRecorder | None = None,
        selection: Selection | None = None,
    ) -> AsyncIterator[Session]:
        """Lets the requests in; the block begins with their first piece, and however it ends, or
        does not begin, shards and quota are free then. Raises what is wrong with the requests."""
        principal.require("inference")
        async with self.quotas.admitted(principal.tenant) as admission, AsyncExitStack() as stack:
            if selection is not None:
                await self.chooser.check(principal, selection)
            session = await self._begun(stack, principal, requests, admission)
            session.recorder = recorder
            yield session

    async def _begun(
        self,
        stack: AsyncExitStack,
        principal: Principal,
        requests: Sequence[TextRequest],
        admission: Admission,
    ) -> Session:
        """A session of the first revision that gives a first piece; `stack` leaves it."""
        refusals = Refusals(self.revisions, principal)
        try:
            session = await self._first_begun(stack, principal, requests, admission, refusals)
            refusals.answered()
            return session
        finally:
            refusals.book()

    async def _first_begun(
        self,
        stack: AsyncExitStack,
        principal: Principal,
        requests: Sequence[TextRequest],
        admission: Admission,
        refusals: Refusals,
    ) -> Session:
        model, user = requests[0].model, requests[0].user
        choice = await self.revisions.choose(model, principal, user)
        left = MAX_REPLACED
        while True:
            try:
                session = await self._prepared(principal, requests, admission, choice)
                return await stack.enter_async_context(session)
            except PlinthError as error:
                refusals.note(choice, error)
                if choice.otherwise is not None and falls_back(error):
                    _log.warning(
                        "the canary can't answer; the stable revision does",
                        canary=choice.model.artifact,
                        reason=error.message,
                    )
                    choice = choice.instead()
                    continue
                left -= 1
                if not isinstance(error, Replaced) or not left:
                    raise
                _log.info("a request chooses its revision again", reason=error.message)
            choice = await self.revisions.choose(model, principal, user)

    async def _prepared(
        self,
        principal: Principal,
        requests: Sequence[TextRequest],
        admission: Admission,
        choice: Choice,
    ) -> Session:
        """A session of that revision, to be entered."""
        impatient = choice.otherwise is not None
        try:
            prepared = await self.generator.prepare(
                principal, requests, choice.model, impatient=impatient
            )
        except BaseException as error:
            self.revisions.book(choice, principal, outcome_of(error, began=False))
            raise
        return Session(self.generator, prepared, admission, self.revisions, choice)

    async def redis_answers(self) -> bool:
        """Whether Redis takes a word within two seconds."""
        try:
            async with asyncio.timeout(PING_S):
                with redis_errors():
                    await self._redis.ping()
        except (PlinthError, TimeoutError):
            return False
        return True

    async def check_ready(self) -> None:
        """Unavailable unless a model is served and the tokenizer is there."""
        if not await self.catalogue.models():
            raise Unavailable("no model is ready yet", reason="NO_MODEL", retry_after_s=1.0)
        await self.texts.ping()
