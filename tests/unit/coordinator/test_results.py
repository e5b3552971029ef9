"""Results of steps are found by what they were made from, whatever the pipeline is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from coordinator_replica import Coordinator, states, steps
from plinth.coordinator.respondent import Sampled
from plinth.coordinator.results import StepResults
from plinth.coordinator.steps import verify
from plinth.coordinator.steps.contract import StepOutcome
from plinth.shared.prompt_set import Prompt
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World
from shown_runs import figures, made

# Each of the last three gives on one of its inputs.
PIPELINE = """
name: {name}
steps:
  corpus: {{kind: data, builtin: stdlib}}
  vocabulary: {{kind: tokenizer, corpus: $corpus, vocab_size: 300}}
  dataset: {{kind: data, corpus: $corpus, tokenizer: $vocabulary}}
  prompts:
    kind: prompts
    topics: [a, b]
    held_out: 1
    constraints: [{{name: few, ask: Few., checks: [{{kind: max_words, n: 20}}]}}]
  base:
    {{kind: train, objective: clm, dataset: $dataset, max_seconds: 1,
     model: {{layers: 1, hidden: 8, heads: 1, context: 32}}}}
  judge: {{kind: train, objective: reward, dataset: $dataset, init_from: $base, steps: 1}}
  policy:
    {{kind: train, objective: clm, dataset: $dataset, init_from: $base, max_seconds: {seconds}}}
  contest: {{kind: compare, dataset: $dataset, judge: $judge, baseline: $base, candidate: $policy}}
  gate: {{kind: verify, model: $contest, baseline: $base, prompts: $prompts}}
  release: {{kind: publish, model: $gate}}
"""


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` without shards that sample: every answer passes and is likely."""

    async def asked(_: Any, prompts: Sequence[Prompt], *__: Any) -> list[Sampled]:
        return [Sampled(one, (1,), (2,), "yes", (-1.0,), True, 1.0) for one in prompts]

    async def judged(*given: Any) -> list[float]:
        return [-1.0 for _ in given[-1]]

    monkeypatch.setattr(verify, "_asked", asked)
    monkeypatch.setattr(verify, "_judged", judged)


@pytest.mark.usefixtures("answered")
async def test_what_is_passed_on_is_the_pipelines_own(
    world: World, coordinator: Coordinator
) -> None:
    """A copy that goes back to earlier settings moves nothing of the pipeline that it is a copy
    of: neither its models' aliases nor, in the figures, their names."""
    runs = (("r1", "chat", 1), ("r2", "chat", 2), ("r3", "experiment", 1))
    for run_id, name, seconds in runs:
        await coordinator.submit(run_id, PIPELINE.format(name=name, seconds=seconds))
        run = await coordinator.end(run_id)
        assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
    assert states(run) == [*["REUSED"] * 9, "SUCCEEDED"]
    done = steps(run)
    for name in ("policy", "contest", "gate", "release"):
        assert made(done[name]) == "experiment-policy@1"
        assert "chat-policy" not in str(figures(done[name]))
        assert "chat-base" not in str(figures(done[name]))
    assert "'model': 'experiment-base@1'" in str(figures(done["contest"]))
    assert "experiment-policy@1 wins 80.0%" in str(figures(done["contest"]))
    aliases = {name: world.store.aliases(f"{name}-policy") for name in ("chat", "experiment")}
    assert aliases == {"chat": {"prod": 2}, "experiment": {"prod": 1}}
    # And such a run can be forked.
    ask = pb.ForkRunRequest(run_id="f", name="runs/r3", from_step="release")
    await coordinator.fork(ask)
    assert made(steps(await coordinator.end("f"))["release"]) == "experiment-policy@1"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri())


def _made(store: ArtifactStore, folder: Path, name: str, content: str) -> ArtifactRecord:
    (folder / content).write_text(content)
    return store.publish(name, "model", folder / content)


DIGEST = "sha256:" + "a" * 64


def test_of_inputs_of_the_same_content_the_one_that_went_on_does(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """Which one it was is recorded: its content may be another input's too."""
    then = {field: _made(store, tmp_path, f"old-{field}", "x") for field in ("baseline", "rival")}
    now = {field: _made(store, tmp_path, f"new-{field}", "x") for field in ("baseline", "rival")}
    results = StepResults(store)
    figures = {"why": "old-rival@1 wins against old-baseline@1, not old-rival@10", "n": 1}
    results.publish(
        DIGEST,
        StepOutcome("old-rival@1", figures, passes_on="rival"),
        fence=1,
        origin={},
        output_name="old-contest",
        inputs=then,
    )
    told = {"why": "new-rival@1 wins against new-baseline@1, not old-rival@10", "n": 1}
    found = results.find(DIGEST, "new-contest", now)
    assert found == StepOutcome("new-rival@1", told, reused=True, passes_on="rival")
    assert results.find(DIGEST, "old-contest", then) == StepOutcome(
        "old-rival@1", figures, reused=True, passes_on="rival"
    )


def test_an_input_of_which_is_not_known_which_it_was_is_looked_at_again(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """Records of an earlier version name what went on, and not as what it came in."""
    model = _made(store, tmp_path, "chat-policy", "x")
    results = StepResults(store)
    more: dict[str, Any] = {"fence": 1, "origin": {}, "output_name": "chat-gate"}
    results.publish(DIGEST, StepOutcome(model.ref), **more)
    assert results.find(DIGEST, "chat-gate") is None
    again = StepOutcome(model.ref, passes_on="model")
    assert results.publish(DIGEST, again, inputs={"model": model}, **more) == again
    assert results.find(DIGEST, "chat-gate", {"model": model}) is not None
