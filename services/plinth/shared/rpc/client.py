"""Channels to the other stages: found in the registry, picked by load, shared by all callers.

A replica whose connection was refused is left out for a moment, so that a call does not wait for
a dead one while the registry still lists it. Knows no messages.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.shared.errors import Unavailable
from plinth.shared.identity import Principal
from plinth.shared.registry import Registry, Replica
from plinth.shared.rpc.channel import StageChannel, open_channel, open_transport
from plinth.shared.settings import Settings
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.v1 import jobs_pb2_grpc, rewards_pb2_grpc, runs_pb2_grpc

if TYPE_CHECKING:
    from plinth.internal.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub
    from plinth.v1.jobs_pb2_grpc import JobServiceAsyncStub
    from plinth.v1.rewards_pb2_grpc import RewardServiceAsyncStub
    from plinth.v1.runs_pb2_grpc import RunServiceAsyncStub

__all__ = ["StageClients", "open_channel"]

SKIP_REFUSED_S = 2.0
# Longer than a replica's announcement may be late: its connection is then still there.
FORGET_AFTER_S = 60.0
_log = get_logger("plinth.rpc")
_Load = tuple[int, int]  # waiting, running


@dataclass(eq=False)
class _Transport:
    """A connection to one replica, a task that notes when it is refused, and its calls."""

    channel: grpc.aio.Channel
    watcher: asyncio.Task[None]
    last_listed: float = field(default_factory=time.monotonic)
    calls: int = 0  # in flight
    forgotten: bool = False


class StageClients:
    """A pool of channels over the registry; one per process, safe to share between tasks."""

    def __init__(self, registry: Registry, settings: Settings, token: str) -> None:
        self._registry = registry
        self._settings = settings
        self._token = token
        # By stage and address: an address may come back as another stage's.
        self._transports: dict[tuple[str, str], _Transport] = {}
        self._refused: dict[str, float] = {}  # address → when, on the monotonic clock
        # By stage: replica → its last beat, picks since.
        self._picked: dict[str, dict[str, tuple[str, int]]] = {}
        self._draining: set[_Transport] = set()  # forgotten, with calls in flight
        self._closing: set[asyncio.Task[None]] = set()

    async def pick(
        self,
        stage: str,
        *,
        model: str | None = None,
        fits: Callable[[Replica], bool] | None = None,
        exclude: Collection[str] = (),
    ) -> Replica:
        """The replica of `stage` with the least waiting, then running, requests.

        model: only replicas that hold it, by served name or artifact reference.
        fits: only replicas of which it is true, where that needs more than a name.
        exclude: ids of replicas not to take (they failed this request already).
        Raises Unavailable when none is left; it says why.
        """
        listed = await self._registry.replicas(stage)
        self._forget_gone(stage, listed)
        holding = [
            r for r in listed if (model is None or holds(r, model)) and (fits is None or fits(r))
        ]
        fit = [r for r in holding if r.id not in exclude and not self._was_refused(r.address)]
        if not fit:
            raise _none_left(stage, model, listed, holding)
        best = min(fit, key=lambda replica: (self._load(replica), random.random()))
        beat, picks = self._picked[stage][best.id]
        self._picked[stage][best.id] = (beat, picks + 1)
        return best

    def channel(self, replica: Replica, principal: Principal | None = None) -> grpc.aio.Channel:
        """A channel to `replica`; calls carry `principal` as in `open_channel`. For the calls of
        the moment: don't close it, and don't keep it."""
        transport = self._transport(replica)
        return StageChannel(
            transport.channel,
            stage=replica.stage,
            settings=self._settings,
            token=self._token,
            principal=principal,
            began=lambda call: self._began(transport, call),
        )

    def refused(self, replica: Replica) -> None:
        """Tells that `replica` does not answer: nobody picks it for the next moment."""
        self._refused[replica.address] = time.monotonic()

    async def tokenizer(self, principal: Principal | None = None) -> TokenizerServiceAsyncStub:
        """A stub on the least busy tokenizer."""
        channel = self.channel(await self.pick("tokenizer"), principal)
        return tokenizer_pb2_grpc.TokenizerServiceStub(channel)

    async def trainer(self, principal: Principal | None = None) -> JobServiceAsyncStub:
        """A stub on the least busy trainer."""
        channel = self.channel(await self.pick("trainer"), principal)
        return jobs_pb2_grpc.JobServiceStub(channel)

    async def reward(self, principal: Principal | None = None) -> RewardServiceAsyncStub:
        """A stub on the least busy reward replica."""
        channel = self.channel(await self.pick("reward"), principal)
        return rewards_pb2_grpc.RewardServiceStub(channel)

    async def runs(self, principal: Principal | None = None) -> RunServiceAsyncStub:
        """A stub on a coordinator."""
        channel = self.channel(await self.pick("coordinator"), principal)
        return runs_pb2_grpc.RunServiceStub(channel)

    async def close(self) -> None:
        """Closes every channel; calls that still run on them are cancelled."""
        transports = [*self._transports.values(), *self._draining]
        self._transports.clear()
        self._draining.clear()
        await cancel_and_wait(*self._closing, *(transport.watcher for transport in transports))
        for transport in transports:
            await transport.channel.close()

    def _load(self, replica: Replica) -> _Load:
        """As announced, plus what we sent there since: announcements come seconds apart, and a
        burst must not all go to the one that was idle in the last one."""
        now = replica.fields.get("beat", "")
        of_stage = self._picked.setdefault(replica.stage, {})
        beat, picks = of_stage.get(replica.id, (now, 0))
        if beat != now:
            picks = 0
        of_stage[replica.id] = (now, picks)
        waiting, running = announced_load(replica)
        return (waiting, running + picks)

    def _was_refused(self, address: str) -> bool:
        since = self._refused.get(address)
        if since is None:
            return False
        if time.monotonic() - since < SKIP_REFUSED_S:
            return True
        del self._refused[address]
        return False

    def _transport(self, replica: Replica) -> _Transport:
        key = (replica.stage, replica.address)
        transport = self._transports.get(key)
        if transport is None:
            channel = open_transport(replica.address, self._settings, replica.stage)
            watcher = asyncio.create_task(self._watch(replica.address, channel))
            transport = self._transports[key] = _Transport(channel, watcher)
        return transport

    def _began(self, transport: _Transport, call: Any) -> None:
        transport.calls += 1
        call.add_done_callback(lambda _: self._ended(transport))

    def _ended(self, transport: _Transport) -> None:
        transport.calls -= 1
        if transport.forgotten and not transport.calls:
            self._close(transport)

    async def _watch(self, address: str, channel: grpc.aio.Channel) -> None:
        while True:
            state = channel.get_state()
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                return
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                _log.info("replica refuses connections", address=address)
                self._refused[address] = time.monotonic()
            elif state is grpc.ChannelConnectivity.READY:
                self._refused.pop(address, None)
            await channel.wait_for_state_change(state)

    def _forget_gone(self, stage: str, listed: Iterable[Replica]) -> None:
        """Lets go of the connections to `stage` whose replicas have not been listed for a while.

        A replica that left the registry may be draining calls of ours, or only be late: calls in
        flight go on until they end, by themselves, by its drain, or since keepalive finds nobody
        there. A listing says nothing of other stages.
        """
        now = time.monotonic()
        replicas = list(listed)
        for replica in replicas:
            if (transport := self._transports.get((stage, replica.address))) is not None:
                transport.last_listed = now
        picked, ids = self._picked.get(stage, {}), {replica.id for replica in replicas}
        self._picked[stage] = {one: picks for one, picks in picked.items() if one in ids}
        for key, transport in list(self._transports.items()):
            if key[0] == stage and now - transport.last_listed > FORGET_AFTER_S:
                del self._transports[key]
                transport.watcher.cancel()
                transport.forgotten = True
                if transport.calls:
                    self._draining.add(transport)
                else:
                    self._close(transport)

    def _close(self, transport: _Transport) -> None:
        self._draining.discard(transport)
        task = asyncio.create_task(transport.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def holds(replica: Replica, model: str) -> bool:
    """Whether `replica` announced a binding of that served name or artifact reference."""
    return any(model in (held.get("model"), held.get("artifact")) for held in replica.bindings)


def announced_load(replica: Replica) -> _Load:
    """(waiting, running) of the last announcement."""
    return (int(replica.fields.get("waiting", 0)), int(replica.fields.get("running", 0)))


def _none_left(
    stage: str, model: str | None, listed: Collection[Replica], holding: Collection[Replica]
) -> Unavailable:
    if not listed:
        what = f"no {stage} replica is up"
    elif not holding:
        what = f"none of {len(listed)} {stage} replicas holds {model or 'what is asked for'!r}"
    else:
        what = f"none of {len(holding)} {stage} replicas that could answer can be reached now"
    return Unavailable(what, reason="NO_REPLICA", retry_after_s=1.0, metadata={"stage": stage})
