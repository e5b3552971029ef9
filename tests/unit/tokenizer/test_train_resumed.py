"""A training's stream, broken anywhere and resumed: its progress only grows, and the artifact comes
once, though the training itself begins anew when its caller is gone."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_vocabulary import write_corpus

from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import Principal, call_scope
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.tokenizer import training
from plinth.tokenizer.service import TokenizerStage, build
from scripted_stages import Caller


@pytest.fixture
def stage(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizerStage:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.001)
    settings = load_settings(data_dir=tmp_path, source_roots=[tmp_path])
    return build(SimpleNamespace(settings=settings, store=store))


async def told(stage: TokenizerStage, corpus: Path, rng: random.Random) -> list[pb.TrainResponse]:
    """What a client sees that asks again until a call ends by itself, each of which breaks after
    some responses, the last one at times too."""
    seen: list[pb.TrainResponse] = []
    while True:
        token = seen[-1].resume_token if seen else ""
        request = pb.TrainRequest(
            corpus=str(corpus), name="mine", vocab_size=400, resume_token=token
        )
        call = stage.Train(request, Caller())
        try:
            for _ in range(rng.randint(1, 4)):
                seen.append(await anext(call))
        except StopAsyncIteration:
            return seen
        finally:
            await call.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_each_response_comes_once(
    stage: TokenizerStage, store: ArtifactStore, tmp_path: Path, seed: int
) -> None:
    folder = write_corpus(tmp_path / "corpus", documents=1500)
    seen = await told(stage, folder, random.Random(seed))
    *progress, last = seen
    read = [one.bytes_read for one in progress]
    assert read == sorted(set(read))
    assert not any(one.HasField("artifact") for one in progress)
    assert last.artifact.name == "artifacts/mine@1"
    assert last.bytes_read == last.bytes_total
    assert [record.version for record in store.list("tokenizer")] == [1]


async def test_a_corpus_that_shrank_meanwhile_still_gives_its_artifact(
    stage: TokenizerStage, tmp_path: Path
) -> None:
    request = pb.TrainRequest(
        corpus=str(write_corpus(tmp_path / "corpus")),
        name="mine",
        vocab_size=400,
        resume_token=str(10**9),
    )
    seen = [one async for one in stage.Train(request, Caller())]
    assert [one.HasField("artifact") for one in seen] == [True]


async def test_what_is_made_is_the_callers(stage: TokenizerStage, tmp_path: Path) -> None:
    request = pb.TrainRequest(
        corpus=str(write_corpus(tmp_path / "corpus")), name="mine", vocab_size=400
    )
    with call_scope(principal=Principal("acme", "key", frozenset({"jobs"}))):
        *_, last = [one async for one in stage.Train(request, Caller())]
    assert (last.artifact.owner.tenant, last.artifact.owner.key_id) == ("acme", "key")


async def test_a_token_of_nobody_is_refused(stage: TokenizerStage) -> None:
    call = stage.Train(pb.TrainRequest(resume_token="1-2"), Caller())
    with pytest.raises(InvalidArgument, match="'1-2' is none of Train's"):
        await anext(call)
