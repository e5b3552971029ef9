"""Learned rewards: equal to transformers', and the same bits in any company."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
import transformers

from plinth.kernels.training import SdpaBackend
from plinth.models.reward import load_reward_model
from plinth.reward import forward
from plinth.reward.forward import ScoringModel
from plinth.reward.learned import LearnedModel, LearnedModels
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings_sections import RewardSettings
from plinth.shared.store import ArtifactStore
from rewards import reward_model


def sequences(count: int, seed: int, longest: int = 100) -> list[tuple[int, ...]]:
    noise = random.Random(seed)
    return [
        tuple(noise.randrange(320) for _ in range(noise.randint(1, longest))) for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("m") / "judge", family=request.param)


@pytest.mark.parametrize("native", [True, False])
def test_scores_are_those_of_transformers(
    folder: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_native", lambda: native)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    ours = load_reward_model(folder)
    model = ScoringModel(folder, "cpu")
    asked = sequences(12, seed=1)
    for sequence, score in zip(asked, model.scores(asked), strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            # All but the last are "padding" to them where ids equal the pad id: one by mask.
            truth = theirs.score(theirs.base_model(ids).last_hidden_state[:, -1])[0, 0]
            backend = SdpaBackend(1, len(sequence))
            hidden = ours(ids[0], torch.arange(len(sequence)), backend)
            mine = ours.scores(hidden[-1:], backend)[0]
        assert score == pytest.approx(float(truth), abs=1e-4)
        assert score == pytest.approx(float(mine), abs=1e-4)
    whole = next(s for s in asked if s[-1] != 0)
    with torch.no_grad():
        logits = theirs(torch.tensor([whole])).logits
    assert model.scores([whole])[0] == pytest.approx(float(logits[0, 0]), abs=1e-4)


@pytest.mark.parametrize("native", [True, False])
def test_a_score_has_the_same_bits_in_any_company(
    folder: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_native", lambda: native)
    model = ScoringModel(folder, "cpu")
    asked = sequences(20, seed=2)
    alone = [model.scores([sequence])[0] for sequence in asked]
    assert len(set(alone)) > 10
    for seed in range(4):
        order = list(range(20))
        random.Random(seed).shuffle(order)
        order = order[: 5 * (seed + 1)]
        together = model.scores([asked[i] for i in order])
        assert together == [alone[i] for i in order]


async def test_concurrent_calls_share_launches_and_keep_their_own_scores(folder: Path) -> None:
    scoring = ScoringModel(folder, "cpu")
    launches: list[int] = []
    real = scoring.scores

    def watched(batch: list[tuple[int, ...]]) -> list[float]:
        launches.append(sum(map(len, batch)))
        return real(batch)

    scoring.scores = watched  # type: ignore[method-assign, assignment]
    model = LearnedModel(scoring, batch_tokens=500)
    calls = [sequences(3, seed=seed) for seed in range(30)]
    answers = await asyncio.gather(*(model.scores(call) for call in calls))
    assert len(launches) < 30
    assert max(launches) <= 500
    assert model.waiting == 0
    for call, answer in zip(calls, answers, strict=True):
        assert answer == [real([sequence])[0] for sequence in call]
    assert await model.scores([]) == []


async def test_a_launch_that_fails_fails_its_own_callers_only(folder: Path) -> None:
    scoring = ScoringModel(folder, "cpu")
    real = scoring.scores

    def sometimes(batch: list[tuple[int, ...]]) -> list[float]:
        if any(len(sequence) == 99 for sequence in batch):
            raise RuntimeError("out of memory")
        return real(batch)

    scoring.scores = sometimes  # type: ignore[method-assign, assignment]
    model = LearnedModel(scoring, batch_tokens=1)
    bad, good = await asyncio.gather(
        model.scores([(1,) * 99]), model.scores([(1, 2)]), return_exceptions=True
    )
    assert isinstance(bad, RuntimeError)
    assert good == real([(1, 2)])


async def test_who_hangs_up_is_taken_out_of_the_line(folder: Path) -> None:
    model = LearnedModel(ScoringModel(folder, "cpu"), batch_tokens=1)
    first = asyncio.create_task(model.scores([(1, 2)]))
    gone = asyncio.create_task(model.scores([(3, 4)] * 50))
    await asyncio.sleep(0)
    gone.cancel()
    last = await model.scores([(5, 6)])
    assert gone.cancelled() or gone.cancelling()
    assert (await first) != last
    assert model.waiting == 0


async def test_models_are_kept_by_content_and_few(store: ArtifactStore, tmp_path: Path) -> None:
    models = LearnedModels(store, RewardSettings(models_kept=1))
    for seed in (1, 2):
        store.publish("judge", "reward", reward_model(tmp_path / f"j{seed}", seed=seed))
    one = await models.model(await models.find("judge@1", "sources.0.model"))
    assert await models.model(await models.find("judge@1", "sources.0.model")) is one
    two = await models.model(await models.find("judge", "sources.0.model"))
    assert two is not one
    assert await models.model(await models.find("judge@1", "sources.0.model")) is not one
    assert await one.scores([(1, 2)]) != await two.scores([(1, 2)])


async def test_a_model_that_is_no_reward_model(store: ArtifactStore, tmp_path: Path) -> None:
    body = reward_model(tmp_path / "judge")
    store.publish("chat", "model", body)
    with pytest.raises(InvalidArgument, match=r"sources.3.model: chat@1 is a model"):
        await LearnedModels(store, RewardSettings()).find("chat", "sources.3.model")
