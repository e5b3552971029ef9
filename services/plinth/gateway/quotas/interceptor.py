"""The quotas of calls that the gateway passes on to other stages.

Each call of a stage's service is one of its tenant's requests at a time, from auth to its end, and
is refused while the tenant's tokens are used up. It costs no tokens itself: the gateway does not
know how many a stage will read, and what stages queue (jobs, runs, tasks) goes behind people's
requests.

Watches are not counted. They last as long as what they watch and do no work, so that who follows
four runs would have four requests fewer; and one that is refused when it comes back from a broken
connection would leave its client without an end. Chats and completions are counted where they are
answered (`core.py`), by REST and by gRPC alike; here they are refused while their tenant has no
request or token left, before their message is looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from plinth.gateway.quotas.tenants import Quotas
from plinth.shared.errors import PlinthError
from plinth.shared.identity import current_principal
from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.rpc.status import fail

_GENERATION = "/plinth.v1.GenerationService/"
_OPEN_INFERENCE = "/inference.GRPCInferenceService/"
# Of services that the gateway answers itself.
OWN = (
    _GENERATION,
    _OPEN_INFERENCE,
    "/plinth.v1.ModelService/",
    "/plinth.v1.OperationsService/",
    "/plinth.v1.KeyService/",
)
# What makes answers.
ANSWERED = (_GENERATION, f"{_OPEN_INFERENCE}ModelInfer")
STAGES = "/plinth.v1."
WATCHES = frozenset({"WatchRun", "WatchJob"})


class QuotaInterceptor(grpc.aio.ServerInterceptor):
    """Runs behind auth, which knows the tenant."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        counted, answered = counts(details.method), details.method.startswith(ANSWERED)
        if handler is None or not (counted or answered):
            return handler

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            async with AsyncExitStack() as held:
                try:
                    tenant = current_principal().tenant
                    if answered:
                        await self._quotas.check(tenant)
                    else:
                        await held.enter_async_context(self._quotas.admitted(tenant))
                except PlinthError as error:
                    await fail(context, error)
                yield

        return wrap(handler, layer)


def counts(method: str) -> bool:
    """Whether calls of this method ("/plinth.v1.JobService/GetJob") are counted here."""
    if not method.startswith(STAGES) or method.startswith(OWN):
        return False
    return method.rpartition("/")[2] not in WATCHES
