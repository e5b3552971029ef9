"""A release with `ray.mode: static` under load: eight streams at a time go on while what serves
them is replaced. A stream's ids are compared with those of the same request when nothing happens.
They are seeded and not greedy: a random model's greedy answer goes round in a circle, where a
token lost or repeated would not show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from chart_pods import Cluster
from container_stack import slow_model, until
from plinth.cluster.trials.visitor import Visitor
from static_release import MODEL, SHARDS, give, held, plinth, static_cluster, visitor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STREAMS, TOKENS = 8, 96
Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with static_cluster(tmp_path_factory.mktemp("pods")) as one:
        yield one


async def answer(one: Visitor, number: int) -> Ids:
    """The answer to the request of that number."""
    return tuple([t async for t in one.tokens(MODEL, f"Stream {number} says", TOKENS, number)])


@dataclass
class Load:
    """STREAMS requests at a time, each asked again as soon as it is answered."""

    answers: list[tuple[int, Ids]] = field(default_factory=list)  # (number, ids)
    failures: list[str] = field(default_factory=list)
    _stopping: bool = False

    async def stream(self, one: Visitor, number: int) -> None:
        while not self._stopping:
            try:
                self.answers.append((number, await answer(one, number)))
            except Exception as error:  # noqa: BLE001 - any way to end early is a finding
                self.failures.append(f"stream {number}: {error}")
                return

    def stop(self) -> None:
        """Asks for nothing new; what runs is heard to its end."""
        self._stopping = True


@asynccontextmanager
async def load(one: Visitor) -> AsyncIterator[Load]:
    """Leaves when the last stream has ended. AssertionError when one failed."""
    made = Load()
    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(made.stream(one, number))
        try:
            yield made
        finally:
            made.stop()
    assert not made.failures, made.failures


async def settled(cluster: Cluster, revision: str) -> None:
    def there() -> bool:
        return asyncio.run(held(cluster)) == [revision] * SHARDS

    await asyncio.to_thread(until, there, f"{SHARDS} shards hold {revision}")


async def test_new_weights_take_over_under_load(cluster: Cluster):
    other = cluster.folder / "other"
    slow_model(other, seed=1)
    path = give(cluster.of("trainer")[0].main, other)
    plinth(cluster, "models", "import", path, "--name", MODEL)
    plinth(cluster, "models", "alias", f"{MODEL}:prod", "1")
    plinth(cluster, "models", "serve", f"{MODEL}:prod", "--shards", str(SHARDS))
    await settled(cluster, f"{MODEL}@1")
    async with visitor(cluster) as one:
        old = [await answer(one, number) for number in range(STREAMS)]
        async with load(one) as running:
            await asyncio.to_thread(
                until, lambda: len(running.answers) >= STREAMS, "answers of the old weights"
            )
            await asyncio.to_thread(plinth, cluster, "models", "alias", f"{MODEL}:prod", "2")
            await asyncio.to_thread(plinth, cluster, "models", "serve", f"{MODEL}:prod")
            await settled(cluster, f"{MODEL}@2")
            seen = len(running.answers)
            await asyncio.to_thread(
                until, lambda: len(running.answers) >= seen + 2 * STREAMS, "answers of the new"
            )
        new = [await answer(one, number) for number in range(STREAMS)]
    assert all(len(ids) == TOKENS for ids in [*old, *new])
    assert all(before != after for before, after in zip(old, new, strict=True))
    wrong = [n for n, ids in running.answers if ids not in (old[n], new[n])]
    assert not wrong, f"of {len(running.answers)} answers these are of neither revision: {wrong}"
    # Both revisions were asked under load, and the last answers are the new one's.
    assert any(ids == old[n] for n, ids in running.answers)
    assert all(ids == new[n] for n, ids in running.answers[-STREAMS:])
