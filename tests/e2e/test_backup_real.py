"""A real stack in the middle of its work loses everything and is put back from a backup that was
made while it worked: the key works, the model gives the same tokens, and the job that trained, the
job that waited and their runs go on and end once."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

from plinth.cluster.layout import StackPlan
from plinth.cluster.stack import Stack, connect_clients
from plinth.shared.store import ArtifactStore
from plinth.trainer.records import JobRecords
from plinth.v1 import coordinator_pb2 as pb
from plinth.v1 import trainer_pb2
from real_stack import PIPELINE, RealStack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 5000  # so that the job is in its middle all the while
ASK = "Tell me a long story about a lighthouse keeper and a whale."


def plinth(data: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from plinth.cli.main import app; app()", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PLINTH_DATA_DIR": str(data)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def answer(real: RealStack, key: str, heard: threading.Event | None = None) -> str:
    parts = []
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{real.rest}/v1", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=real.model,
            messages=[{"role": "user", "content": ASK}],
            max_tokens=96,
            temperature=0.8,
            seed=11,
            stream=True,
            timeout=300,
        )
        async for chunk in stream:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
                if heard is not None and len(parts) > 4:
                    heard.set()
    return "".join(parts)


def training(run: pb.Run) -> bool:
    """With a checkpoint behind it, and not at its end."""
    assert run.state in (pb.RUN_STATE_PENDING, pb.RUN_STATE_RUNNING), run.error
    step = next((step for step in run.steps if step.name == "train"), None)
    return step is not None and 0.05 < step.progress < 0.4


def test_everything_is_lost_in_between(tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "backups"
    real = RealStack.up(data, shards=1)
    try:
        key = plinth(data, "keys", "create", "--tenant", "acme", "--scope", "inference").strip()
        plinth(data, "models", "alias", f"{real.model}:prod", "1")
        truth = asyncio.run(answer(real, key))
        assert len(truth) > 100
        with real.runs() as runs:
            for name, seed in (("trains", 1), ("waits", 2)):
                text = PIPELINE.replace("steps: 2000", f"steps: {STEPS}")
                text += f"    seed: {seed}\n    output: {name}\n"
                runs.submit(name, text, {})
            until(lambda: training(runs.get("trains")), "the first job trains")
            backed_up(real, data, place, key, truth)
    finally:
        real.down()
    shutil.rmtree(data)

    assert "is restored" in plinth(data, "restore", str(place))
    kept = list((data / "jobs").glob("*/attempt-0/checkpoints/step-*"))
    assert kept, "no checkpoint came back"
    began = time.monotonic()
    stack = Stack.up(real.stack.settings, plan=StackPlan())
    try:
        again = RealStack(stack, key, real.model, time.monotonic() - began)
        until(lambda: len(again.replicas("inference")) == 1, "the model is served again")
        assert asyncio.run(answer(again, key)) == truth
        goes_on(again, kept[0])
    finally:
        stack.down()


def backed_up(real: RealStack, data: Path, place: Path, key: str, truth: str) -> None:
    """While a client streams and a job trains; neither takes harm."""
    heard = threading.Event()
    streamed: list[str] = []
    client = threading.Thread(target=lambda: streamed.append(asyncio.run(answer(real, key, heard))))
    client.start()
    assert heard.wait(120), "the client hears nothing"
    print(plinth(data, "backup", str(place)))
    client.join(300)
    assert streamed == [truth]


def goes_on(real: RealStack, checkpoint: Path) -> None:
    store = ArtifactStore(real.stack.settings.store())
    assert store.get(f"{real.model}:prod").version == 1
    # A platform that has keys gets no first one in a new data directory: its operator makes it.
    plinth(real.stack.settings.data_dir, "keys", "create", "--scope", "admin", "--save")
    admin = real.stack.settings.first_key_file.read_text().strip()
    with RealStack(real.stack, admin, real.model, 0).runs() as runs:
        for name in ("trains", "waits"):
            run = [run for run in runs.watch(name)][-1]
            assert run.state == pb.RUN_STATE_SUCCEEDED, run.error
            versions = [record for record in store.list("model") if record.name == name]
            assert [record.version for record in versions] == [1]
            assert versions[0].manifest["metrics"]["steps"] == STEPS
        first = next(step for step in runs.get("trains").steps if step.name == "train")
    job = asyncio.run(job_of(real, first.job_id))
    # It went on from the checkpoint that came back, at the cost of no attempt.
    assert f"resumed at step {int(checkpoint.name.removeprefix('step-'))};" in job.progress.note
    assert job.attempts == 1


async def job_of(real: RealStack, job_id: str) -> trainer_pb2.Job:
    redis, _, _, clients = connect_clients(real.stack.settings)
    try:
        return await JobRecords(redis).get(job_id)
    finally:
        await clients.close()
        await redis.aclose()
