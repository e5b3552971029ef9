"""Bodies of /v1/preferences, strictly typed, and the messages that they become.

What a collection or a task makes of them is checked once, by the coordinator; here it is their
form alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plinth.gateway.limits import MAX_MESSAGES, MAX_TOKENS
from plinth.shared.api.enums import number
from plinth.shared.api.times import duration
from plinth.shared.preference_names import COLLECTIONS, DEFAULT_COLLECTION, TASKS, check_id
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb

Source = Literal["human", "rule", "model"]
Name = Annotated[str, Field(max_length=128)]
Ranking = Annotated[
    list[Annotated[list[Name], Field(max_length=8, fail_fast=True)]],
    Field(default_factory=list, max_length=8, fail_fast=True),
]
# In a query string: "human,model".
_Sources = Annotated[
    list[Source],
    BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
]


def collection_id(given: str) -> str:
    """The collection that an empty or given word means. InvalidArgument."""
    return check_id(given or DEFAULT_COLLECTION, "collection")


def collection_name(given: str) -> str:
    return COLLECTIONS.name(collection_id(given))


def task_name(collection: str, task_id: str, field: str = "task_id") -> str:
    return TASKS.name(collection_id(collection), check_id(task_id, field))


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PromptMessage(_Body):
    role: Literal["system", "user", "assistant"]
    content: str


class ResponseBody(_Body):
    text: str
    response_id: Name = ""
    model: str = Field(default="", max_length=256)


class SampleBody(_Body):
    """Responses to be sampled from a served model."""

    model: str = Field(min_length=1, max_length=256)
    count: int = Field(default=1, ge=1, le=8)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 64)

    def to_proto(self) -> pb.SampleSpec:
        fields = self.model_dump(exclude={"model", "count"})
        if self.max_tokens is not None:  # an upper bound: too large is no mistake
            fields["max_tokens"] = min(self.max_tokens, MAX_TOKENS)
        sampling = sampling_pb2.SamplingParams(**fields)
        return pb.SampleSpec(model=self.model, count=self.count, sampling=sampling)


class TaskBody(_Body):
    """A prompt (text, or a conversation that ends with the user) and its responses."""

    prompt: str | Annotated[list[PromptMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    responses: list[str | ResponseBody] = Field(default_factory=list, max_length=8, fail_fast=True)
    samples: list[SampleBody] = Field(default_factory=list, max_length=8, fail_fast=True)
    task_id: Name = ""
    wanted: int | None = Field(default=None, ge=0, le=1000)
    gold: Ranking

    def to_proto(self) -> pb.CreatePreferenceTaskRequest:
        prompt = (
            [chat_pb2.ChatMessage(role="user", content=self.prompt)]
            if isinstance(self.prompt, str)
            else [chat_pb2.ChatMessage(**message.model_dump()) for message in self.prompt]
        )
        responses = [
            pb.PreferenceResponse(text=one)
            if isinstance(one, str)
            else pb.PreferenceResponse(**one.model_dump())
            for one in self.responses
        ]
        spec = pb.PreferenceTaskSpec(
            prompt=prompt,
            responses=responses,
            samples=[sample.to_proto() for sample in self.samples],
            wanted_judgement_count=self.wanted,
            gold=_tiers(self.gold),
        )
        task = pb.PreferenceTask(spec=spec)
        return pb.CreatePreferenceTaskRequest(task_id=self.task_id, task=task)


class CreateBody(_Body):
    """POST /v1/preferences/tasks."""

    collection: Name = ""
    tasks: list[TaskBody] = Field(min_length=1, max_length=100, fail_fast=True)

    def to_proto(self) -> pb.BatchCreatePreferenceTasksRequest:
        return pb.BatchCreatePreferenceTasksRequest(
            parent=collection_name(self.collection),
            requests=[task.to_proto() for task in self.tasks],
        )


class LeaseBody(_Body):
    """POST /v1/preferences/leases."""

    collection: Name = ""
    annotator: Name = ""
    task_id: Name = ""
    lease_seconds: int = Field(default=0, ge=0, lt=1 << 32)
    request_id: Name = ""

    def to_proto(self) -> pb.LeasePreferenceTaskRequest:
        return pb.LeasePreferenceTaskRequest(
            parent=collection_name(self.collection),
            annotator=self.annotator,
            task=task_name(self.collection, self.task_id) if self.task_id else "",
            lease_duration=duration(self.lease_seconds) if self.lease_seconds else None,
            request_id=self.request_id,
        )


class _Held(_Body):
    collection: Name = ""
    task_id: Name
    annotator: Name = ""
    fence: int = Field(ge=0, lt=1 << 64)

    def _held(self) -> dict[str, Any]:
        return {
            "name": task_name(self.collection, self.task_id),
            "annotator": self.annotator,
            "fence": self.fence,
        }


class RenewBody(_Held):
    """POST /v1/preferences/leases/renew."""

    lease_seconds: int = Field(default=0, ge=0, lt=1 << 32)

    def to_proto(self) -> pb.RenewPreferenceLeaseRequest:
        lasts = duration(self.lease_seconds) if self.lease_seconds else None
        return pb.RenewPreferenceLeaseRequest(lease_duration=lasts, **self._held())


class ReleaseBody(_Held):
    """POST /v1/preferences/leases/release."""

    skip: bool = False

    def to_proto(self) -> pb.ReleasePreferenceLeaseRequest:
        return pb.ReleasePreferenceLeaseRequest(skip=self.skip, **self._held())


class JudgementBody(_Body):
    """POST /v1/preferences/judgements. A person's (the default) needs the lease's fence."""

    collection: Name = ""
    task_id: Name
    annotator: Name = ""
    fence: int = Field(default=0, ge=0, lt=1 << 64)
    ranking: Ranking
    all_bad: bool = False
    reason: str = ""
    source: Source = "human"
    shown: list[Name] = Field(default_factory=list, max_length=8, fail_fast=True)

    def to_proto(self) -> pb.CreateJudgementRequest:
        spec = pb.JudgementSpec(
            ranking=_tiers(self.ranking),
            all_bad=self.all_bad,
            reason=self.reason,
            annotator=self.annotator,
            source=source_of(self.source),
            shown=() if self.source == "human" else self.shown,
        )
        return pb.CreateJudgementRequest(
            parent=task_name(self.collection, self.task_id),
            judgement=pb.Judgement(spec=spec),
            fence=self.fence,
        )


class ModelJudgementsBody(_Body):
    """POST /v1/preferences/model-judgements."""

    collection: Name = ""
    model: str = Field(min_length=1, max_length=256)
    method: str = Field(default="", max_length=40)
    criteria: str = ""
    task_ids: list[Name] = Field(default_factory=list, max_length=1000, fail_fast=True)
    limit: int = Field(default=0, ge=0, le=1000)

    def to_proto(self) -> pb.RequestModelJudgementsRequest:
        return pb.RequestModelJudgementsRequest(
            parent=collection_name(self.collection),
            model=self.model,
            method=pb.JudgingMethod.ValueType(number(pb.JudgingMethod, self.method, "method")),
            criteria=self.criteria,
            tasks=[task_name(self.collection, one, "task_ids") for one in self.task_ids],
            max_task_count=self.limit,
        )


class Selecting(BaseModel):
    """Which judgements count."""

    sources: _Sources = Field(default_factory=list, max_length=3, fail_fast=True)
    min_agreement: float = Field(default=0, ge=0, le=1)
    up_to: int = Field(default=0, ge=0, lt=1 << 63)

    def selection(self) -> pb.PairSelection:
        return pb.PairSelection(
            sources=[source_of(word) for word in self.sources],
            min_agreement=self.min_agreement,
            max_revision=self.up_to,
        )


class DatasetBody(_Body, Selecting):
    """POST /v1/preferences/datasets."""

    collection: Name = ""
    name: str
    at_least: int = Field(default=1, ge=0, lt=1 << 31)
    validation_fraction: float | None = Field(default=None, ge=0, lt=0.5)

    def to_proto(self) -> pb.PublishPairsRequest:
        return pb.PublishPairsRequest(
            parent=collection_name(self.collection),
            selection=self.selection(),
            artifact_id=self.name,
            min_pair_count=self.at_least,
            validation_fraction=self.validation_fraction,
        )


def source_of(said: str) -> pb.JudgementSource.ValueType:
    return pb.JudgementSource.ValueType(number(pb.JudgementSource, said, "source"))


def _tiers(ranking: list[list[str]]) -> list[pb.ResponseTier]:
    return [pb.ResponseTier(response_ids=tier) for tier in ranking]
