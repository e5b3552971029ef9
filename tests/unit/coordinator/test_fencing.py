"""Neither a coordinator that lost its lead nor an earlier run undoes what a later one wrote: by
simulation, step by step, and in whole runs."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from coordinator_replica import Coordinator, states
from patience import PATIENCE_S
from plinth.coordinator.deployments import put
from plinth.coordinator.leader import Leadership
from plinth.coordinator.performer import Performer
from plinth.coordinator.results import StepResults
from plinth.coordinator.steps import trial
from plinth.coordinator.steps.canary import CanarySpec, CanaryStep
from plinth.coordinator.steps.contract import Progress, StepOutcome, StepSpec, Tools, Work
from plinth.coordinator.steps.publish import PublishSpec, PublishStep
from plinth.coordinator.steps.serve import ServeSpec, ServeStep
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared import redis_keys
from plinth.shared.aliases import Aliases
from plinth.shared.canary import Canaries, canary_name
from plinth.shared.canary_counts import CanaryState, Tally
from plinth.shared.errors import Aborted, FailedPrecondition
from plinth.shared.fencing import Fence
from plinth.shared.record_log import RecordLog
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry, Replica
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2
from scripted_stages import World

VERSIONS = 4
TERMS = (1, 2, 3)


@dataclass(frozen=True)
class Act:
    """One step of one run under one leader. It is suspended before its `at`-th operation on the
    store, and meanwhile the acts in `during` are carried out."""

    run: int
    term: int
    version: int
    what: str
    at: int
    during: tuple[Act, ...] = ()


def acts(operations: int = 6) -> st.SearchStrategy[Act]:
    def of(during: st.SearchStrategy[tuple[Act, ...]]) -> st.SearchStrategy[Act]:
        return st.builds(
            Act,
            run=st.integers(1, 3),
            term=st.sampled_from(TERMS),
            version=st.integers(1, VERSIONS),
            what=st.sampled_from(["do", "do", "do", "abandon"]),
            at=st.integers(1, operations),
            during=during,
        )

    return st.recursive(
        of(st.just(())), lambda inner: of(st.lists(inner, max_size=2).map(tuple)), max_leaves=6
    )


@dataclass
class Suspended:
    """An act that is being carried out: operations until it is suspended."""

    act: Act
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.act.at


_NOW: ContextVar[Suspended | None] = ContextVar("act", default=None)


class Interleaved:
    """A store's storage where acts are suspended."""

    def __init__(
        self, storage: Any, carry_out: Callable[[Act], None], told: list[tuple[str, Act, str]]
    ) -> None:
        self._storage = storage
        self._carry_out = carry_out
        self._told = told

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in ("create", "names", "read"):
            return found

        def operation(*arguments: Any) -> Any:
            now = _NOW.get()
            if now is not None:
                now.left -= 1
                if now.left == 0:
                    for act in now.act.during:
                        self._carry_out(act)
            answer = found(*arguments)
            if now is not None and name == "create" and answer:
                self._told.append(("wrote", now.act, str(arguments[0])))
            return answer

        return operation


class Simulation:
    """An artifact with an alias and a deployment, both called `name`, coordinators with fences and
    stores of their own, and who wrote what, in order."""

    def __init__(
        self,
        name: str,
        stores: Mapping[int, ArtifactStore],
        perform: Callable[[Simulation, Act], None],
    ) -> None:
        self.name, self._perform = name, perform
        self._stores = {term: copy.copy(store) for term, store in stores.items()}
        # Whose each record is and where, and who ended well, in order.
        self.told: list[tuple[str, Act, str]] = []
        for version in range(1, VERSIONS + 1):
            self._stores[1].link(name, self._stores[1].get(f"m@{version}"))
        for store in self._stores.values():
            store.storage = cast(Any, Interleaved(store.storage, self.carry_out, self.told))
            store._aliases = Aliases(store.storage)  # it keeps the storage that it was made with

    def tools(self, act: Act) -> Tools:
        store = self._stores[act.term]
        nothing: Any = None
        tools = Tools(
            store,
            DeploymentRecords(store),
            cast(Any, _AllReady(self.name)),
            nothing,
            nothing,
            cast(Any, _Promoted(f"r{act.run}.s.{act.version}")),
            SourceRoots(()),
        )
        return tools.under(Fence(act.term, act.run))

    def carry_out(self, act: Act) -> None:
        token = _NOW.set(Suspended(act))
        try:
            self._perform(self, act)
        finally:
            _NOW.reset(token)


class _AllReady:
    """A registry where each version has an idle shard, as itself and as a canary."""

    def __init__(self, name: str) -> None:
        held = [
            {"model": served, "artifact": f"{name}@{version}"}
            for served in (name, canary_name(name))
            for version in range(1, VERSIONS + 1)
        ]
        self._replica = Replica("inference", "a", "a:1", {"bindings": json.dumps(held)})

    async def replicas(self, _: str) -> list[Replica]:
        return [self._replica]


class _Promoted:
    """Canaries that have been found good by every run that asks."""

    def __init__(self, id: str) -> None:
        tallies = {"stable": Tally(), "canary": Tally()}
        self._state = CanaryState(id, "promoted", 1.0, 10, 5, tallies)

    def under(self, _: Fence) -> _Promoted:
        return self

    async def open(self, *_: str, **__: Any) -> str:
        return "promoted"

    async def state(self, _: str) -> CanaryState:
        return self._state

    async def close(self, *_: str) -> None:
        pass


def publish(simulation: Simulation, act: Act) -> None:
    """What the step does, with its retries and refusals."""
    tools = simulation.tools(act)
    model = tools.store.get(f"{simulation.name}@{act.version}")
    spec = PublishSpec(kind="publish", model=simulation.name, alias="prod")
    work = Work(f"r{act.run}", "s", spec, {"model": model}, "sha256:0", "m")
    _settle(simulation, act, PublishStep(), work, tools)


def serve(simulation: Simulation, act: Act) -> None:
    tools = simulation.tools(act)
    model = tools.store.get(f"{simulation.name}@{act.version}")
    spec = ServeSpec(kind="serve", model=simulation.name, name=simulation.name)
    work = Work(f"r{act.run}", "s", spec, {"model": model}, "sha256:0", "m")
    _settle(simulation, act, _Put(), work, tools)


def canary(simulation: Simulation, act: Act) -> None:
    """From where its candidate was found good, or is the name's already."""
    tools = simulation.tools(act)
    name = simulation.name
    model = tools.store.get(f"{name}@{act.version}")
    spec = CanarySpec(kind="canary", model=name, name=name)
    work = Work(f"r{act.run}", "s", spec, {"model": model}, f"sha256:{act.version}", "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_IDLE_S", 0.0)
        _settle(simulation, act, CanaryStep(), work, tools)


class _Put:
    """The step `serve` without its wait for shards."""

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[StepOutcome]:
        assert isinstance(work.spec, ServeSpec)
        artifact = work.inputs["model"].ref
        wanted = internal.DeploymentRecord(name=work.spec.name, artifact=artifact, shards=1)
        await put(tools.deployments, wanted)
        yield StepOutcome(artifact)

    async def abandon(self, work: Work, tools: Tools) -> None:
        await ServeStep().abandon(work, tools)


def _settle(simulation: Simulation, act: Act, step: Any, work: Work, tools: Tools) -> None:
    async def attempt() -> None:
        if act.what == "abandon":
            await step.abandon(work, tools)
        else:
            assert [event async for event in step.execute(work, tools)]

    for _ in range(20):
        try:
            asyncio.run(attempt())
        except Aborted as error:
            if error.reason == "FENCE_STALE":
                return
        except FailedPrecondition:
            return
        else:
            simulation.told.append(("ended", act, ""))
            return
    raise AssertionError("it never came to an end")


FOLDERS = {"alias": "artifacts/{}/aliases/prod", "deployment": "deployments/{}"}


def values(simulation: Simulation, what: str) -> list[int | None]:
    """What stood after each record, oldest first."""
    store = simulation.tools(Act(1, 1, 1, "look", 0)).store
    log = RecordLog(store.storage, FOLDERS[what].format(simulation.name))
    found = []
    for number in log.numbers():
        record = log.read(number)
        if what == "alias":
            found.append(record["version"])
        else:
            deployed = record["deployment"]
            found.append(int(deployed["artifact"].rpartition("@")[2]) if deployed else None)
    return found


def check_order(simulation: Simulation, what: str, seen: list[int | None], at_first: int) -> None:
    """Who moves it is of no earlier leader than who wrote there, or found it right, and of no
    earlier run than who wrote or wanted what stands there: to give up wants nothing. seen: its
    values, of which so many stood at first."""
    folder = FOLDERS[what].format(simulation.name)
    records = iter(seen[at_first:])
    before = seen[at_first - 1] if at_first else None
    run = term = 0
    for told, act, where in simulation.told:
        if told == "wrote" and not where.startswith(f"{folder}/"):
            continue
        value = next(records) if told == "wrote" else before
        if value != before:
            assert act.run >= run
            assert act.term >= term
        if value != before or act.what == "do":
            run = max(run, act.run)
        term, before = max(term, act.term), value
    assert next(records, None) is None


_NAMES = count()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, ArtifactStore]:
    """By term, since each coordinator has its own."""
    folder = tmp_path_factory.mktemp("fencing")
    stores = {term: ArtifactStore((folder / "store").as_uri()) for term in TERMS}
    for version in range(1, VERSIONS + 1):
        (folder / f"{version}.source").write_text(str(version))
        stores[1].publish("m", "model", folder / f"{version}.source")
    return stores


@pytest.mark.parametrize(("what", "perform"), [("alias", publish), ("deployment", serve)])
@settings(max_examples=60)
@given(st.lists(acts(), min_size=1, max_size=3))
def test_the_latest_run_and_leader_stand_whatever_wakes_late(
    stores: Mapping[int, ArtifactStore], what: str, perform: Any, story: list[Act]
) -> None:
    simulation = Simulation(f"name{next(_NAMES)}", stores, perform)
    for act in story:
        simulation.carry_out(act)
    seen = values(simulation, what)
    check_order(simulation, what, seen, 0)
    # What stands is what an act that ended well, of the latest run among those that did, wanted.
    done = [act for told, act, _ in simulation.told if (told, act.what) == ("ended", "do")]
    if done:
        latest = max(act.run for act in done)
        assert seen[-1] in {act.version for act in done if act.run == latest}
    else:
        assert set(seen) <= {None}


@settings(max_examples=40)
@given(st.lists(acts(operations=30), min_size=1, max_size=3))
def test_canaries_keep_the_order_of_runs_and_leaders_on_all_that_they_write(
    stores: Mapping[int, ArtifactStore], story: list[Act]
) -> None:
    """One writes the name's deployment first and its alias later, so an act that ends in between
    leaves what the next one of its run finds."""
    name = f"name{next(_NAMES)}"
    simulation = Simulation(name, stores, canary)
    first = internal.DeploymentRecord(name=name, artifact=f"{name}@1", shards=1)
    DeploymentRecords(stores[1]).put(first)
    for act in story:
        simulation.carry_out(act)
    check_order(simulation, "deployment", values(simulation, "deployment"), 1)
    check_order(simulation, "alias", values(simulation, "alias"), 0)


@pytest.mark.parametrize("what", FOLDERS)
def test_a_canary_that_finds_all_as_it_wants_it_marks_it(
    stores: Mapping[int, ArtifactStore], what: str
) -> None:
    """A run that was submitted before it and comes later moves nothing back."""
    name, store = f"name{next(_NAMES)}", stores[2]
    simulation = Simulation(name, stores, canary)
    records = DeploymentRecords(store)
    records.put(internal.DeploymentRecord(name=name, artifact=f"{name}@2", shards=1))
    store.set_alias(name, "prod", 2)
    simulation.carry_out(Act(run=9, term=1, version=2, what="do", at=0))
    assert [told for told, _, _ in simulation.told] == ["wrote", "wrote", "ended"]
    early = Fence(1, 7)
    with pytest.raises(FailedPrecondition, match="submitted after"):
        if what == "alias":
            store.under(early).set_alias(name, "prod", 1)
        else:
            earlier = internal.DeploymentRecord(name=name, artifact=f"{name}@1", shards=1)
            records.under(early).put(earlier)


@pytest.fixture
async def world(world: World, tmp_path: Path) -> World:
    for version in ("1", "2", "3"):
        (tmp_path / f"{version}.source").write_text(version)
        await asyncio.to_thread(world.store.publish, "m", "model", tmp_path / f"{version}.source")
    return world


SHIP = """
name: {name}
steps:
  corpus: {{kind: data, builtin: stdlib}}
  release: {{kind: publish, model: m@{version}, after: [corpus]}}
  online: {{kind: serve, model: m@{version}, name: m, after: [corpus]}}
"""


async def test_an_earlier_run_that_gets_there_late_moves_nothing_back(world: World) -> None:
    world.trainer.gates["slow-corpus"] = asyncio.Event()
    coordinator = Coordinator(world, "one")
    await coordinator.start()
    await coordinator.submit("earlier", SHIP.format(name="slow", version=1))
    await coordinator.reached("earlier", "corpus", runs_pb2.STEP_STATE_RUNNING)
    await coordinator.submit("later", SHIP.format(name="quick", version=2))
    assert states(await coordinator.end("later")) == ["SUCCEEDED"] * 3
    world.trainer.gates["slow-corpus"].set()
    late = await coordinator.end("earlier")
    assert late.status.state == runs_pb2.RUN_STATE_FAILED
    assert "submitted after this one" in late.status.error
    # What the message advises: the same pipeline, submitted now, is the latest.
    assert await asyncio.to_thread(world.store.aliases, "m") == {"prod": 2}
    assert [d.artifact for d in await asyncio.to_thread(world.deployments.list)] == ["m@2"]
    await coordinator.submit("again", SHIP.format(name="slow", version=1))
    assert states(await coordinator.end("again")) == ["REUSED", "SUCCEEDED", "SUCCEEDED"]
    assert await asyncio.to_thread(world.store.aliases, "m") == {"prod": 1}
    await coordinator.stop()


async def test_a_person_moves_what_a_run_moved_and_a_later_run_moves_it_again(
    world: World,
) -> None:
    store, now = world.store, Fence(5, 7)
    store.under(now).set_alias("m", "prod", 2)
    store.set_alias("m", "prod", 1)
    with pytest.raises(FailedPrecondition, match="submitted after"):
        store.under(replace(now, run=6)).set_alias("m", "prod", 3)
    store.under(replace(now, run=8)).set_alias("m", "prod", 3)
    assert store.aliases("m") == {"prod": 3}


@pytest.mark.parametrize("deployment", [False, True])
def test_a_run_that_was_cancelled_before_it_wrote_is_in_nobodys_way(
    tmp_path: Path, deployment: bool
) -> None:
    """It claimed what it might have written: that shuts out leaders of old, and no earlier run."""
    store = ArtifactStore((tmp_path / "s").as_uri())
    for version in (1, 2):
        (tmp_path / "model").write_text(str(version))
        store.publish("m", "model", tmp_path / "model")
    records = DeploymentRecords(store)

    def write(fence: Fence, version: int) -> None:
        if deployment:
            wanted = internal.DeploymentRecord(name="m", artifact=f"m@{version}", shards=1)
            records.under(fence).put(wanted)
        else:
            store.under(fence).set_alias("m", "prod", version)

    write(Fence(4, 6), 1)
    if deployment:
        records.under(Fence(5, 8)).claim("m")
    else:
        store.under(Fence(5, 8)).claim_alias("m", "prod")
    with pytest.raises(Aborted):
        write(Fence(4, 8), 2)
    write(Fence(5, 7), 2)
    with pytest.raises(FailedPrecondition):
        write(Fence(5, 6), 1)
    write(Fence(5, 8), 1)


def _impure() -> list[tuple[Any, StepSpec]]:
    return [
        (PublishStep(), PublishSpec(kind="publish", model="m")),
        (ServeStep(), ServeSpec(kind="serve", model="m", name="m")),
        (CanaryStep(), CanarySpec(kind="canary", model="m", name="m")),
    ]


@pytest.mark.parametrize("what", ["do", "abandon"])
@pytest.mark.parametrize(("kind", "spec"), _impure(), ids=lambda one: getattr(one, "kind", ""))
async def test_a_coordinator_that_does_not_know_that_it_is_deposed_changes_nothing(
    world: World, redis_client: Redis, kind: Any, spec: StepSpec, what: str
) -> None:
    """Its successor has done the same step for a later run, and taken the lease."""
    canaries = Canaries(redis_client)
    tools = Tools(
        world.store,
        world.deployments,
        Registry(redis_client),
        world.clients,
        redis_client,
        canaries,
        SourceRoots(()),
    )
    await redis_client.set(redis_keys.lease("runs"), "successor|2")
    after = tools.under(Fence(2, 1, "successor|2"))
    after.store.set_alias("m", "prod", 2)
    await put(after.deployments, internal.DeploymentRecord(name="m", artifact="m@2", shards=1))
    after.deployments.claim("m.canary")
    await after.canaries.open("m", "theirs", stable="m@2", canary="m@3", share=0.1)
    before = (await _state(world, redis_client), _records(world))

    deposed = Leadership("deposed|1", 1e6, time.monotonic())  # by its own clock it leads
    performer = Performer(tools, StepResults(world.store), deposed)
    model = world.store.get("m@1")
    work = Work("r", "s", spec, {"model": model}, "sha256:0", "m", run_number=1)
    if what == "do":
        async with asyncio.timeout(PATIENCE_S):
            await _until_it_waits(performer, work)
    else:
        with pytest.raises(Aborted):
            await kind.abandon(work, tools.under(deposed.fences(1)))
    assert (await _state(world, redis_client), _records(world)) == before


async def _until_it_waits(performer: Performer, work: Work) -> None:
    async for event in performer.perform(work):
        assert isinstance(event, Progress), event
        if event.detail.startswith("waits: "):
            return
    raise AssertionError("it was carried out")


async def _state(world: World, redis: Redis) -> Any:
    return await redis.hgetall(redis_keys.canary("m"))


def _records(world: World) -> list[Path]:
    root = Path(world.store.url.removeprefix("file://"))
    folders = (root / "deployments", root / "artifacts" / "m" / "aliases")
    return sorted(path for folder in folders for path in folder.rglob("*"))


async def test_a_lease_that_may_have_lapsed_ends_the_work_before_it_begins(world: World) -> None:
    lapsed = Leadership("deposed|1", 0, time.monotonic())
    tools: Any = object()
    performer = Performer(tools, StepResults(world.store), lapsed)
    spec = ServeSpec(kind="serve", model="m", name="m")
    work = Work("r", "s", spec, {"model": world.store.get("m@1")}, "sha256:0", "m")
    events = performer.perform(work)
    event = await anext(events)
    assert isinstance(event, Progress)
    assert "lease has lapsed" in event.detail
    await cast(Any, events).aclose()


async def test_numbers_go_on_where_a_lost_redis_left_them(
    world: World, redis_client: Redis
) -> None:
    """A store remembers what earlier runs wrote; Redis may have lost all."""
    numbers = []
    for term in count():
        coordinator = Coordinator(world, f"c{term}")
        await coordinator.start()
        run = await coordinator.submit(f"r{term}", SHIP.format(name="s", version=term % 3 + 1))
        ended = await coordinator.end(run.name.removeprefix("runs/"))
        assert ended.status.state == runs_pb2.RUN_STATE_SUCCEEDED
        numbers.append((await coordinator.front._records.get(f"r{term}")).number)
        await coordinator.stop()
        if term == 2:
            break
        await redis_client.flushall()
    assert numbers == sorted(set(numbers))
    assert await asyncio.to_thread(world.store.aliases, "m") == {"prod": 3}
