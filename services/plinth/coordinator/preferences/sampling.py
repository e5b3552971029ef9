"""Responses asked of served models: several models, several samples, never the same text twice.

Seeds come from the task's id where the client gives none, so that a fill that is done again after
a crash asks for the same responses.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from plinth.coordinator.preferences.specs import DEFAULT_TOKENS, add_response
from plinth.coordinator.scoring import ServedModel
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import FailedPrecondition, InvalidArgument, Unavailable
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import sampling_pb2

_STAGE = "inference"
_TRIES = 4  # seeds for one response, where texts are empty or repeat themselves
PRIORITY = -1  # people who chat go first


@dataclass(frozen=True)
class Served:
    """A model as its shards announce it."""

    model: ServedModel
    artifact: str
    weights_digest: str
    context: int


async def find_served(clients: StageClients, registry: Registry, name: str) -> Served:
    """Unavailable when no shard serves it now."""
    for replica in await registry.replicas(_STAGE):
        for held in replica.bindings:
            if held.get("model") == name:
                artifact, digest = str(held["artifact"]), str(held["weights_digest"])
                model = ServedModel(clients, name, artifact, digest)
                return Served(model, artifact, digest, int(held["context_length"]))
    raise Unavailable(
        f"no shard serves a model called {name!r} now", reason="NO_REPLICA", retry_after_s=2.0
    )


class ResponseSampler:
    """Makes the responses that a task still lacks."""

    def __init__(self, clients: StageClients, registry: Registry) -> None:
        self._clients = clients
        self._registry = registry

    async def filled(self, task: rec.PreferenceTaskRecord) -> rec.PreferenceTaskRecord:
        """A copy with its samples among the responses. FailedPrecondition when a model has
        nothing new to say; Unavailable when it is not served."""
        whole = rec.PreferenceTaskRecord()
        whole.CopyFrom(task)
        for index, spec in enumerate(task.samples):
            served = await find_served(self._clients, self._registry, spec.model)
            for sample in range(spec.count or 1):
                await self._add(whole, served, spec, index, sample)
        return whole

    async def _add(
        self,
        task: rec.PreferenceTaskRecord,
        served: Served,
        spec: pb.SampleSpec,
        index: int,
        sample: int,
    ) -> None:
        refused: Counter[str] = Counter()
        for attempt in range(_TRIES):
            sampling = _sampling(task.task_id, spec, index, sample, attempt)
            answer = await served.model.chat(
                task.prompt, sampling, context=served.context, priority=PRIORITY
            )
            response = pb.PreferenceResponse(
                text=answer.text,
                model=served.artifact,
                weights_digest=served.weights_digest,
                sampling=sampling,
                cut_off=answer.cut_off,
            )
            try:
                return add_response(task, response, "sample")
            except InvalidArgument as wrong:  # another seed
                refused[_why(answer.text, wrong)] += 1
        raise FailedPrecondition(
            f"{spec.model} gave {_TRIES} answers of which none is a new response: "
            + ", ".join(f"{count} {why}" for why, count in refused.most_common()),
            reason="NOTHING_NEW",
        )


def _why(text: str, wrong: InvalidArgument) -> str:
    """What is wrong with an answer, and what would help."""
    if wrong.reason == "RESPONSE_TWICE":
        return "the same as another response (raise the temperature, or max_tokens)"
    if wrong.reason != "RESPONSE_TEXT":
        return wrong.message
    return (
        "empty (raise the temperature, or max_tokens)"
        if not text.strip()
        else "too long (lower max_tokens)"
    )


def _sampling(
    task_id: str, spec: pb.SampleSpec, index: int, sample: int, attempt: int
) -> sampling_pb2.SamplingParams:
    """What to ask for, with a seed of its own for each sample and attempt."""
    sampling = sampling_pb2.SamplingParams()
    sampling.CopyFrom(spec.sampling)
    if not sampling.HasField("max_tokens"):
        sampling.max_tokens = DEFAULT_TOKENS
    start = f"seed {sampling.seed}" if sampling.HasField("seed") else f"task {task_id} {index}"
    if not sampling.HasField("seed") or sample or attempt:
        digest = hashlib.sha256(f"{start} {sample} {attempt}".encode()).digest()
        sampling.seed = int.from_bytes(digest[:8], "big") >> 11  # what every JSON reader keeps
    return sampling
