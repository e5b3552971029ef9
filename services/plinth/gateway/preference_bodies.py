"""Bodies and query strings of /v1/preferences, strictly typed, and the messages that they become.

What a collection or a task makes of them is checked once, by the coordinator; here it is their
form alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plinth.gateway.limits import MAX_MESSAGES, MAX_TOKENS
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb

SOURCES = {
    "human": pb.JUDGEMENT_SOURCE_HUMAN,
    "rule": pb.JUDGEMENT_SOURCE_RULE,
    "model": pb.JUDGEMENT_SOURCE_MODEL,
}
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


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Query(BaseModel):
    """Values of a query string are text, so they are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

    def to_proto(self) -> pb.TaskSpec:
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
        return pb.TaskSpec(
            task_id=self.task_id,
            prompt=prompt,
            responses=responses,
            samples=[sample.to_proto() for sample in self.samples],
            wanted=self.wanted,
            gold=_tiers(self.gold),
        )


class CreateBody(_Body):
    """POST /v1/preferences/tasks."""

    collection: Name = ""
    tasks: list[TaskBody] = Field(min_length=1, max_length=100, fail_fast=True)

    def to_proto(self) -> pb.CreateTasksRequest:
        tasks = [task.to_proto() for task in self.tasks]
        return pb.CreateTasksRequest(collection=self.collection, tasks=tasks)


class LeaseBody(_Body):
    """POST /v1/preferences/leases."""

    collection: Name = ""
    annotator: Name = ""
    task_id: Name = ""
    lease_seconds: int = Field(default=0, ge=0, lt=1 << 32)
    request_id: Name = ""

    def to_proto(self) -> pb.LeaseTaskRequest:
        return pb.LeaseTaskRequest(**self.model_dump())


class _Held(_Body):
    collection: Name = ""
    task_id: Name
    annotator: Name = ""
    fence: int = Field(ge=0, lt=1 << 64)


class RenewBody(_Held):
    """POST /v1/preferences/leases/renew."""

    lease_seconds: int = Field(default=0, ge=0, lt=1 << 32)

    def to_proto(self) -> pb.RenewLeaseRequest:
        return pb.RenewLeaseRequest(**self.model_dump())


class ReleaseBody(_Held):
    """POST /v1/preferences/leases/release."""

    skip: bool = False

    def to_proto(self) -> pb.ReleaseLeaseRequest:
        return pb.ReleaseLeaseRequest(**self.model_dump())


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

    def to_proto(self) -> pb.SubmitJudgementRequest | pb.AddJudgementRequest:
        fields: dict[str, Any] = self.model_dump(
            exclude={"ranking", "source", "fence", "shown"}
        ) | {"ranking": _tiers(self.ranking)}
        if self.source == "human":
            return pb.SubmitJudgementRequest(fence=self.fence, **fields)
        return pb.AddJudgementRequest(source=SOURCES[self.source], shown=self.shown, **fields)


class ModelJudgementsBody(_Body):
    """POST /v1/preferences/model-judgements."""

    collection: Name = ""
    model: str = Field(min_length=1, max_length=256)
    method: str = Field(default="", max_length=40)
    criteria: str = ""
    task_ids: list[Name] = Field(default_factory=list, max_length=1000, fail_fast=True)
    limit: int = Field(default=0, ge=0, le=1000)

    def to_proto(self) -> pb.RequestModelJudgementsRequest:
        return pb.RequestModelJudgementsRequest(**self.model_dump())


class _Selecting(BaseModel):
    sources: _Sources = Field(default_factory=list, max_length=3, fail_fast=True)
    min_agreement: float = Field(default=0, ge=0, le=1)
    up_to: int = Field(default=0, ge=0, lt=1 << 63)

    def selection(self) -> pb.PairSelection:
        return pb.PairSelection(
            sources=[SOURCES[word] for word in self.sources],
            min_agreement=self.min_agreement,
            up_to=self.up_to,
        )


class DatasetBody(_Body, _Selecting):
    """POST /v1/preferences/datasets."""

    collection: Name = ""
    name: str
    at_least: int = Field(default=1, ge=0, lt=1 << 31)
    validation_fraction: float | None = Field(default=None, ge=0, lt=0.5)

    def to_proto(self) -> pb.PublishPairsRequest:
        return pb.PublishPairsRequest(
            collection=self.collection,
            selection=self.selection(),
            name=self.name,
            at_least=self.at_least,
            validation_fraction=self.validation_fraction,
        )


class CollectionQuery(_Query):
    """?collection=…"""

    collection: Name = ""


class ListQuery(CollectionQuery):
    """GET /v1/preferences/tasks."""

    limit: int = Field(default=50, ge=1, le=200)


class ExportQuery(CollectionQuery, _Selecting):
    """GET /v1/preferences/export."""

    shape: str = Field(default="trl", max_length=40)


class ImportQuery(CollectionQuery):
    """POST /v1/preferences/import, whose body is JSON lines."""

    source: Source | None = None
    annotator: Name = ""
    first_line: int = Field(default=1, ge=1, le=2**53)
    check_only: bool = False


def _tiers(ranking: list[list[str]]) -> list[pb.Tier]:
    return [pb.Tier(response_ids=tier) for tier in ranking]


def as_json(message: Proto) -> dict[str, Any]:
    """A message as REST shows it: numbers as numbers (protobuf's own JSON makes text of 64-bit
    ones), enums as their lower-case words, tiers as lists, what is unset left out."""
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            shown[field.name] = [_plain(field, one) for one in value]
        elif not field.has_presence or message.HasField(field.name):
            shown[field.name] = _plain(field, value)
    return shown


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, pb.Tier):
        return list(value.response_ids)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return as_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        names = field.enum_type.values_by_number
        prefix = names[0].name.removesuffix("UNSPECIFIED")
        return names[value].name.removeprefix(prefix).lower()
    return value
