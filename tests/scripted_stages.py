"""Stages that follow a script, on the real servers, registry, store and Redis: the coordinator
meets them over the protos and can't tell. What they make is small and known.

`World` holds all of them and the desired state's other side: it announces a shard for each
deployment on the store, as the reconciler would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from plinth.internal.v1 import inference_pb2, inference_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.api.owners import owner_of
from plinth.shared.api.structs import struct
from plinth.shared.api.times import duration, seconds, timestamp
from plinth.shared.artifact_messages import artifact_message
from plinth.shared.connection import connect
from plinth.shared.errors import NotFound, Unavailable
from plinth.shared.identity import current_principal
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.shared.tasks import cancel_and_wait
from plinth.v1 import jobs_pb2, jobs_pb2_grpc, sampling_pb2

TOKEN = "a cluster token for tests"
EOS = 256  # ids 0 to 255 are bytes
CONTEXT = 32
NATS_PER_BYTE = 1.0  # what the scripted model gives each byte: 1.44 bits
TEXTS = [f"def f{i}():\n    return {i * i}  # the square of {i}\n" for i in range(40)]


class Trainer(jobs_pb2_grpc.JobServiceServicer):
    """Jobs that end when `gate` is open; counts what was asked of it."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self.jobs: dict[str, jobs_pb2.Job] = {}
        self.completed: Counter[str] = Counter()
        self.cancelled: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}  # by output name; none: open
        self.failures: dict[str, str] = {}  # by output name
        self.training = asyncio.Event()  # set once a training job was submitted
        self._endings: dict[str, asyncio.Task[None]] = {}
        self.seconds = 0.0  # how long each job takes while it is watched

    async def CreateJob(self, request: Any, context: Any) -> Any:
        job = self.jobs.get(request.job_id)
        if job is None:
            job = jobs_pb2.Job(
                name=f"jobs/{request.job_id}",
                spec=request.job.spec,
                status=jobs_pb2.JobStatus(
                    state=jobs_pb2.JOB_STATE_RUNNING, start_time=timestamp(_now_ms())
                ),
                owner=owner_of(current_principal()),
            )
            self.jobs[request.job_id] = job
            if job.spec.HasField("train"):
                self.training.set()
        return jobs_pb2.CreateJobResponse(job=job)

    def _found(self, name: str) -> jobs_pb2.Job:
        job = self.jobs.get(name.removeprefix("jobs/"))
        if job is None:
            raise NotFound(f"no job {name}")
        return job

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        job = self._found(request.name)
        job.status.progress.MergeFrom(
            jobs_pb2.JobProgress(
                done=1,
                total=2,
                unit=jobs_pb2.PROGRESS_UNIT_STEP,
                loss=3.25,
                remaining_duration=duration(75),
            )
        )
        yield jobs_pb2.WatchJobResponse(job=job)
        yield jobs_pb2.WatchJobResponse(resume_token="1")  # a heartbeat
        gate = self.gates.get(job.spec.output_name)
        if gate is not None:
            await gate.wait()
        await asyncio.sleep(self.seconds)
        if not _over(job):  # once, however many watch, and whoever of them goes in the middle
            if job.name not in self._endings:
                self._endings[job.name] = asyncio.create_task(self._finish(job))
            await asyncio.shield(self._endings[job.name])
        yield jobs_pb2.WatchJobResponse(job=job)

    async def CancelJob(self, request: Any, context: Any) -> Any:
        job = self._found(request.name)
        if not _over(job):
            job.status.state = jobs_pb2.JOB_STATE_CANCELLED
            if (gate := self.gates.get(job.spec.output_name)) is not None:
                gate.set()
            self.cancelled.append(job.name.removeprefix("jobs/"))
        return jobs_pb2.CancelJobResponse(job=job)

    async def _finish(self, job: Any) -> None:
        name, status = job.spec.output_name, job.status
        self.completed[job.name.removeprefix("jobs/")] += 1
        if name in self.failures:
            status.state, status.error = jobs_pb2.JOB_STATE_FAILED, self.failures[name]
            return
        made = await asyncio.to_thread(self._publish, job.spec)
        status.artifact = f"artifacts/{made.ref}"
        status.metrics.CopyFrom(struct(made.manifest.get("metrics")))
        status.state = jobs_pb2.JOB_STATE_SUCCEEDED
        status.end_time.CopyFrom(timestamp(_now_ms()))

    def _publish(self, spec: Any) -> ArtifactRecord:
        with TemporaryDirectory() as name:
            folder = Path(name)
            if spec.WhichOneof("work") == "train":
                parents = [spec.train.dataset, *filter(None, [spec.train.init_from])]
                config = {"eos_token_id": EOS, "max_position_embeddings": CONTEXT}
                (folder / "config.json").write_text(json.dumps(config))
                separator = {"id": EOS, "content": "<|endoftext|>"}
                (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [separator]}))
                made_of = [spec.output_name, seconds(spec.train.max_duration), *parents]
                (folder / "parents.json").write_text(json.dumps(made_of))
                kind = "reward" if spec.train.objective == jobs_pb2.OBJECTIVE_REWARD else "model"
                return self._store.publish(spec.output_name, kind, folder, parents=parents)
            if spec.WhichOneof("work") == "compare":
                return self._compared(folder, spec.output_name, list(spec.compare.models))
            prepare = spec.prepare
            if prepare.tokenizer:
                parents = [p for p in (prepare.corpus, prepare.tokenizer) if p]
                (folder / "dataset.json").write_text(json.dumps([spec.output_name, *parents]))
                return self._store.publish(spec.output_name, "dataset", folder, parents=parents)
            write_corpus(folder)
            return self._store.publish(spec.output_name, "corpus", folder)

    def _compared(self, folder: Path, name: str, models: list[str]) -> ArtifactRecord:
        """The last of the models wins 80 of 100."""
        (folder / "report.json").write_text(json.dumps([name, *models]))
        even, won = {"wins": 0, "losses": 0, "ties": 100}, {"wins": 80, "losses": 20, "ties": 0}
        shown = {"prompt": "p", **{str(number): "a" for number in range(len(models))}}
        figures = [*[even] * (len(models) - 1), won]
        metrics = {"models": figures, "prompts": 100, "shown": [shown]}
        return self._store.publish(name, "report", folder, metrics=metrics)


class Caller:
    """The context of a method that a test calls by itself."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Goes nowhere."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _over(job: Any) -> bool:
    return job.status.state not in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)


def write_corpus(folder: Path) -> None:
    for split, texts in (("train", TEXTS[4:]), ("validation", TEXTS[:4])):
        (folder / split).mkdir()
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / split / "documents-00000.jsonl").write_text(lines)


class Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Bytes as ids."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self.trained = 0

    async def Train(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.trained += 1
        yield tokenizer_pb2.TrainResponse(bytes_read=1, bytes_total=2)
        made = await asyncio.to_thread(self._publish, request)
        yield tokenizer_pb2.TrainResponse(artifact=artifact_message(made))

    def _publish(self, request: Any) -> ArtifactRecord:
        with TemporaryDirectory() as name:
            content = json.dumps([request.corpus, request.vocab_size])
            (Path(name) / "tokenizer.json").write_text(content)
            return self._store.publish(
                request.name, "tokenizer", Path(name), parents=[request.corpus]
            )

    async def Encode(self, request: Any, context: Any) -> Any:
        sequences = [tokenizer_pb2.TokenIds(ids=text.encode()) for text in request.texts]
        return tokenizer_pb2.EncodeResponse(sequences=sequences)

    async def Decode(self, request: Any, context: Any) -> Any:
        texts = [bytes(sequence.ids).decode() for sequence in request.sequences]
        return tokenizer_pb2.DecodeResponse(texts=texts)

    async def ApplyChatTemplate(self, request: Any, context: Any) -> Any:
        ids = request.messages[0].content.encode()
        return tokenizer_pb2.ApplyChatTemplateResponse(ids=ids, stop_token_ids=[EOS])


class Shard(inference_pb2_grpc.InferenceServiceServicer):
    """Gives every byte NATS_PER_BYTE and answers every prompt with its own words, reversed."""

    def __init__(self) -> None:
        self.scored_ids = 0

    async def Score(self, request: Any, context: Any) -> Any:
        results = []
        for item in request.items:
            assert len(item.ids) <= CONTEXT
            count = len(item.ids) - item.from_position
            self.scored_ids += count
            results.append(inference_pb2.ScoreResult(logprobs=[-NATS_PER_BYTE] * count))
        return inference_pb2.ScoreResponse(results=results)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        ids = list(request.input[0].tokens.ids)[::-1][: request.sampling.max_tokens]
        for one in ids:
            yield inference_pb2.GenerateResponse(tokens=[sampling_pb2.Token(id=one)])
        yield inference_pb2.GenerateResponse(finish_reason=sampling_pb2.FINISH_REASON_LENGTH)


class World:
    """Everything that the coordinator meets."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.settings: Settings = load_settings(
            data_dir=folder,
            redis_url=redis_url,
            coordinator={"lease_s": 4.0},
            source_roots=[folder],
        )
        self.store = ArtifactStore(self.settings.store())
        self.redis = connect(redis_url)
        self.registry = Registry(self.redis)
        self.clients = StageClients(self.registry, self.settings, TOKEN)
        self.deployments = DeploymentRecords(self.store)
        self.trainer = Trainer(self.store)
        self.tokenizer = Tokenizer(self.store)
        self.shard = Shard()
        self.served: set[str] = set()  # names of deployments that ever were announced
        self._servers: dict[str, GrpcServer] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        for stage in ("trainer", "tokenizer", "inference"):
            await self.bring_up(stage)
        self._tasks = [
            asyncio.create_task(self._announce()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not any(task.done() for task in self._tasks)
        await cancel_and_wait(*self._tasks)
        for stage in list(self._servers):
            await self.take_down(stage)
        await self.clients.close()
        await self.redis.aclose()

    async def bring_up(self, stage: str) -> None:
        add = {
            "trainer": lambda server: jobs_pb2_grpc.add_JobServiceServicer_to_server(
                self.trainer, server
            ),
            "tokenizer": lambda server: tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(
                self.tokenizer, server
            ),
            "inference": lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(
                self.shard, server
            ),
        }[stage]
        name = {
            "trainer": "plinth.v1.JobService",
            "tokenizer": "plinth.internal.v1.TokenizerService",
            "inference": "plinth.internal.v1.InferenceService",
        }[stage]
        service = GrpcService(name, add, {"*": ""})
        server = GrpcServer([service], stage=stage, settings=self.settings, token=TOKEN)
        await server.start()
        await server.set_ready(True)
        self._servers[stage] = server
        await self._announce_once()

    async def take_down(self, stage: str) -> None:
        server = self._servers.pop(stage)
        with contextlib.suppress(Unavailable):  # Redis may be gone: a test may want that
            await self.registry.withdraw(stage, stage)
        await server.stop(0)

    async def _announce(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await self._announce_once()
            await asyncio.sleep(0.1)

    async def _announce_once(self) -> None:
        wanted = await asyncio.to_thread(self.deployments.list)
        self.served.update(deployment.name for deployment in wanted)
        bindings = [{"model": d.name, "artifact": d.artifact} for d in wanted]
        for stage, server in list(self._servers.items()):
            fields = {"bindings": json.dumps(bindings)} if stage == "inference" else {}
            await self.registry.announce(stage, stage, f"127.0.0.1:{server.port}", fields)

    def context(self, replica_id: str) -> Any:
        """What `coordinator.service.build` takes."""
        redis = connect(self.settings.redis_url.get_secret_value())  # type: ignore[union-attr]
        registry = Registry(redis)
        return SimpleNamespace(
            settings=self.settings,
            token=TOKEN,
            redis=redis,
            store=ArtifactStore(self.settings.store()),
            registry=registry,
            clients=StageClients(registry, self.settings, TOKEN),
            replica_id=replica_id,
        )


SCORED_BITS_PER_BYTE = NATS_PER_BYTE / math.log(2)
