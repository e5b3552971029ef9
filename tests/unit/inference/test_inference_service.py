"""A shard over real gRPC: answers, resuming, limits, deadlines, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import torch
import transformers
from prometheus_client import REGISTRY

import engines
from checkpoints import random_llama
from patience import PATIENCE_S
from plinth.engine.request import Sampling
from plinth.inference.service import InferenceFront, build
from plinth.internal.v1 import inference_pb2
from plinth.internal.v1.inference_pb2_grpc import InferenceServiceStub
from plinth.shared.errors import DeadlineExceeded, PlinthError
from plinth.shared.identity import Principal
from plinth.shared.load import FirstTokens
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.server import GrpcServer
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.v1 import sampling_pb2

TOKEN = "a-cluster-token-for-tests"
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("m") / "llama")


@pytest.fixture
async def front(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> AsyncIterator[tuple[InferenceFront, InferenceServiceStub]]:
    engine = {"max_running": 2, "max_waiting": 2, "rollouts": False}
    settings = load_settings(data_dir=tmp_path, engine=engine)
    store.publish("tiny", "model", folder)
    context = SimpleNamespace(settings=settings, store=store, replica_id="shard-1")
    made = build(context, model="tiny", artifact="tiny@1", kv_cache_bytes=1 << 22)
    server = GrpcServer(made.services(), stage="inference", settings=settings, token=TOKEN)
    port = await server.start()
    await made.start()
    await server.set_ready(True)
    async with open_channel(
        f"127.0.0.1:{port}",
        stage="inference",
        settings=settings,
        token=TOKEN,
        principal=Principal("t", "k", frozenset({"inference"})),
    ) as channel:
        yield made, InferenceServiceStub(channel)
    await made.drain(0.1)
    await server.stop(0.1)


def asked(max_tokens: int = 16, model: str = "tiny", ids: list[int] = PROMPT, **sampling):
    return inference_pb2.GenerateRequest(
        request_id="r",
        binding=inference_pb2.Binding(model=model),
        input=[inference_pb2.Span(tokens=inference_pb2.TokenSpan(ids=ids))],
        sampling=sampling_pb2.SamplingParams(max_tokens=max_tokens, **sampling),
    )


async def answer(stub, request, timeout=PATIENCE_S):
    messages = [message async for message in stub.Generate(request, timeout=timeout)]
    return messages, [token.id for message in messages for token in message.tokens]


async def refused(stub, request, timeout=PATIENCE_S) -> PlinthError:
    with pytest.raises(PlinthError) as caught:
        await answer(stub, request, timeout)
    return caught.value


async def test_greedy_is_what_transformers_says(front, folder) -> None:
    messages, ids = await answer(front[1], asked(temperature=0.0))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        truth = model.generate(torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False)
    assert ids == truth[0, len(PROMPT) :].tolist()
    last = messages[-1]
    assert last.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 16)


async def test_a_seed_is_given_told_and_goes_on_elsewhere(front, folder) -> None:
    """The second shard gets what the first had passed on, and says what the first would have."""
    messages, whole = await answer(front[1], asked(temperature=1.0, ignore_eos=True))
    seed = messages[0].seed
    assert seed
    drawn = {"temperature": 1.0, "seed": seed}
    so_far = PROMPT + whole[:6]
    rest = asked(10, ids=so_far, ignore_eos=True, **drawn)
    rest.first_output_position = 6
    assert (await answer(front[1], rest))[1] == whole[6:]
    sampling = Sampling(max_tokens=16, **drawn)
    alone, _ = engines.complete(engines.engine(folder), [tuple(PROMPT)], sampling)
    assert [token.id for token in alone[0]] == whole


async def test_whoever_hangs_up_frees_the_blocks(front) -> None:
    call = front[1].Generate(asked(200, ignore_eos=True))
    await call.read()
    shard = await front[1].GetShard(inference_pb2.GetShardRequest())
    assert shard.running == 1
    call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while shard.running:
            shard = await front[1].GetShard(inference_pb2.GetShardRequest())
    assert shard.blocks_free + shard.blocks_cached == shard.blocks_total


async def test_a_full_queue_says_when_to_come_back(front) -> None:
    calls = [front[1].Generate(asked(400, ignore_eos=True, seed=i)) for i in range(2)]
    for call in calls:
        await call.read()
    calls += [front[1].Generate(asked(ignore_eos=True, seed=i)) for i in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        while (await front[1].GetShard(inference_pb2.GetShardRequest())).waiting < 2:
            pass
    error = await refused(front[1], asked())
    assert error.code == "RESOURCE_EXHAUSTED"
    assert error.retry_after_s
    assert (await front[0].load()).ratio == 2 / 4.0, "as many wait as half of scaling.waiting"
    for call in calls:
        call.cancel()


async def test_a_deadline_ends_an_answer(front) -> None:
    """With what there is, or with the status, whoever of the two is first."""
    try:
        messages, _ = await answer(front[1], asked(250, ignore_eos=True), timeout=0.05)
        assert messages[-1].finish_reason == sampling_pb2.FINISH_REASON_DEADLINE
    except DeadlineExceeded:
        pass
    async with asyncio.timeout(PATIENCE_S):
        while (await front[1].GetShard(inference_pb2.GetShardRequest())).running:
            pass


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "other"}, "NOT_FOUND", "serves 'tiny'"),
        ({"max_tokens": 0}, "INVALID_ARGUMENT", "max_tokens"),
        ({"ids": []}, "INVALID_ARGUMENT", "input"),
        ({"ids": [10**6]}, "INVALID_ARGUMENT", "vocabulary"),
        ({"ids": [5] * 5000}, "INVALID_ARGUMENT", "context"),
        ({"temperature": float("nan")}, "INVALID_ARGUMENT", "temperature"),
        ({"speculation": "SPECULATION_DRAFT"}, "INVALID_ARGUMENT", "drafter"),
    ],
)
async def test_what_cannot_be_right_is_refused(front, change, code, words) -> None:
    error = await refused(front[1], asked(**change))
    assert error.code == code
    assert words in error.message


async def test_scores_are_the_log_probabilities_of_transformers(front, folder) -> None:
    ids = [5, 9, 12, 7, 30, 2]
    request = inference_pb2.ScoreRequest(
        binding=inference_pb2.Binding(model="tiny"),
        items=[inference_pb2.ScoreItem(ids=ids, from_position=2)],
    )
    scored = await front[1].Score(request, timeout=PATIENCE_S)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    truth = [float(logprobs[i - 1, ids[i]]) for i in range(2, len(ids))]
    assert list(scored.results[0].logprobs) == pytest.approx(truth, abs=1e-4)


async def test_draining_finishes_what_runs_and_takes_nothing_new(front) -> None:
    shard, stub = front
    call = stub.Generate(asked(60, ignore_eos=True))
    await call.read()
    draining = asyncio.create_task(shard.drain(30))
    await asyncio.sleep(0)
    error = await refused(stub, asked())
    assert (error.code, error.reason) == ("UNAVAILABLE", "draining")
    finish = 0
    while (message := await call.read()) is not grpc.aio.EOF:
        finish = message.finish_reason
    assert finish == sampling_pb2.FINISH_REASON_LENGTH
    await draining


async def test_slow_first_tokens_and_kv_are_a_load(front: tuple) -> None:
    made, _ = front
    assert (await made.load()).ratio == 0.0
    for _ in range(5):
        made._first_tokens.add(3.0)
    assert (await made.load()).ratio == 3.0 / 2.0
    made.engine.load = replace(made.engine.load, kv_usage=1.0)
    assert (await made.load()).ratio == 3.0 / 2.0, "the largest counts"
    made._first_tokens = FirstTokens(30.0)
    assert (await made.load()).ratio == 1.0 / 0.8


async def test_steps_and_what_it_serves_are_told(front: tuple) -> None:
    made, stub = front
    before = steps()
    _ = [message async for message in stub.Generate(asked(max_tokens=4, seed=1))]
    await made.check()
    assert 4 <= steps() - before <= 6, "one for each token, and the prompt's"
    again = steps()
    await made.check()
    assert steps() == again
    info = {"model": "tiny", "artifact": "tiny@1"}
    assert REGISTRY.get_sample_value("plinth_shard_info", info) == 1


def steps() -> float:
    return REGISTRY.get_sample_value("plinth_engine_steps_total") or 0.0
