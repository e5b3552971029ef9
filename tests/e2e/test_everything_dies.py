"""Every process killed with -9 in turn, while a client streams and a job runs: the stack heals.

What a client sees depends on who died. A shard, a worker, a controller, Redis, Ray as a whole:
the answer goes on and is the answer that an undisturbed stack gives. The gateway holds the
client's connection: that stream breaks, and the next one is answered.
"""

from __future__ import annotations

import asyncio
import threading
import time

import openai
import pytest

from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2 as pb
from real_stack import PIPELINE, RealStack, until

pytestmark = pytest.mark.slow

ASK = "Tell me a long story about a lighthouse keeper and a whale."
TOKENS = 160
# What one answer may lose: its own connection.
BREAKS_STREAM = {"gateway"}
VICTIMS = [
    "ServeReplica:inference",
    "RayTrainWorker",
    "gateway",
    "redis",
    "ServeReplica:coordinator",
    "ServeReplica:trainer",
    "ServeReplica:reward",
    "ServeReplica:tokenizer",
    "ServeController",
    "gcs_server",
    "raylet",
]


async def answer(real: RealStack, seed: int, heard: threading.Event | None = None) -> str:
    parts = []
    async with real.openai() as client:
        stream = await client.chat.completions.create(
            model=real.model,
            messages=[{"role": "user", "content": ASK}],
            max_tokens=TOKENS,
            temperature=0.8,
            seed=seed,
            stream=True,
            timeout=240,
        )
        async for chunk in stream:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
                if heard is not None and len(parts) > 8:
                    heard.set()
    return "".join(parts)


@pytest.fixture(scope="module")
def truth(real: RealStack) -> str:
    """What an undisturbed stack says to the seed."""
    return asyncio.run(answer(real, 11))


def served(real: RealStack) -> bool:
    try:
        return len(asyncio.run(answer(real, 3))) > 0
    except (openai.OpenAIError, OSError):
        return False


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_a_client_streams_and_a_job_runs(
    real: RealStack, truth: str, victim: str
) -> None:
    name = f"victim-{victim.rsplit(':', maxsplit=1)[-1].lower().replace('_', '-')}"
    pipeline = PIPELINE + f"    seed: {VICTIMS.index(victim) + 1}\n    output: {name}\n"
    run_id = f"{name}-{int(time.time())}"
    with real.runs() as runs:
        runs.submit(run_id, pipeline, {})
        until(lambda: _training(runs.get(run_id)), "the job trains")
        heard = threading.Event()
        streamed: list[str | BaseException] = []

        def stream() -> None:
            try:
                streamed.append(asyncio.run(answer(real, 11, heard)))
            except (openai.OpenAIError, OSError) as error:
                streamed.append(error)

        client = threading.Thread(target=stream)
        client.start()
        assert heard.wait(120), "the client hears nothing"
        began = time.monotonic()
        real.kill(victim)
        client.join(300)
        until(lambda: served(real), "an answer after the kill")
        print(f"{victim}: answering {time.monotonic() - began:.1f} s after the kill")
    # A new client: the gateway's port may be another after its death.
    with real.runs() as runs:
        ended = [run for run in runs.watch(run_id)][-1]
    print(f"{victim}: the job ended {time.monotonic() - began:.1f} s after the kill")
    if victim in BREAKS_STREAM:
        assert not isinstance(streamed[0], str)
    else:
        assert streamed == [truth]
    assert ended.status.state == pb.RUN_STATE_SUCCEEDED, ended.status.error
    # Neither lost nor done twice: one version, of all its steps.
    store = ArtifactStore(real.stack.settings.store())
    versions = [record for record in store.list("model") if record.name == name]
    assert [record.version for record in versions] == [1]
    assert versions[0].manifest["metrics"]["steps"] == 2000


def _training(run: pb.Run) -> bool:
    """Past its first steps, and not at its end."""
    assert run.status.state in (pb.RUN_STATE_PENDING, pb.RUN_STATE_RUNNING), run.status.error
    step = next((step for step in run.status.steps if step.step_id == "train"), None)
    return step is not None and 0.02 < step.progress < 0.7
