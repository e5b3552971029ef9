"""Sampling and judging by the real tokenizer, inference and coordinator stages, against
transformers and an engine of this process on the same weights."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from redis.asyncio import Redis

import engines
from answer_text import answer_text
from checkpoints import byte_tokenizer, random_llama
from patience import PATIENCE_S
from plinth.coordinator import service as coordinator
from plinth.coordinator.preferences import model_judge
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.engine.request import Sampling
from plinth.inference import service as inference
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.tokenizer import service as tokenizer
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

END = 2  # <|im_end|>


COLLECTION = "collections/default"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("m") / "tiny"
    random_llama(made, vocab_size=259, context=2048, layers=2)
    return byte_tokenizer(made)


@pytest.fixture
async def stub(
    folder: Path, redis_server: str, redis_client: object, tmp_path: Path
) -> AsyncIterator[Any]:
    """PreferenceService of a coordinator among real stages, each with a context of its own."""
    settings = load_settings(data_dir=tmp_path, redis_url=redis_server, engine={"rollouts": False})
    contexts, running = {}, []
    for stage in ("tokenizer", "inference", "coordinator"):
        contexts[stage] = await StageContext.open(settings, stage=stage)
    contexts["inference"].store.publish("tiny", "model", folder)
    shard = {"model": "chat", "artifact": "tiny@1", "kv_cache_bytes": 1 << 24}
    fronts = {
        "tokenizer": tokenizer.build(contexts["tokenizer"]),
        "inference": inference.build(contexts["inference"], **shard),
        "coordinator": coordinator.build(contexts["coordinator"]),
    }
    for stage, front in fronts.items():
        running.append(await run_stage(contexts[stage], front))
    clients = contexts["coordinator"].clients
    yield rpc.PreferenceServiceStub(clients.channel(await clients.pick("coordinator")))
    for stage in reversed(running):
        await stage.stop(5)
    for context in contexts.values():
        await context.close()


def ids_of(folder: Path, text: str) -> list[int]:
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": text}]
    rendered = hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(hf.encode(rendered, add_special_tokens=False))


def text_of(folder: Path, ids: list[int]) -> str:
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    return answer_text(hf, ids)


async def added(stub: Any, spec: pb.PreferenceTaskSpec) -> None:
    task = pb.PreferenceTask(spec=spec)
    ask = pb.CreatePreferenceTaskRequest(parent=COLLECTION, task_id="t", task=task)
    await stub.CreatePreferenceTask(ask)


async def settled(stub: Any, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ask = pb.GetPreferenceCollectionRequest(name=COLLECTION)
            found = await stub.GetPreferenceCollection(ask)
            if found.collection.status.revision == count:
                return
            await asyncio.sleep(0.05)


async def test_samples_are_what_an_engine_here_says(stub: Any, folder: Path) -> None:
    sampling = sampling_pb2.SamplingParams(seed=11, max_tokens=24, temperature=0.9)
    spec = pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content="Name a colour.")],
        samples=[pb.SampleSpec(model="chat", count=3, sampling=sampling)],
    )
    await added(stub, spec)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ask = pb.GetPreferenceTaskRequest(name=f"{COLLECTION}/tasks/t")
            status = (await stub.GetPreferenceTask(ask)).task.status
            if status.state == pb.PREFERENCE_TASK_STATE_OPEN:
                break
            assert status.state == pb.PREFERENCE_TASK_STATE_SAMPLING, status.error
            await asyncio.sleep(0.05)
    prompt = tuple(ids_of(folder, "Name a colour."))
    assert status.sampled_responses[0].sampling.seed == 11
    for response in status.sampled_responses:
        wanted = Sampling(
            temperature=0.9,
            seed=response.sampling.seed,
            max_tokens=24,
            stop_ids=frozenset({END}),
        )
        alone, _ = engines.complete(engines.engine(folder), [prompt], wanted)
        assert response.text == text_of(folder, [token.id for token in alone[0]])
        assert response.model == "tiny@1"
        assert response.weights_digest.startswith("sha256:")


async def test_verdicts_are_transformers_own(stub: Any, folder: Path, redis_client: Redis) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    texts = {"r0": "Red.", "r1": "It is blue, I think.", "r2": "Colours are many."}
    spec = pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content="Name a colour.")],
        responses=[pb.PreferenceResponse(response_id=k, text=v) for k, v in texts.items()],
    )
    await added(stub, spec)

    def logp(question: str, ending: list[int]) -> float:
        prompt = ids_of(folder, question)
        ids = torch.tensor([[*prompt, *ending]])
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0], -1)
        return float(sum(table[len(prompt) + i - 1, id_] for i, id_ in enumerate(ending)))

    hf = transformers.AutoTokenizer.from_pretrained(folder)
    a, b = hf.encode("A", add_special_tokens=False), hf.encode("B", add_special_tokens=False)
    common = {
        "criteria": model_judge.DEFAULT_CRITERIA,
        "conversation": "User: Name a colour.",
    }

    def leads(first: str, second: str) -> float:
        question = model_judge._PAIRWISE.format(**common, first=first, second=second)
        return logp(question, a) - logp(question, b)

    points = dict.fromkeys(texts, 0.0)
    for one, other in combinations(texts, 2):
        there, back = leads(texts[one], texts[other]), leads(texts[other], texts[one])
        if there > 0 > back:
            points[one] += 1
        elif there < 0 < back:
            points[other] += 1
        else:
            points[one], points[other] = points[one] + 0.5, points[other] + 0.5
    scores = {}
    for name, text in texts.items():
        question = model_judge._RUBRIC.format(**common, response=text)
        endings = [[*hf.encode(str(n), add_special_tokens=False), END] for n in range(1, 11)]
        weights = torch.softmax(torch.tensor([logp(question, one) for one in endings]), 0)
        scores[name] = float((weights * torch.arange(1, 11)).sum())

    for method in (pb.JUDGING_METHOD_PAIRWISE, pb.JUDGING_METHOD_RUBRIC):
        ask = pb.RequestModelJudgementsRequest(parent=COLLECTION, model="chat", method=method)
        assert (await stub.RequestModelJudgements(ask)).queued_count == 1
    await settled(stub, 2)
    kept = await judgements(redis_client)
    assert {one.source for one in kept.values()} == {pb.JUDGEMENT_SOURCE_MODEL}
    assert order(kept["tiny@1/pairwise"]) == grouped(points)
    assert order(kept["tiny@1/rubric"]) == grouped({k: round(v, 1) for k, v in scores.items()})


async def judgements(redis: Redis) -> dict[str, rec.JudgementRecord]:
    records = PreferenceRecords(redis, "default")
    found = [one async for part in records.judgements(await records.revision()) for one in part]
    return {one.annotator: one for one in found}


def order(judgement: rec.JudgementRecord) -> list[set[str]]:
    return [set(tier.response_ids) for tier in judgement.ranking]


def grouped(points: dict[str, float]) -> list[set[str]]:
    groups: dict[float, set[str]] = defaultdict(set)
    for name, value in points.items():
        groups[value].add(name)
    return [groups[value] for value in sorted(groups, reverse=True)]
