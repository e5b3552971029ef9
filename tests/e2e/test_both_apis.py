"""Both APIs of a real stack: the same answers with the same key; nothing but health without."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import openai
import pytest
import transformers
from grpc_health.v1 import health_pb2, health_pb2_grpc

from plinth.internal.v1 import inference_pb2, tokenizer_pb2
from plinth.internal.v1.inference_pb2_grpc import InferenceServiceStub
from plinth.internal.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from plinth.oip.v2 import open_inference_pb2
from plinth.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from plinth.shared.store import ArtifactStore
from plinth.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    jobs_pb2,
    models_pb2,
    models_pb2_grpc,
    rewards_pb2,
    runs_pb2,
    runs_pb2_grpc,
)
from plinth.v1.jobs_pb2_grpc import JobServiceStub
from plinth.v1.rewards_pb2_grpc import RewardServiceStub
from real_stack import RealStack, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "ops" / "examples" / "grpc_client.py"
CAPITAL = "What is the capital of France?"


def test_twenty_lines_of_grpc_say_what_the_openai_client_says(real: RealStack) -> None:
    lines = [line for line in CLIENT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 20
    asked = subprocess.run(
        [sys.executable, CLIENT, real.grpc, real.key, real.model, CAPITAL],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    client = openai.OpenAI(api_key=real.key, base_url=f"{real.rest}/v1", max_retries=0)
    stream = client.chat.completions.create(
        model=real.model,
        messages=[{"role": "user", "content": CAPITAL}],
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    said = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert said == "The capital of France is Paris."
    assert asked.stdout == said + "\n"


def test_the_python_of_the_readme_runs_as_it_stands(real: RealStack) -> None:
    """Its blocks one after another, but for the port and the folder of this stack; no warning."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    program = "\nprint(chr(0))\n".join(blocks).replace("http://127.0.0.1:8080", real.rest)
    program = program.replace("127.0.0.1:8081", real.grpc)
    program = program.replace('".plinth/', f'"{real.stack.settings.data_dir}/')
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    by_rest, by_grpc, vote = done.stdout.split("\0")
    assert by_rest.startswith("Hello")
    assert by_grpc.strip() and vote.strip()


async def test_a_completion_that_writes_its_turns_says_what_the_chat_says(real: RealStack) -> None:
    """The template written by the caller: transformers' number of tokens, and the chat's end."""
    written = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n"
    )
    store = ArtifactStore(
        real.stack.settings.store(), cache_dir=real.stack.settings.data_dir / "read"
    )
    reference = transformers.AutoTokenizer.from_pretrained(store.fetch(real.model))
    greedy = {"model": real.model, "temperature": 0, "max_tokens": 64}
    async with real.openai() as client:
        chat = await client.chat.completions.create(
            messages=[{"role": "user", "content": CAPITAL}], **greedy
        )
        complete = await client.completions.create(prompt=written, **greedy)
        plain = await client.completions.create(
            prompt=written, extra_body={"special_tokens": False}, **greedy
        )
    assert complete.choices[0].text == chat.choices[0].message.content
    assert complete.choices[0].finish_reason == "stop"
    assert complete.usage is not None and chat.usage is not None
    # Not their cached tokens: the two may be answered by two shards, each with a cache of its own.
    assert complete.usage.prompt_tokens == chat.usage.prompt_tokens
    assert complete.usage.completion_tokens == chat.usage.completion_tokens
    assert complete.usage.prompt_tokens == len(reference(written).input_ids) == 37
    assert plain.usage is not None
    assert plain.usage.prompt_tokens > 60


async def test_twenty_streams_outlive_one_of_two_shards(real: RealStack) -> None:
    prompts = [f"Write a few sentences about the number {number}." for number in range(20)]

    async def say(client: openai.AsyncOpenAI, number: int, heard: asyncio.Semaphore | None) -> str:
        stream = await client.chat.completions.create(
            model=real.model,
            messages=[{"role": "user", "content": prompts[number]}],
            temperature=0.9,
            seed=number,
            max_tokens=64,
            stream=True,
            timeout=300,
        )
        parts, told = [], False
        async for chunk in stream:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
                if heard is not None and not told and len(parts) > 3:
                    heard.release()
                    told = True
        return "".join(parts)

    async with real.openai() as client:
        undisturbed = await asyncio.gather(*(say(client, n, None) for n in range(20)))
        heard = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(say(client, n, heard)) for n in range(20)]
        for _ in range(20):
            await asyncio.wait_for(heard.acquire(), 120)
        await asyncio.to_thread(until, lambda: _busy(real) == 2, "both shards work", 10)
        await asyncio.to_thread(real.kill, "ServeReplica:inference")
        assert await asyncio.gather(*tasks) == undisturbed


def _busy(real: RealStack) -> int:
    return sum(int(shard.fields["running"]) > 0 for shard in real.replicas("inference"))


DOOR_CALLS: dict[str, Callable[[grpc.Channel], object]] = {
    "models": lambda c: models_pb2_grpc.ModelServiceStub(c).ListModels(
        models_pb2.ListModelsRequest(), timeout=5
    ),
    "chat": lambda c: generation_pb2_grpc.GenerationServiceStub(c).Chat(
        generation_pb2.ChatRequest(), timeout=5
    ),
    "stream": lambda c: list(
        generation_pb2_grpc.GenerationServiceStub(c).StreamChat(
            generation_pb2.StreamChatRequest(), timeout=5
        )
    ),
    "open inference": lambda c: GRPCInferenceServiceStub(c).ServerLive(
        open_inference_pb2.ServerLiveRequest(), timeout=5
    ),
    "runs": lambda c: runs_pb2_grpc.RunServiceStub(c).ListRuns(
        runs_pb2.ListRunsRequest(), timeout=5
    ),
    "jobs": lambda c: JobServiceStub(c).ListJobs(jobs_pb2.ListJobsRequest(), timeout=5),
    "rewards": lambda c: RewardServiceStub(c).CheckSources(
        rewards_pb2.CheckSourcesRequest(), timeout=5
    ),
}
STAGE_CALLS: dict[str, Callable[[grpc.Channel], object]] = {
    "inference": lambda c: InferenceServiceStub(c).GetShard(
        inference_pb2.GetShardRequest(), timeout=5
    ),
    "tokenizer": lambda c: TokenizerServiceStub(c).Encode(tokenizer_pb2.EncodeRequest(), timeout=5),
    "trainer": DOOR_CALLS["jobs"],
    "reward": DOOR_CALLS["rewards"],
    "coordinator": DOOR_CALLS["runs"],
}


def _healthy(channel: grpc.Channel) -> bool:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("call", DOOR_CALLS)
@pytest.mark.parametrize("key", ["", "plinth-wrong"])
def test_the_grpc_door_is_shut_without_a_key(real: RealStack, call: str, key: str) -> None:
    with grpc.insecure_channel(real.grpc) as plain:
        assert _healthy(plain)
        channel = grpc.intercept_channel(plain, _Bearer(key)) if key else plain
        with pytest.raises(grpc.RpcError) as caught:
            DOOR_CALLS[call](channel)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def _of_one_that_is_there(real: RealStack, stage: str) -> str:
    """The address of a replica: one that was killed is still announced for a moment."""
    for replica in real.replicas(stage):
        with (
            grpc.insecure_channel(replica.address) as channel,
            contextlib.suppress(grpc.RpcError),
        ):
            if _healthy(channel):
                return str(replica.address)
    raise AssertionError(f"no replica of {stage} answers")


@pytest.mark.parametrize("stage", STAGE_CALLS)
def test_a_stage_answers_nobody_but_the_platform(real: RealStack, stage: str) -> None:
    """A user's key is worth nothing there: only the gateway and the stages hold the credential."""
    with grpc.insecure_channel(_of_one_that_is_there(real, stage)) as plain:
        for channel in (plain, grpc.intercept_channel(plain, _Bearer(real.key))):
            with pytest.raises(grpc.RpcError) as caught:
                STAGE_CALLS[stage](channel)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_rest_is_shut_without_a_key(real: RealStack) -> None:
    body = {"model": real.model, "messages": [{"role": "user", "content": "hi"}]}
    with httpx.Client(base_url=real.rest) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        wrong = {"Authorization": "Bearer plinth-wrong"}
        for headers, code in (({}, "missing_api_key"), (wrong, "invalid_api_key")):
            assert client.get("/v1/models", headers=headers).status_code == 401
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == code


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Sends a key along."""

    def __init__(self, key: str) -> None:
        self._metadata = [("authorization", f"Bearer {key}")]

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)

    intercept_unary_stream = intercept_unary_unary
