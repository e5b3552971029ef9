"""A PPO run whose answers come from the shards and whose rewards come from the reward stage, and
every process that it needs killed in turn.

It ends by itself with the very weights of the undisturbed run: no rollout was lost, none was used
twice, none came from other weights.
"""

from __future__ import annotations

import random
import time

import pytest

from plinth.models.weights import weights_digest
from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2 as pb
from real_stack import RealStack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UPDATES = 300  # many times what the run does while a killed process comes back
PIPELINE = f"""
name: survivor
steps:
  corpus: {{kind: data, builtin: stdlib, max_bytes: 400_000, validation_fraction: 0.05}}
  vocabulary: {{kind: tokenizer, corpus: $corpus, vocab_size: 320}}
  dataset: {{kind: data, corpus: $corpus, tokenizer: $vocabulary}}
  base:
    kind: train
    objective: clm
    dataset: $dataset
    model: {{family: llama, layers: 2, hidden: 64, heads: 2, context: 256, tie_embeddings: true}}
    batch_size: 4
    steps: 100
    learning_rate: 1e-3
  preferences: {{kind: data, builtin: stdlib-preferences, max_bytes: 150_000}}
  pairs: {{kind: data, corpus: $preferences, tokenizer: $vocabulary}}
  judge:
    kind: train
    objective: reward
    dataset: $pairs
    init_from: $base
    batch_size: 4
    steps: 20
    learning_rate: 1e-3
  policy:
    kind: train
    objective: ppo
    dataset: $pairs
    init_from: $base
    reward: $judge
    rewards: {{brief: {{rule: {{kind: max_words, n: 12}}, weight: 0.5}}}}
    batch_size: 8
    steps: {UPDATES}
    learning_rate: 1e-3
    policy: {{max_new_tokens: 32, rollouts: shards, epochs: 2, minibatches: 2, kl_target: 2.0}}
"""
VICTIMS = [
    "ServeReplica:coordinator",
    "ServeReplica:inference",
    "ServeReplica:reward",
    "RayTrainWorker",
    "redis",
    "ServeReplica:trainer",
    "ServeController",
]


def policy_of(run: pb.Run) -> pb.Step:
    return next(step for step in run.status.steps if step.step_id == "policy")


def updates(run: pb.Run) -> int:
    assert run.status.state in (pb.RUN_STATE_PENDING, pb.RUN_STATE_RUNNING), (
        f"the run was to go on until every process had been killed: {run}"
    )
    return round(policy_of(run).progress * UPDATES)


def look(real: RealStack, run_id: str) -> pb.Run:
    """The run's record, whoever has just died: a new client, since the gateway asks the others."""
    with real.runs() as runs:
        return until(lambda: _get(runs, run_id), "the run's record")


def _get(runs, run_id: str) -> pb.Run | None:
    try:
        return runs.get(run_id)
    except Exception:  # noqa: BLE001 - the coordinator is being killed; it is asked again
        return None


def ended(real: RealStack, run_id: str) -> pb.Run:
    over = (pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED)
    return until(
        lambda: run if (run := look(real, run_id)).status.state in over else None, "the end", 900
    )


def digest_of(real: RealStack, reference: str) -> str:
    store = ArtifactStore(real.stack.settings.store())
    return weights_digest(store.fetch(store.get(reference)))


def test_every_process_killed_during_one_run(real: RealStack) -> None:
    chance = random.Random(int(time.time()))
    with real.runs() as runs:
        # Without a checkpoint, or the second run would be given what this one made.
        calmly = PIPELINE + f"    output: calm\n    checkpoint_every: {UPDATES}\n"
        runs.submit("undisturbed", calmly, {})
    calm = ended(real, "undisturbed")
    assert calm.status.state == pb.RUN_STATE_SUCCEEDED, calm.status.error
    with real.runs() as runs:
        stormily = PIPELINE + "    output: storm\n    checkpoint_every: 3\n"
        runs.submit("disturbed", stormily, {})
    before = 0
    for victim in VICTIMS:
        # The run went on since the last kill, however fast this machine is.
        wanted = before + 2
        before = until(
            lambda w=wanted: n if (n := updates(look(real, "disturbed"))) >= w else None,
            f"update {wanted}, before {victim} is killed",
            300,
        )
        time.sleep(chance.uniform(0, 1.5))  # the moment within an update is not chosen
        real.kill(victim)
        print(f"{victim}: killed after update {before}")
    storm = ended(real, "disturbed")
    assert storm.status.state == pb.RUN_STATE_SUCCEEDED, storm.status.error
    assert policy_of(storm).state == pb.STEP_STATE_SUCCEEDED  # made, not reused
    assert digest_of(real, "storm@1") == digest_of(real, "calm@1")
    assert digest_of(real, "storm@1") != digest_of(real, "survivor-base@1")
    store = ArtifactStore(real.stack.settings.store())
    assert [r.version for r in store.list("model") if r.name == "storm"] == [1]
