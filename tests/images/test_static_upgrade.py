"""A release with `ray.mode: static` under load: eight streams at a time go on while what serves
them is replaced. A stream's ids are compared with those of the same request when nothing happens.
They are seeded and not greedy: a random model's greedy answer goes round in a circle, where a
token lost or repeated would not show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException

import pytest

from chart_pods import Cluster
from container_stack import VERSION, resumed, slow_model, until
from plinth.cluster.trials.visitor import Visitor
from plinth.shared.tasks import cancel_and_wait
from static_release import (
    MODEL,
    SHARDS,
    give,
    held,
    images_of,
    of_version,
    plinth,
    replicas,
    static_cluster,
    visitor,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STREAMS, TOKENS = 8, 96
Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with static_cluster(tmp_path_factory.mktemp("pods")) as one:
        yield one


async def answer(one: Visitor, number: int, tokens: int = TOKENS) -> Ids:
    """The answer to the request of that number."""
    return tuple([t async for t in one.tokens(MODEL, f"Stream {number} says", tokens, number)])


@dataclass
class Load:
    """STREAMS requests at a time, each asked again as soon as it is answered, at whichever pod of
    the gateway is the newest then: what a Service does with a new connection."""

    cluster: Cluster
    tokens: int = TOKENS
    answers: list[tuple[int, Ids]] = field(default_factory=list)  # (number, ids)
    failures: list[str] = field(default_factory=list)
    _stopping: bool = False

    async def stream(self, number: int) -> None:
        while not self._stopping:
            try:
                async with visitor(self.cluster) as one:
                    self.answers.append((number, await answer(one, number, self.tokens)))
            except Exception as error:  # noqa: BLE001 - any way to end early is a finding
                self.failures.append(f"stream {number}: {error}")
                return

    async def answered(self, count: int, what: str) -> None:
        """Waits for so many answers. AssertionError as soon as a stream failed."""

        def there() -> bool:
            assert not self.failures, self.failures
            return len(self.answers) >= count

        await asyncio.to_thread(until, there, what)

    def stop(self) -> None:
        """Asks for nothing new; what runs is heard to its end."""
        self._stopping = True


@asynccontextmanager
async def load(cluster: Cluster, tokens: int = TOKENS) -> AsyncIterator[Load]:
    """Leaves when the last stream has ended. AssertionError when one failed."""
    made = Load(cluster, tokens)
    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(made.stream(number))
        try:
            yield made
        finally:
            made.stop()
    assert not made.failures, made.failures


async def undisturbed(cluster: Cluster, tokens: int = TOKENS, count: int = STREAMS) -> list[Ids]:
    """The answers to the first `count` requests when nothing else happens."""
    async with visitor(cluster) as one:
        return [await answer(one, number, tokens) for number in range(count)]


async def settled(cluster: Cluster, revision: str = "") -> None:
    """All shards hold this revision; without one, they hold any."""

    def there() -> bool:
        found = asyncio.run(held(cluster))
        return len(found) == SHARDS and (not revision or set(found) == {revision})

    await asyncio.to_thread(until, there, f"{SHARDS} shards hold {revision or 'the model'}")


async def test_new_weights_take_over_under_load(cluster: Cluster):
    other = cluster.folder / "other"
    slow_model(other, seed=1)
    path = give(cluster.of("trainer")[0].main, other)
    plinth(cluster, "models", "import", path, "--name", MODEL)
    plinth(cluster, "models", "alias", f"{MODEL}:prod", "1")
    plinth(cluster, "models", "serve", f"{MODEL}:prod", "--shards", str(SHARDS))
    await settled(cluster, f"{MODEL}@1")
    old = await undisturbed(cluster)
    async with load(cluster) as running:
        await running.answered(STREAMS, "answers of the old weights")
        await asyncio.to_thread(plinth, cluster, "models", "alias", f"{MODEL}:prod", "2")
        await asyncio.to_thread(plinth, cluster, "models", "serve", f"{MODEL}:prod")
        await settled(cluster, f"{MODEL}@2")
        await running.answered(len(running.answers) + 2 * STREAMS, "answers of the new")
    new = await undisturbed(cluster)
    assert all(len(ids) == TOKENS for ids in [*old, *new])
    assert all(before != after for before, after in zip(old, new, strict=True))
    wrong = [n for n, ids in running.answers if ids not in (old[n], new[n])]
    assert not wrong, f"of {len(running.answers)} answers these are of neither revision: {wrong}"
    # Both revisions were asked under load, and the last answers are the new one's.
    assert any(ids == old[n] for n, ids in running.answers)
    assert all(ids == new[n] for n, ids in running.answers[-STREAMS:])


STAGES = ("tokenizer", "trainer", "reward", "coordinator", "reconciler", "inference")
NEWER, LONG = "0.1.0-next", 960  # of the model's 1,024


async def versions(cluster: Cluster) -> set[str]:
    """Of the code that all stages' replicas run."""
    return {r.fields["version"] for stage in STAGES for r in await replicas(cluster, stage)}


@asynccontextmanager
async def resumed_streams(cluster: Cluster) -> AsyncIterator[dict[str, float]]:
    """How many went on at another shard, by address of each pod of the gateway that runs
    meanwhile: one that ends is asked for as long as it answers."""
    counts: dict[str, float] = {}

    async def look() -> None:
        while True:
            now = {pod.address for pod in cluster.of("gateway")}
            for address in now | set(counts):
                with suppress(OSError, HTTPException):
                    counts[address] = await asyncio.to_thread(resumed, address)
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    try:
        yield counts
    finally:
        await cancel_and_wait(looking)


async def test_new_code_takes_over_under_load(cluster: Cluster):
    """Every pod but Redis's is replaced, all sets at once as after `helm upgrade`: Ray's head, each
    stage, both shards, the gateway. Eight answers at a time take longer than a shard's drain of
    15 s, so that those are cut off in the middle which were not near their end."""
    await settled(cluster)
    expected = await undisturbed(cluster, LONG)
    assert await versions(cluster) == {VERSION}
    gone = [pod for pod in cluster.pods if pod.pod.component != "redis"]
    with images_of(NEWER):
        async with resumed_streams(cluster) as cut, load(cluster, LONG) as running:
            await running.answered(1, "an answer of the old code")
            await asyncio.to_thread(cluster.upgrade, of_version(cluster, NEWER))
            await running.answered(len(running.answers) + 2 * STREAMS, "answers of the new code")
        assert not [pod.name for pod in gone if pod in cluster.pods]
        for pod in cluster.pods:
            assert await asyncio.to_thread(pod.ready), pod.name
        assert await versions(cluster) == {NEWER}
        assert await undisturbed(cluster, LONG, 2) == expected[:2]
    wrong = [n for n, ids in running.answers if ids != expected[n]]
    assert not wrong, f"of {len(running.answers)} answers these are others: {wrong}"
    assert sum(cut.values()) > 0, "none was cut off in the middle"
