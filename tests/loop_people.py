"""The people of a feedback loop, as clients of the gRPC API: those who ask, those who judge, and
those who say whether they liked what they got. Generated stubs and a key; nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from plinth.shared.api.times import duration, unix_ms
from plinth.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    chat_pb2,
    deployments_pb2,
    deployments_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    preferences_pb2,
    preferences_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    sampling_pb2,
)
from real_stack import RealStack
from shown_runs import create_run

QUESTIONS = [
    "What does os.path.join do?",
    "What does the function json.dumps do?",
    "How do I sort a list?",
    "What does shutil.copy do?",
    "What is a generator?",
    "How do I read a file?",
    "What does re.compile do?",
    "How do I open a socket?",
    "What does the function ast.parse do?",
    "How do I make a thread?",
]
TOKENS = 40
CONSENT = ("x-plinth-consent", "preferences")
LIVE = "collections/live"


@dataclass(frozen=True)
class Answer:
    """revision: who gave it. id: of the response, by which it is judged."""

    text: str
    revision: str
    id: str


class PlatformClient:
    """A client with a key: generated stubs and nothing else."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.metadata = (("authorization", f"Bearer {key}"),)
        self._chat = generation_pb2_grpc.GenerationServiceStub(channel).Chat
        self.runs: Any = runs_pb2_grpc.RunServiceStub(channel)
        self.deployments: Any = deployments_pb2_grpc.DeploymentServiceStub(channel)
        self.artifacts: Any = artifacts_pb2_grpc.ArtifactServiceStub(channel)
        self.preferences: Any = preferences_pb2_grpc.PreferenceServiceStub(channel)

    async def ask(self, question: str, seed: int, *more: tuple[str, str]) -> Answer:
        answer = await self._chat(
            generation_pb2.ChatRequest(
                model="chat",
                messages=[chat_pb2.ChatMessage(role="user", content=question)],
                options=generation_pb2.GenerationOptions(
                    sampling=sampling_pb2.SamplingParams(
                        temperature=1.0, seed=seed, max_tokens=TOKENS
                    )
                ),
            ),
            metadata=(*self.metadata, *more),
            timeout=120,
        )
        return Answer(answer.choices[0].message.content, answer.revision, answer.id)

    async def said(self) -> list[Answer]:
        """Three answers to each question, each with a seed of its own: the same weights say the
        same again."""
        asks = enumerate(QUESTIONS * 3)
        return [await self.ask(question, 1000 + number) for number, question in asks]

    async def served(self) -> dict[str, str]:
        """Artifact of each name that is wanted served."""
        ask = deployments_pb2.ListDeploymentsRequest()
        answer = await self.deployments.ListDeployments(ask, metadata=self.metadata)
        return {one.name.rpartition("/")[2]: one.spec.artifact for one in answer.deployments}

    async def artifact(self, reference: str) -> artifacts_pb2.Artifact:
        ask = artifacts_pb2.GetArtifactRequest(name=f"artifacts/{reference}")
        return (await self.artifacts.GetArtifact(ask, metadata=self.metadata)).artifact

    async def submit(self, run_id: str, pipeline: str) -> None:
        ask = create_run(run_id, pipeline)
        await self.runs.CreateRun(ask, metadata=self.metadata)

    async def watch(self, run_id: str) -> AsyncIterator[runs_pb2.Run]:
        """The run, after each change, until it ends."""
        ask = runs_pb2.WatchRunRequest(name=f"runs/{run_id}")
        async for message in self.runs.WatchRun(ask, metadata=self.metadata):
            if message.HasField("run"):
                yield message.run

    async def end(self, run_id: str) -> runs_pb2.Run:
        return [run async for run in self.watch(run_id)][-1]

    async def lineage(self, reference: str) -> dict[str, artifacts_pb2.Artifact]:
        """It and all that it was made from, by reference."""
        found: dict[str, artifacts_pb2.Artifact] = {}
        waiting = [reference]
        while waiting:
            if (one := waiting.pop()) not in found:
                found[one] = await self.artifact(one)
                waiting += found[one].parents
        return found


@asynccontextmanager
async def client_of(stack: RealStack) -> AsyncIterator[PlatformClient]:
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        yield PlatformClient(channel, stack.key)


def steps(run: runs_pb2.Run) -> dict[str, runs_pb2.Step]:
    return {step.step_id: step for step in run.status.steps}


def seconds_of(run: runs_pb2.Run) -> dict[str, float]:
    return {
        step.step_id: (unix_ms(step.end_time) - unix_ms(step.start_time)) / 1000
        for step in run.status.steps
    }


# -- live answers -------------------------------------------------------------------------------


async def live_tasks(client: PlatformClient, count: int) -> list[Answer]:
    """`count` chats with consent, as their clients saw them, once all of them can be judged. One
    that says nothing is no task: another one takes its place."""
    seen: list[Answer] = []
    seed = 0
    while len(seen) < count:
        answer = await client.ask(QUESTIONS[seed % len(QUESTIONS)], seed, CONSENT)
        seed += 1
        if answer.text.strip():
            seen.append(answer)
    async with asyncio.timeout(120):
        while await _open(client) < count:  # noqa: ASYNC110 - second answers are on their way
            await asyncio.sleep(0.1)
    return seen


async def _open(client: PlatformClient) -> int:
    ask = preferences_pb2.GetPreferenceCollectionRequest(name=LIVE)
    try:
        found = await client.preferences.GetPreferenceCollection(ask, metadata=client.metadata)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error.details()
        return 0
    return int(found.collection.status.open_task_count)


# -- two annotators -----------------------------------------------------------------------------


def dislike(text: str) -> int:
    """Nobody here likes the letter e."""
    return text.count("e")


@dataclass
class AnnotatorTally:
    """Who holds what, as the two annotators themselves know it: each lease from its answer to the
    sending of its judgement, or to the moment at which it runs out."""

    held: dict[str, tuple[str, int]] = field(default_factory=dict)  # task → (who, until ms)
    judged: Counter[str] = field(default_factory=Counter)  # task → judgements
    by: Counter[str] = field(default_factory=Counter)  # annotator → judgements
    together: int = 0  # leases that were granted while the other one held a task

    def take(self, lease: preferences_pb2.PreferenceLease, who: str) -> None:
        now = time.time() * 1000
        holder, until = self.held.get(lease.task, ("", 0))
        assert not holder or now >= until, f"{who} got what {holder} holds"
        assert lease.task not in self.judged
        self.together += any(other != who for other, _ in self.held.values())
        self.held[lease.task] = (who, unix_ms(lease.expire_time))


async def annotate(client: PlatformClient, tally: AnnotatorTally, who: str) -> None:
    """Until nothing is left to judge."""
    while True:
        try:
            lease = await lease_of(client, who)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND, error.details()
            if not tally.held:
                return
            await asyncio.sleep(0.2)  # what is held may come back
            continue
        tally.take(lease, who)
        other = "bob" if who == "ann" else "ann"
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # not even by its name
            await lease_of(client, other, task=lease.task)
        assert caught.value.code() is grpc.StatusCode.ABORTED, caught.value.details()
        assert "another annotator holds" in str(caught.value.details())
        del tally.held[lease.task]
        await judge(client, lease)
        tally.judged[lease.task] += 1
        tally.by[who] += 1


async def lease_of(
    client: PlatformClient, who: str, **fields: Any
) -> preferences_pb2.PreferenceLease:
    ask = preferences_pb2.LeasePreferenceTaskRequest(parent=LIVE, annotator=who, **fields)
    answer = await client.preferences.LeasePreferenceTask(ask, metadata=client.metadata)
    lease: preferences_pb2.PreferenceLease = answer.lease
    return lease


async def judge(client: PlatformClient, lease: preferences_pb2.PreferenceLease) -> None:
    order = sorted(lease.responses, key=lambda one: (dislike(one.text), one.text))
    spec = preferences_pb2.JudgementSpec(
        annotator=lease.annotator,
        ranking=[preferences_pb2.ResponseTier(response_ids=[one.response_id]) for one in order],
    )
    judgement = preferences_pb2.Judgement(spec=spec)
    ask = preferences_pb2.CreateJudgementRequest(
        parent=lease.task, judgement=judgement, fence=lease.fence
    )
    await client.preferences.CreateJudgement(ask, metadata=client.metadata)


async def judge_all(client: PlatformClient) -> AnnotatorTally:
    """Two annotators at once. A third one took a task and went away: one of the two gets it when
    that lease has run out, and what the third one says then is too late."""
    tally = AnnotatorTally()
    left = await lease_of(client, "cyd", lease_duration=duration(10))
    tally.take(left, "cyd")
    async with asyncio.timeout(300):
        await asyncio.gather(annotate(client, tally, "ann"), annotate(client, tally, "bob"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await judge(client, left)
    assert caught.value.code() is grpc.StatusCode.ABORTED, caught.value.details()
    assert "ran out" in str(caught.value.details())
    return tally


async def exported(client: PlatformClient) -> list[tuple[str, str]]:
    """(chosen, rejected) of every pair."""
    ask = preferences_pb2.ExportPairsRequest(parent=LIVE)
    parts = [
        part.jsonl async for part in client.preferences.ExportPairs(ask, metadata=client.metadata)
    ]
    pairs = [json.loads(line) for line in b"".join(parts).splitlines()]
    return [(one["chosen"][-1]["content"], one["rejected"][-1]["content"]) for one in pairs]


# -- the canary's traffic -----------------------------------------------------------------------


class Traffic:
    """Users who ask and say whether they liked it: answers and liked ones, by revision."""

    def __init__(self, client: PlatformClient, bar: float) -> None:
        self._door = client
        self._bar = bar  # an answer with fewer of the letter is liked
        self.answers: Counter[str] = Counter()
        self.good: Counter[str] = Counter()

    async def flow(self) -> None:
        """Four at a time, until it is cancelled. None of them may fail."""
        for seed in range(10_000):
            asks = [
                self._door.ask(QUESTIONS[(4 * seed + one) % len(QUESTIONS)], seed)
                for one in range(4)
            ]
            for answer in await asyncio.gather(*asks):
                self.answers[answer.revision] += 1
                await self._verdict(answer)

    async def _verdict(self, answer: Answer) -> None:
        good = dislike(answer.text) < self._bar
        self.good[answer.revision] += good
        ask = deployments_pb2.ReportOutcomeRequest(
            name="deployments/chat", response_id=answer.id, good=good
        )
        try:
            await self._door.deployments.ReportOutcome(ask, metadata=self._door.metadata)
        except grpc.aio.AioRpcError as error:  # before the canary is on, and once it is over
            told = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
            assert error.code() in told, error.details()


async def with_traffic(client: PlatformClient, run_id: str, traffic: Traffic) -> runs_pb2.Run:
    """The run at its end; users ask from the moment at which its canary step begins."""
    flowing: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as group:
        async for run in client.watch(run_id):
            trial = steps(run).get("trial")
            if flowing is None and trial and trial.state == runs_pb2.STEP_STATE_RUNNING:
                flowing = group.create_task(traffic.flow())
        if flowing is not None:
            flowing.cancel()
    return run
