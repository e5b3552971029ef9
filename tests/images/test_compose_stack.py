"""compose.yaml as an operator runs it: closed containers serve a model, a shard's death does not
show in a stream, and a gateway that is cut off from Redis goes on and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from container_stack import Compose, docker, resumed, skip_unless_built, slow_model, until
from plinth.cluster.trials import chaos, smoke
from plinth.cluster.trials.visitor import GatewayUrls, Visitor, visit
from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import holds
from plinth.shared.settings import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MODEL, SHARDS = "tiny", 2
INCOMING = f"/var/lib/plinth/incoming/{MODEL}"
TOKENS = 400


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """All of compose.yaml, with a small model on two shards."""
    skip_unless_built("gateway", "cpu", "redis")
    folder = tmp_path_factory.mktemp("compose")
    slow_model(folder / MODEL)
    compose = Compose(f"plinth-test-{uuid.uuid4().hex[:8]}", folder / "secrets")
    try:
        compose("up", "--detach")
        compose.give("stages", folder / MODEL, INCOMING)
        serve = ["plinth", "models", "serve", INCOMING, "--shards", str(SHARDS)]
        docker("exec", compose.containers("stages")[0], *serve)
        until(lambda: asyncio.run(held(compose)) == SHARDS, "both shards")
        until(lambda: asyncio.run(listed(compose)), "the gateway sees them")
        yield compose
    except AssertionError as error:
        raise AssertionError(f"{error}\n{compose.log('stages')}\n{compose.log('shard')}") from error
    finally:
        compose("down", "--volumes", "--timeout", "5")


@asynccontextmanager
async def visitor(compose: Compose) -> AsyncIterator[Visitor]:
    """With a key, at the gateway's address on the inner network."""
    redis = compose.address(compose.containers("redis")[0])
    gateway = compose.address(compose.containers("gateway")[0])
    url = f"redis://:{compose.secret('redis-password')}@{redis}:6379/1"
    async with visit(
        load_settings(redis_url=url), GatewayUrls(f"http://{gateway}:8080", f"{gateway}:8081")
    ) as one:
        yield one


async def held(compose: Compose) -> int:
    """Shards that announce the model."""
    async with visitor(compose) as one:
        shards = await Registry(one.redis).replicas("inference")
        return sum(holds(shard, MODEL) for shard in shards)


async def listed(compose: Compose) -> bool:
    async with visitor(compose) as one:
        models = await asyncio.to_thread(one.rest, "/v1/models")
        return MODEL in [model["id"] for model in models["data"]]


class Shards:
    """The shards' containers, where the trial expects Kubernetes' pods."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self.killed: list[str] = []

    def by_address(self, address: str, selector: str) -> str:
        found = {self._compose.address(one): one for one in self._compose.containers(selector)}
        return found[address]

    def kill(self, container: str) -> None:
        docker("kill", "--signal", "KILL", container)
        self.killed.append(container)


def reaches(container: str, address: str, port: int) -> bool:
    """Whether a connection can be made from inside a container within 3 s."""
    program = f"import socket; socket.create_connection(('{address}', {port}), 3)"
    try:
        docker("exec", container, "python", "-c", program)
    except AssertionError as error:
        assert "TimeoutError" in str(error) or "unreachable" in str(error), error
        return False
    return True


def test_every_container_is_closed_and_well(stack: Compose):
    for service in ("redis", "stages", "shard", "gateway"):
        for container in stack.containers(service):
            one = json.loads(docker("inspect", container))[0]
            host = one["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["CapAdd"]
            assert not host["Privileged"]
            assert one["Config"]["User"] == ("999:999" if service == "redis" else "10001:10001")
            status = one["State"]["Health"]["Status"]
            assert status == "healthy", f"{service} is {status}"
            told = json.dumps(one["Config"])
            for name in ("cluster-token", "redis-password", "ray-token", "api-key"):
                assert stack.secret(name) not in told, f"{service} shows {name}"
    inside = json.loads(docker("network", "inspect", f"{stack.project}_inside"))[0]
    assert inside["Internal"] is True
    shard, gateway = stack.containers("shard")[0], stack.containers("gateway")[0]
    assert reaches(shard, stack.address(gateway), 8080)
    # The same door on the network that leads out, where a shard has no business.
    assert not reaches(shard, stack.address(gateway, "front"), 8080)


async def test_the_smoke_trial_passes_at_both_doors(stack: Compose):
    async with visitor(stack) as one:
        await smoke.run(one, MODEL)


async def test_a_killed_shards_stream_loses_nothing(stack: Compose):
    shards, gateway = Shards(stack), stack.address(stack.containers("gateway")[0])
    before = resumed(gateway)
    async with visitor(stack) as one:
        await chaos.run(one, shards, "shard", MODEL, TOKENS)  # type: ignore[arg-type]
    assert len(shards.killed) == 1
    # The shard did not die after its last token.
    assert resumed(gateway) == before + 1
    docker("start", shards.killed[0])
    await asyncio.to_thread(until, lambda: asyncio.run(held(stack)) == SHARDS, "both shards again")
    async with visitor(stack) as one:
        await smoke.run(one, MODEL)


class Partition:
    """Silence between the gateway and Redis, both ways, and nothing else, while it is entered."""

    def __init__(self, gateway: str, redis: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may cut a container's network")
        pid = docker("inspect", "--format", "{{.State.Pid}}", gateway)
        self._inside = ["nsenter", "-n", "-t", pid, "iptables"]
        self._sides = (("OUTPUT", "-d", redis), ("INPUT", "-s", redis))

    def __enter__(self) -> None:
        self._rules("-I")

    def __exit__(self, *_: object) -> None:
        self._rules("-D")

    def _rules(self, how: str) -> None:
        for chain, side, redis in self._sides:
            rule = [*self._inside, how, chain, side, redis, "-j", "DROP"]
            subprocess.run(rule, check=True, capture_output=True)


async def test_a_partition_between_gateway_and_redis_heals(stack: Compose):
    gateway, redis = stack.containers("gateway")[0], stack.containers("redis")[0]
    door = stack.address(redis)
    cut = Partition(gateway, door)
    clock = asyncio.get_running_loop().time
    async with visitor(stack) as one:
        calm = [token async for token in one.tokens(MODEL, "cut", TOKENS, 5)]
        assert len(calm) == TOKENS
        assert reaches(gateway, door, 6379)
        stream = one.tokens(MODEL, "cut", TOKENS, 5)
        seen = [await anext(stream) for _ in range(8)]
        with cut:
            # What has begun goes on: a shard is on the stream's path, Redis is not.
            began = clock()
            seen += [token async for token in stream]
            assert clock() - began > 0.2, "the answer had ended before the network was cut"
            assert seen == calm
            assert not reaches(gateway, door, 6379)
            # The door stays open, so that a supervisor does not end what would heal by itself.
            assert await asyncio.to_thread(one.rest, "/healthz") == {"status": "alive"}
            # A new request is answered from what the gateway knows, or refused in time; it hangs
            # in neither case.
            try:
                async with asyncio.timeout(90):
                    kept = [token async for token in one.tokens(MODEL, "cut", 8, 5)]
            except Unavailable:
                pass
            else:
                assert kept == calm[:8]
        began = clock()
        while True:
            try:
                after = [token async for token in one.tokens(MODEL, "cut", TOKENS, 5)]
                break
            except PlinthError as error:
                assert clock() - began < 60, f"not healed after 60 s: {error}"
                await asyncio.sleep(0.5)
        assert after == calm


async def test_redis_comes_back_with_what_it_knew(stack: Compose):
    """Its container is killed: keys and registry outlive it, on the volume."""
    redis = stack.containers("redis")[0]
    async with visitor(stack) as one:
        before = [token async for token in one.tokens(MODEL, "keep", 32, 9)]
        docker("kill", "--signal", "KILL", redis)
        docker("start", redis)
        async with asyncio.timeout(120):
            while True:
                try:
                    assert [token async for token in one.tokens(MODEL, "keep", 32, 9)] == before
                    break
                except PlinthError:
                    await asyncio.sleep(0.5)
