"""A canary in Redis: which share of a served name's requests its second revision gets, and what
came of them.

One hash per served name, changed by scripts only (`canary_scripts.py`). The coordinator opens it
and renews it while its step lives; a route that is not renewed lapses, and all requests go to the
stable revision again. Gateways ask it per request and report each answer. The share is kept by a
counter, not by chance: after n requests the canary has had at most share · n of them and at most
one less, over all gateways together, at every moment.
"""

from __future__ import annotations

import copy
import hashlib
import uuid
from typing import Any, NamedTuple

from redis.asyncio import Redis

from plinth.shared import canary_scripts as scripts
from plinth.shared import redis_keys
from plinth.shared.answer_ids import bare_id
from plinth.shared.canary_counts import CanaryState, bucket_of, parse_state
from plinth.shared.connection import redis_errors
from plinth.shared.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.fencing import STALE, Fence
from plinth.shared.redis_keys import LEADER_LEASE

SUFFIX = ".canary"  # deployment of the canary of "chat": "chat.canary"
MAX_SHARE = 0.5
ROUTE_S = 30.0  # a route that is not renewed for so long lapses
KEPT_S = 7 * 86_400.0  # counters after the last change
ANSWER_S = 3600.0  # how long an answer can be judged,
MAX_ANSWERS = 100_000  # of so many that came last, so that traffic can't fill Redis
_ONCE_S = 60  # for commands that a broken connection sends twice
# Sticky users may carry the canary this far above its share, of at least 50 requests.
_SLACK = 0.02
# How long the slots of time last whose requests are one cohort, at least and at most.
_SLOT_S = (0.5, 5.0)


class Chosen(NamedTuple):
    """Who answers one request. role: "stable" or "canary". cohort: what it is counted in; 0 where
    that is over."""

    id: str
    role: str
    cohort: int


class Canaries:
    """The canaries of this installation. Raises Unavailable while Redis is gone."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._open = redis.register_script(scripts.OPEN)
        self._move = redis.register_script(scripts.MOVE)
        self._note = redis.register_script(scripts.NOTE)
        self._choose = redis.register_script(scripts.CHOOSE)
        self._settle = redis.register_script(scripts.SETTLE)
        self._report = redis.register_script(scripts.REPORT)
        self._report_revision = redis.register_script(scripts.REPORT_REVISION)
        self._lease = ""

    def under(self, fence: Fence) -> Canaries:
        """The same canaries, opened and moved while the fence's lease is held: else Aborted."""
        fenced = copy.copy(self)
        fenced._lease = fence.lease
        return fenced

    async def open(
        self,
        name: str,
        id: str,
        *,
        stable: str,
        canary: str,
        share: float,
        sticky: bool = False,
        requests: int | None = None,
    ) -> str:
        """Opens the route, or renews it for ROUTE_S; its state. requests: the canary is given so
        many at most while it is not promoted; None: any number. FailedPrecondition while `name`
        has a canary of somebody else."""
        with redis_errors():
            state, detail = await self._open(
                keys=[*_led(name), _cohorts(name)],
                args=[
                    self._lease,
                    id,
                    stable,
                    canary,
                    repr(share),
                    int(ROUTE_S * 1000),
                    int(KEPT_S * 1000),
                    "1" if sticky else "0",
                    "" if requests is None else requests,
                ],
            )
        if state == b"deposed":
            raise _deposed(name)
        if state == b"taken":
            raise FailedPrecondition(
                f"{name!r} has a canary already (of {detail.decode()}); wait for its end, or "
                "cancel that run",
                reason="CANARY_TAKEN",
                field="name",
            )
        return str(state.decode())

    async def promote(self, name: str, id: str) -> None:
        """Sends all new requests to the canary."""
        await self._moved(name, id, "promoted")

    async def close(self, name: str, id: str, outcome: str = "") -> None:
        """Sends it no more requests, for good. What is counted stays. Idempotent: the first
        outcome is kept, by which a step that is taken up again knows why."""
        await self._moved(name, id, "closed", outcome)

    async def note(self, name: str, id: str, evidence: str, counted: int) -> None:
        """Keeps what the step that watches it concludes so far, while the canary is open. counted:
        the last cohort that is in it; these are forgotten."""
        with redis_errors():
            done = await self._note(
                keys=[*_led(name), _cohorts(name)],
                args=[self._lease, id, evidence, counted],
            )
        if done == -1:
            raise _deposed(name)

    async def state(self, name: str) -> CanaryState | None:
        """None: `name` has had no canary for a long time."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(redis_keys.canary(name))
                pipe.hgetall(_cohorts(name))
                pipe.time()
                raw, cohorts, (seconds, micros) = await pipe.execute()
        if not raw:
            return None
        return parse_state(_texts(raw), _texts(cohorts), seconds + micros / 1e6)

    async def choose(
        self, name: str, artifact: str, user: str = "", answer: str = "", within_s: float = 600.0
    ) -> Chosen | None:
        """Who answers one request; None where no canary of that artifact is open. Each one that is
        chosen for is to be settled, by its cohort.

        user: who asks. Where the canary is sticky the same user gets the same revision: users are
        drawn by hash, and the canary still never has more than 2 points above its share. answer:
        see `answer_key`; what it can be judged by. within_s: it is settled by then, or was lost.
        """
        with redis_errors():
            chosen: Any = await self._choose(
                keys=[
                    redis_keys.canary(name),
                    redis_keys.canary(name, f"choice-{uuid.uuid4().hex}"),
                    *_answers(name),
                    _cohorts(name),
                ],
                args=[
                    artifact,
                    repr(_point(name, user)) if user else "",
                    _SLACK,
                    _ONCE_S,
                    answer,
                    int(ANSWER_S * 1000),
                    MAX_ANSWERS,
                    *(int(edge * 1000) for edge in _SLOT_S),
                    int(within_s * 1000),
                ],
            )
        if not chosen:
            return None
        return Chosen(chosen[0].decode(), chosen[1].decode(), int(chosen[2]))

    async def settle(
        self,
        name: str,
        id: str,
        role: str,
        *,
        outcome: str,
        tokens: int,
        ttft_s: float | None,
        answer: str,
        cohort: int = 0,
        once: str = "",
    ) -> None:
        """Books one request. outcome: "ok", "error", "late" where its time was over before the
        first token, "cancelled" where its client hung up, or "refused" where it is to count as not
        asked. answer: see `answer_key`. cohort: as chosen; 0
        for one that was not drawn for this role, which counts in the totals only.
        once: names this call for a minute, in which it may be made again without counting twice."""
        bucket = "" if ttft_s is None else bucket_of(ttft_s)
        with redis_errors():
            await self._settle(
                keys=[
                    redis_keys.canary(name),
                    redis_keys.canary(name, f"once-{once or uuid.uuid4().hex}"),
                    *_answers(name),
                    _cohorts(name),
                ],
                args=[
                    id,
                    role,
                    outcome,
                    tokens,
                    bucket,
                    _ONCE_S,
                    answer,
                    int(ANSWER_S * 1000),
                    MAX_ANSWERS,
                    cohort,
                ],
            )

    async def report(self, name: str, *, answer: str, good: bool) -> str:
        """Counts a verdict on one answer, once; the role that made it. NotFound,
        FailedPrecondition when its canary is over."""
        with redis_errors():
            role = await self._report(
                keys=[redis_keys.canary(name), *_answers(name)],
                args=["good" if good else "bad", answer, int(ANSWER_S * 1000)],
            )
        return _role(name, role.decode(), "answer of yours with that response_id", "response_id")

    async def report_revision(self, name: str, revision: str, *, good: bool) -> str:
        """Counts a verdict on a revision ("chat@8"); errors as in `report`."""
        with redis_errors():
            role = await self._report_revision(
                keys=[redis_keys.canary(name), redis_keys.canary(name, f"once-{uuid.uuid4().hex}")],
                args=["good" if good else "bad", revision, _ONCE_S],
            )
        return _role(name, role.decode(), f"revision {revision!r}", "revision")

    async def _moved(self, name: str, id: str, state: str, outcome: str = "") -> None:
        with redis_errors():
            done = await self._move(keys=_led(name), args=[self._lease, id, state, outcome])
        if done == -1:
            raise _deposed(name)


def answer_key(tenant: str, id: str) -> str:
    """Names an answer, by its id or its request's, without trusting what a client calls it; a
    tenant judges its own only."""
    return hashlib.sha256(f"{tenant}\0{bare_id(id)}".encode()).hexdigest()


def canary_name(name: str) -> str:
    """The deployment that serves the canary of `name`. InvalidArgument for a canary's name."""
    if name.endswith(SUFFIX):
        raise InvalidArgument(f"{name!r} is a canary's name; name what it is a canary of")
    return f"{name}{SUFFIX}"


def _led(name: str) -> list[str]:
    """The canary, and the lease of who may move it."""
    return [redis_keys.canary(name), redis_keys.lease(LEADER_LEASE)]


def _cohorts(name: str) -> str:
    return redis_keys.canary(name, "cohorts")


def _texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in raw.items()}


def _answers(name: str) -> list[str]:
    """The answers that can be judged, and when they came."""
    return [redis_keys.canary(name, "answers"), redis_keys.canary(name, "answers-by-time")]


def _point(name: str, user: str) -> float:
    digest = hashlib.sha256(f"{name}\0{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _deposed(name: str) -> Aborted:
    return Aborted(
        f"the canary of {name!r} stays as it is: another coordinator leads", reason=STALE
    )


def _role(name: str, role: str, what: str, where: str) -> str:
    if role == "unknown":
        raise NotFound(
            f"{name!r} has no {what} while its canary is on, or none of the last hour",
            reason="ANSWER_NOT_FOUND",
            field=where,
        )
    if role == "over":
        raise FailedPrecondition(
            f"{name!r} has no canary now: verdicts count while one is on", reason="NO_CANARY"
        )
    return role
