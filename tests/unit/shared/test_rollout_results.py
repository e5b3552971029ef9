"""A rollout's answers arrive as they were made, however large, or are refused beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from job_specs import policy_spec, train_spec
from plinth.coordinator.steps.train import TrainSpec
from plinth.internal.v1 import reward_tasks_pb2, rollouts_pb2
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound
from plinth.shared.queue import MAX_PAYLOAD_BYTES
from plinth.shared.rewards import MAX_ITEMS, divided
from plinth.shared.rollout_results import (
    INLINE_BYTES,
    MAX_RESULT_BYTES,
    MAX_SAMPLES,
    RolloutResults,
    check_fits,
    largest,
    logprobs,
    longest,
    raw_logprobs,
)
from plinth.shared.rollouts import rollout_queue
from plinth.shared.storage import Storage
from plinth.shared.storage_url import open_storage
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import rewards_pb2


def result(samples: int, tokens: int, *, vocabulary: int = 1 << 18) -> rollouts_pb2.RolloutResult:
    draw = np.random.default_rng(tokens)
    return rollouts_pb2.RolloutResult(
        revision=3,
        weights_digest="sha256:0",
        shard_id="s1",
        samples=[
            rollouts_pb2.RolloutSample(
                sample_index=index,
                ids=draw.integers(0, vocabulary, tokens).tolist(),
                token_logprobs=draw.normal(size=tokens).tolist(),
                raw_token_logprobs=draw.normal(size=tokens).tolist(),
                ended=bool(index % 2),
            )
            for index in range(samples)
        ],
    )


def unused() -> Storage:
    raise AssertionError("a small result needs no store")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path / 'store'}")


@given(samples=st.integers(1, 4), tokens=st.sampled_from([0, 1, 7, 5_000, 30_000, 60_000]))
@settings(max_examples=20)
def test_what_is_packed_is_unpacked(tmp_path_factory, samples, tokens) -> None:
    made = result(samples, tokens)
    whole = len(made.SerializeToString())
    assert whole <= largest(samples, tokens) + 100
    if whole <= INLINE_BYTES:
        assert RolloutResults(unused).unpack(RolloutResults(unused).pack(made)) == made
        return
    store = open_storage(f"file://{tmp_path_factory.mktemp('store')}")
    packed = RolloutResults(lambda: store).pack(made)
    assert len(packed) < 200
    assert RolloutResults(lambda: store).unpack(packed) == made


async def test_the_queue_takes_sixteen_answers_of_sixteen_thousand_tokens(
    redis_client: Redis, storage: Storage
) -> None:
    """The real queue, whose limit ended runs after their answers had been sampled."""
    made = result(16, 16_384)
    assert len(made.SerializeToString()) < MAX_PAYLOAD_BYTES  # as float32; as doubles it is more
    made = result(16, 65_536)
    assert len(made.SerializeToString()) > MAX_PAYLOAD_BYTES
    queue = rollout_queue(redis_client)
    await queue.add("task", b"payload")
    lease = await queue.claim("s1", wait_s=5)
    assert lease is not None
    await queue.complete(lease, RolloutResults(lambda: storage).pack(made))
    value = await queue.result("task")
    assert value is not None
    assert RolloutResults(lambda: storage).unpack(value) == made


def test_what_the_queue_has_forgotten_goes_from_the_store(storage: Storage) -> None:
    """Files of an hour stay for a whole hour after it, as long as the queue's results do."""
    now = [1_000 * 3600.0 + 3599]
    results = RolloutResults(lambda: storage, clock=lambda: now[0])
    first = results.pack(result(4, 40_000))
    now[0] += 3600.0
    second = results.pack(result(4, 40_001))
    assert results.unpack(first) == result(4, 40_000)
    now[0] += 2.0
    third = results.pack(result(4, 40_002))
    with pytest.raises(NotFound, match="kept for 60 minutes"):
        results.unpack(first)
    assert results.unpack(second) == result(4, 40_001)
    assert results.unpack(third) == result(4, 40_002)
    assert storage.names("artifacts") == []  # nothing of it is an artifact


def test_a_result_of_an_older_shard_is_read_and_a_broken_one_is_not() -> None:
    old = rollouts_pb2.RolloutSample(ids=[1, 2], logprobs=[-0.1, -0.2], raw_logprobs=[-1.0, -2.0])
    whole = rollouts_pb2.RolloutResult(samples=[old])
    (read,) = RolloutResults(unused).unpack(whole.SerializeToString()).samples
    assert (list(logprobs(read)), list(raw_logprobs(read))) == ([-0.1, -0.2], [-1.0, -2.0])
    broken = rollouts_pb2.RolloutResult(samples=[rollouts_pb2.RolloutSample(ids=[1, 2])])
    with pytest.raises(DataLoss, match="2 tokens and 0 log-probabilities"):
        RolloutResults(unused).unpack(broken.SerializeToString())
    astray = rollouts_pb2.RolloutResult(stored="artifacts/x/1.json")
    with pytest.raises(DataLoss, match="no rollout's place"):
        RolloutResults(unused).unpack(astray.SerializeToString())


@pytest.mark.parametrize(
    ("samples", "tokens", "field"),
    [(MAX_SAMPLES + 1, 8, "samples"), (64, longest(64) + 1, "max_new_tokens")],
)
def test_what_can_not_be_carried_is_refused_at_the_start(samples, tokens, field) -> None:
    """In the step and in the job, before anything is sampled; what the error names is taken."""
    with pytest.raises(InvalidArgument, match=r"at most|1 to 64"):
        check_fits(samples, tokens)
    fields = {
        "objective": "grpo",
        "batch_size": samples,
        "steps": 1,
        "policy": {"samples": samples, "max_new_tokens": tokens, "rollouts": "shards"},
    }

    def job(policy: dict[str, object]) -> pb.JobSpec:
        spec = policy_spec(**policy)
        names = {"dataset": "d@1", "init_from": "m@1", "reward": "r@1"}
        return pb.JobSpec(output_name="x", train=train_spec(**{**fields, **names, "policy": spec}))

    with pytest.raises(InvalidArgument) as caught:
        check_spec(job(fields["policy"]))
    assert caught.value.field == f"spec.train.policy.{field}"
    step = {"kind": "train", "dataset": "d", "init_from": "m", "reward": "r"}
    with pytest.raises(ValueError, match=f"policy.{field}"):
        TrainSpec(**{**step, **fields})
    check_spec(job({**fields["policy"], "rollouts": "local"}))
    check_fits(64, longest(64))
    assert largest(64, longest(64)) <= MAX_RESULT_BYTES


@given(st.lists(st.sampled_from([0, 10, 90_000, 130_000]), max_size=40))
@settings(max_examples=20)
def test_answers_are_scored_in_requests_that_the_queue_takes(lengths) -> None:
    sources = [rewards_pb2.RewardSource(name="checks", rule={})]
    items = [
        rewards_pb2.RewardItem(
            prompt_tokens=rewards_pb2.RewardTokens(ids=[1, 2]),
            response_tokens=rewards_pb2.RewardTokens(ids=[200_000] * length),
        )
        for length in lengths
    ]
    parts = list(divided(sources, items, "t@1"))
    assert [item for part in parts for item in part.items] == items
    for part in parts:
        task = reward_tasks_pb2.RewardTask(request=part, announce="r" * 200)
        assert task.ByteSize() <= MAX_PAYLOAD_BYTES
        assert 1 <= len(part.items) <= MAX_ITEMS
        assert part.tokenizer == "t@1"
        assert list(part.sources) == sources
