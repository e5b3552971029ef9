"""Tasks end for certain, however deep they are nested and whatever cancellations get lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.shared import tasks
from plinth.shared.tasks import cancel_and_wait


@dataclass
class Node:
    """A task with children that it ends before it ends itself, as a leader does its drivers."""

    loses: int  # cancellations that arrive and show no effect, as in asyncio.wait_for
    steps: int  # turns of the loop that its own end takes
    children: list[Node] = field(default_factory=list)
    ended: bool = False

    def all(self) -> list[Node]:
        return [self, *(node for child in self.children for node in child.all())]

    async def run(self) -> None:
        below = [asyncio.create_task(child.run()) for child in self.children]
        try:
            await self._work()
        finally:
            try:
                await cancel_and_wait(*below)
            finally:
                # What is closed here must not be used by a child any more.
                assert all(child.ended for child in self.children)
                self.ended = True

    async def _work(self) -> None:
        for _ in range(self.loses):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await _turns(self.steps)
        await asyncio.Event().wait()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


NODES = st.recursive(
    st.builds(Node, st.integers(0, 3), st.integers(0, 4)),
    lambda nodes: st.builds(
        Node, st.integers(0, 3), st.integers(0, 4), st.lists(nodes, min_size=1, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(autouse=True)
def _again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent again at nearly each turn of the loop: as if the machine were very slow."""
    monkeypatch.setattr(tasks, "_AGAIN_S", 0.0001)


@settings(max_examples=60)
@given(NODES)
def test_whoever_is_waited_for_has_waited_for_its_own(root: Node) -> None:
    async def main() -> None:
        task = asyncio.create_task(root.run())
        await _turns(len(root.all()))
        await cancel_and_wait(task)
        ended = [node.ended for node in root.all()]
        await _end_the_rest()  # or a failure would show as a hang
        assert task.cancelled()
        assert all(ended)

    asyncio.run(main())


async def _end_the_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.0001)


async def test_a_time_limit_comes_through_once_all_have_ended() -> None:
    node = Node(loses=3, steps=1)
    task = asyncio.create_task(node.run())
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await cancel_and_wait(task)
    ended = node.ended
    await _end_the_rest()
    assert ended


async def test_what_has_ended_already_is_not_waited_for_and_errors_are_seen() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await cancel_and_wait(task, asyncio.create_task(asyncio.Event().wait()))
    await cancel_and_wait(task)
    assert isinstance(task.exception(), ValueError)
