"""Rows for every public call."""

from __future__ import annotations

from api_calls_artifacts import ARTIFACTS, DEPLOYMENTS
from api_calls_preferences import PREFERENCES
from api_calls_runs import JOBS, RUNS
from api_rows import Call, World, kept
from plinth.oip.v2 import open_inference_pb2 as oip
from plinth.v1 import chat_pb2 as chat
from plinth.v1 import generation_pb2 as gen
from plinth.v1 import keys_pb2, operations_pb2
from plinth.v1 import models_pb2 as mod
from plinth.v1 import rewards_pb2 as rew
from plinth.v1 import sampling_pb2 as sam
from plinth.v1 import tokenization_pb2 as tok

_KEYS = [
    Call(
        "KeyService.CreateKey",
        lambda _, who: keys_pb2.CreateKeyRequest(
            key=keys_pb2.Key(spec=keys_pb2.KeySpec(tenant=who, scopes=["jobs"]))
        ),
        note=kept("key", lambda answer: answer.key.name),
    ),
    Call("KeyService.GetKey", lambda world, _: keys_pb2.GetKeyRequest(name=world["key"])),
    Call("KeyService.ListKeys", lambda *_: keys_pb2.ListKeysRequest()),
    Call(
        "KeyService.UpdateKey",
        lambda world, who: keys_pb2.UpdateKeyRequest(
            key=keys_pb2.Key(name=world["key"], spec=keys_pb2.KeySpec(label=who))
        ),
    ),
    Call("KeyService.RevokeKey", lambda world, _: keys_pb2.RevokeKeyRequest(name=world["key"])),
    # An administrator of any tenant manages all of them: the first to delete it does.
    Call(
        "KeyService.DeleteKey",
        lambda world, _: keys_pb2.DeleteKeyRequest(name=world["key"]),
        outcome="KEY_NOT_FOUND",
    ),
]

_OPERATIONS = [
    Call("OperationsService.GetStatus", lambda *_: operations_pb2.GetStatusRequest()),
    Call(
        "OperationsService.GetQueue",
        lambda *_: operations_pb2.GetQueueRequest(name="queues/q"),
        before=World.buried,
    ),
    Call("OperationsService.ListQueues", lambda *_: operations_pb2.ListQueuesRequest()),
    Call(
        "OperationsService.GetQueueItem",
        lambda _, who: operations_pb2.GetQueueItemRequest(name=f"queues/q/items/of-{who}"),
    ),
    Call(
        "OperationsService.ListDeadLetters",
        lambda *_: operations_pb2.ListDeadLettersRequest(parent="queues/-"),
    ),
    Call(
        "OperationsService.DeleteDeadLetter",
        lambda *_: operations_pb2.DeleteDeadLetterRequest(name="queues/q/deadLetters/of-rival"),
        outcome="DEAD_LETTER_NOT_FOUND",
    ),
    Call(
        "OperationsService.RequeueDeadLetter",
        lambda *_: operations_pb2.RequeueDeadLetterRequest(name="queues/q/deadLetters/of-acme"),
        outcome="DEAD_LETTER_NOT_FOUND",
    ),
]

_MESSAGES = [chat.ChatMessage(role="user", content="x")]
_OPTIONS = gen.GenerationOptions(sampling=sam.SamplingParams(max_tokens=2, seed=1))

_SERVED = [
    Call("ModelService.ListModels", lambda *_: mod.ListModelsRequest()),
    Call("ModelService.GetModel", lambda *_: mod.GetModelRequest(name="models/chat")),
    Call(
        "GenerationService.Chat",
        lambda *_: gen.ChatRequest(model="chat", messages=_MESSAGES, options=_OPTIONS),
    ),
    Call(
        "GenerationService.StreamChat",
        lambda *_: gen.StreamChatRequest(model="chat", messages=_MESSAGES, options=_OPTIONS),
    ),
    Call(
        "GenerationService.Complete",
        lambda *_: gen.CompleteRequest(model="chat", prompt="x", options=_OPTIONS),
    ),
    Call(
        "GenerationService.StreamComplete",
        lambda *_: gen.StreamCompleteRequest(model="chat", prompt="x", options=_OPTIONS),
    ),
    Call("TokenizationService.Encode", lambda *_: tok.EncodeRequest(model="chat", texts=["x"])),
    Call(
        "TokenizationService.Decode",
        lambda *_: tok.DecodeRequest(model="chat", sequences=[tok.TokenSequence(ids=[65])]),
    ),
    Call(
        "TokenizationService.ApplyChatTemplate",
        lambda *_: tok.ApplyChatTemplateRequest(model="chat", messages=_MESSAGES),
    ),
]


_PROMPT = oip.ModelInferRequest(model_name="chat")
_PROMPT.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
    b"x"
)
_PROMPT.parameters["max_tokens"].int64_param = 2

_OPEN_INFERENCE = [
    Call("GRPCInferenceService.ServerLive", lambda *_: oip.ServerLiveRequest()),
    Call("GRPCInferenceService.ServerReady", lambda *_: oip.ServerReadyRequest()),
    Call("GRPCInferenceService.ModelReady", lambda *_: oip.ModelReadyRequest(name="chat")),
    Call("GRPCInferenceService.ServerMetadata", lambda *_: oip.ServerMetadataRequest()),
    Call("GRPCInferenceService.ModelMetadata", lambda *_: oip.ModelMetadataRequest(name="chat")),
    Call("GRPCInferenceService.ModelInfer", lambda *_: _PROMPT),
    Call("GRPCInferenceService.ModelStreamInfer", lambda *_: _PROMPT),
    Call("GRPCInferenceService.RepositoryIndex", lambda *_: oip.RepositoryIndexRequest()),
]


def _rule() -> rew.RewardSource:
    source = rew.RewardSource(name="short")
    source.rule.update({"kind": "max_words", "n": 9})
    return source


_REWARDS = [
    Call(
        "RewardService.ScoreRewards",
        lambda *_: rew.ScoreRewardsRequest(
            sources=[_rule()], items=[rew.RewardItem(prompt_text="a", response_text="b")]
        ),
    ),
    Call(
        "RewardService.CheckSources",
        lambda *_: rew.CheckSourcesRequest(sources=[_rule()]),
    ),
]

CALLS: list[Call] = [
    *_KEYS,
    *_OPERATIONS,
    *_SERVED,
    *_OPEN_INFERENCE,
    *_REWARDS,
    *ARTIFACTS,
    *DEPLOYMENTS,
    *JOBS,
    *RUNS,
    *PREFERENCES,
]
