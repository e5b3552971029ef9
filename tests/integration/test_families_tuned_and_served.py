"""A checkpoint of another family through the whole platform: imported, tuned by trainer and shards,
served beside a draft of yet another family, and what answers is what transformers makes of it.

One family for each kind of state: windows, positions that go by length, experts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import families
from checkpoints import byte_tokenizer, random_gpt2
from family_models import random_model, saved
from patience import PATIENCE_S
from plinth.client import Client
from plinth.coordinator.service import build as build_coordinator
from plinth.gateway.core import GatewayCore
from plinth.gateway.grpc_api import build_server
from plinth.gateway.keys.api_keys import KeyStore
from plinth.models.export import ExportOptions, export_artifact
from plinth.models.publish import import_model
from plinth.reward.service import build as build_reward
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.tokenizer.service import build as build_tokenizer
from plinth.trainer.service import build as build_trainer
from plinth.v1 import generation_pb2, runs_pb2, sampling_pb2, tokenization_pb2
from stage_replicas import Stages

VOCAB, CONTEXT, ORIGINAL = 264, 160, 64
SHAPE: families.Keys = {
    **families.COMMON,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, families.Keys] = {
    "gemma3_text": {"head_dim": 8, "sliding_window": 9, "sliding_window_pattern": 2},
    "phi3": {
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 2.5, 4.0, 9.0],
            "original_max_position_embeddings": ORIGINAL,
        },
    },
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
}
# Answers of the policy are of one to 30 tokens behind prompts of 40: some of them might have been
# longer than ORIGINAL, and are not.
PIPELINE = """
name: through
steps:
  rows: {{kind: data, corpus_dir: {rows}, tokenizer: mine, validation_fraction: 0.2}}
  tuned:
    kind: train
    objective: sft
    dataset: $rows
    init_from: mine
    lora: {{rank: 2}}
    sequence_length: 96
    batch_size: 4
    steps: 2
    precision: fp32
    output: tuned
  online: {{kind: serve, model: $tuned, name: tuned, speculation: "draft:small"}}
  policy:
    kind: train
    objective: grpo
    dataset: $rows
    init_from: $tuned
    rewards: {{brief: {{rule: {{kind: length, unit: tokens, target: 4, slack: 40}}}}}}
    batch_size: 8
    steps: 2
    learning_rate: 1e-3
    policy: {{samples: 4, max_new_tokens: 30, kl_coefficient: 0, rollouts: shards}}
    output: policy
    after: [online]
"""


class Platform:
    def __init__(self, address: str, key: str, store: ArtifactStore) -> None:
        self.address, self.key, self.store = address, key, store

    async def call(self, act: Any, *given: Any) -> Any:
        """`act(client, …)` in a thread: the platform is in this one."""

        def called() -> Any:
            with Client(self.address, self.key) as client:
                return act(client, *given)

        return await asyncio.wait_for(asyncio.to_thread(called), PATIENCE_S)


@pytest.fixture
async def platform(
    tmp_path: Path, redis_server: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Platform]:
    monkeypatch.setenv("PLINTH_REDIS_URL", redis_server)
    settings = load_settings(
        data_dir=tmp_path / "data",
        redis_url=redis_server,
        trainer={"background": False, "threads": 1},
        gateway={"host": "127.0.0.1", "grpc_port": 0},
        engine={"kv_cache_bytes": 1 << 22},
        source_roots=[tmp_path],
    )
    stages, core = Stages(settings), GatewayCore(settings)
    key, _ = await KeyStore(redis_client).create("acme", ("runs", "inference"))
    store = ArtifactStore(settings.store())
    reconciling = asyncio.create_task(stages.serve(DeploymentRecords(store)))
    try:
        await stages.add("tokenizer", build_tokenizer)
        await stages.add("coordinator", build_coordinator)
        await stages.add("reward", build_reward)
        await stages.add("trainer", build_trainer, launcher="processes")
        await core.open()
        server = build_server(core)
        port = await server.start()
        try:
            yield Platform(f"127.0.0.1:{port}", key, store)
        finally:
            await server.stop(0)
    finally:
        stages.over.set()
        await reconciling
        await core.close()
        await stages.stop()


@pytest.mark.parametrize(
    "family",
    [
        "gemma3_text",
        pytest.param("phi3", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", marks=pytest.mark.slow),
    ],
)
async def test_from_a_checkpoint_to_answers(
    family: str, platform: Platform, tmp_path: Path
) -> None:
    checkpoint = saved(random_model(family, SHAPE | FAMILIES[family]), tmp_path / "mine")
    small = random_gpt2(tmp_path / "small", vocab_size=VOCAB + 8, context=CONTEXT, layers=1)
    for folder in (checkpoint, small):
        byte_tokenizer(folder)
        import_model(platform.store, str(folder), folder.name, workspace=tmp_path / "work")
    pipeline = PIPELINE.format(rows=rows(tmp_path / "rows"))
    run = await platform.call(ended, pipeline)
    assert run.status.state == runs_pb2.RUN_STATE_SUCCEEDED, run.status.error
    # The trainer read its answers as the shards had sampled them, to the last digits.
    assert platform.store.get("policy").manifest["metrics"]["widest_gap"] < 1e-4

    export_artifact(
        platform.store, "tuned", tmp_path / "out", ExportOptions(), workspace=tmp_path / "work"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompts = [list(range(40, 60)), [5 + 7 * i % 240 for i in range(100)]]
    for ids in [*prompts, *prompts]:  # the second time from the prefix cache
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None
            )
        logprobs = theirs(whole).logits[0].detach().log_softmax(-1)
        told = [float(logprobs[at - 1, whole[0, at]]) for at in range(len(ids), len(whole[0]))]
        answer = await platform.call(completed, ids)
        assert [token.id for token in answer.choices[0].tokens] == whole[0, len(ids) :].tolist()
        assert [token.raw_logprob for token in answer.choices[0].tokens] == pytest.approx(
            told, abs=1e-4
        )
    assert answer.usage.cached_tokens > 0
    assert answer.usage.draft_proposed > 0


def rows(folder: Path) -> Path:
    """Chats of prompts of some 40 tokens and answers of one to 40."""
    folder.mkdir()
    chats = [(f"How often shall it be? {n:2}", "a" * n) for n in range(1, 41)]
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in chats
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ended(client: Client, pipeline: str) -> runs_pb2.Run:
    run = client.runs.create_run(
        "through", run=runs_pb2.Run(spec=runs_pb2.RunSpec(pipeline_yaml=pipeline))
    )
    for response in client.runs.watch_run(run.name):
        if response.HasField("run"):
            run = response.run
    return run


def completed(client: Client, ids: list[int]) -> generation_pb2.CompleteResponse:
    sampling = sampling_pb2.SamplingParams(
        temperature=0, max_tokens=16, ignore_eos=True, top_logprobs=1
    )
    return client.generation.complete(
        "tuned",
        prompt_tokens=tokenization_pb2.TokenSequence(ids=ids),
        options=generation_pb2.GenerationOptions(sampling=sampling),
    )
