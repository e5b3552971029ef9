"""Whatever part of an engine fails, one request ends, and its neighbours keep their bits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import engines
from checkpoints import random_gpt2, random_llama
from engine_faults import KINDS, VOCAB, HashModel, run_worlds, truth
from plinth.engine.engine import Engine
from plinth.engine.plan import Row
from plinth.engine.request import Binding, FailedEvent, Request, SampledToken, Sampling
from plinth.engine.scheduler import Limits
from plinth.models.decoder import Decoder
from plinth.models.weights import load_decoder
from plinth.shared.errors import InvalidArgument


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_five_hundred_worlds() -> None:
    counts = run_worlds(range(500))
    assert all(counts[f"{kind}, hit"] for kind in KINDS), counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_twenty_thousand_worlds(part: int) -> None:
    counts = run_worlds(range(1_000 * part, 1_000 * (part + 1)))
    print(dict(counts))
    assert all(counts[f"{kind}, hit"] > counts[kind] // 4 for kind in KINDS), counts


def _answers(engine: Engine) -> dict[str, list[SampledToken] | FailedEvent]:
    answers: dict[str, list[SampledToken] | FailedEvent] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, FailedEvent):
                answers[event.request_id] = event
            else:
                answers.setdefault(event.request_id, [])
                answers[event.request_id] += event.tokens
    return answers


def test_a_cached_prefix_that_went_bad_is_found_once_and_no_more() -> None:
    model = HashModel(blocks=64, block_size=4, context=64)
    engine = Engine(model, Limits(40, 8, 8, 64))
    asked = Request("first", tuple(i % VOCAB for i in range(20)), Binding(""), Sampling())
    engine.add(asked)
    assert _answers(engine) == {"first": truth(asked)}
    model.damage(Row(0, 0, (0,) * 4, ((0, tuple(np.flatnonzero(model._slots[:, 0] == 0))),), 0))
    for name in ("second", "third"):
        engine.add(Request(name, asked.ids, Binding(""), Sampling()))
        answer = _answers(engine)[name]
        if name == "second":
            assert isinstance(answer, FailedEvent)
            assert answer.error.reason == "NON_FINITE_LOGITS"
        else:
            assert answer == truth(asked)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    make = random_llama if request.param == "llama" else random_gpt2
    return load_decoder(make(tmp_path_factory.mktemp("m") / request.param))


@pytest.mark.parametrize(
    ("value", "sampling", "speculation"),
    [
        *(("nan", {"temperature": 0.0}, "off"), ("inf", {}, "lookup")),
        *(("inf", {"top_k": 5}, "lookup"), ("nan", {"top_p": 0.9}, "off")),
    ],
)
def test_a_real_model_that_overflows_on_one_token_ends_who_has_it(
    decoder: Decoder, value: str, sampling: dict, speculation: str
) -> None:
    """Greedy, raced and filtered; beside others that go on with the bits that they had."""
    asked = Sampling(**sampling, seed=4, max_tokens=20)
    prompts = [(3, 4, 5) * 6, (6, 7, 8) * 6, (9, 10, 11, 12, 9, 10)]
    plain, _ = engines.complete(engines.engine(decoder, speculation="off"), prompts, asked)
    made = {token.id for answer in plain for token in answer} | {i for p in prompts for i in p}
    bad = next(i for i in range(20, decoder.config.vocab_size) if i not in made)
    weight = decoder.embedding.weight
    was = weight[bad].clone()
    try:
        with torch.no_grad():
            weight[bad, 2] = float(value)
        engine = engines.engine(decoder, speculation=speculation)
        if decoder.config.tie_embeddings:  # the table is the output map too: keep it out of that
            engine.runner._packed.of((decoder.head,))
            with torch.no_grad():
                weight[bad] = was
            engine.runner._packed.renew()
            with torch.no_grad():
                weight[bad, 2] = float(value)
        for i, prompt in enumerate([*prompts, (5, 6, bad, 7)]):
            engine.add(Request(str(i), prompt, Binding(""), asked))
        answers = _answers(engine)
    finally:
        with torch.no_grad():
            weight[bad] = was
    assert isinstance(answers["3"], FailedEvent)
    assert answers["3"].error.reason == "NON_FINITE_LOGITS"
    assert [answers[str(i)] for i in range(3)] == plain
    assert engine.pool.live == 0


@pytest.mark.parametrize("target", ["llama", "gpt2"])
@pytest.mark.parametrize("draft", ["llama", "gpt2"])
def test_a_draft_of_a_shorter_context_says_nothing_past_it(
    tmp_path: Path, target: str, draft: str
) -> None:
    """Where it ended the engine (GPT-2) or read past its table of rotations (Llama)."""
    make = {"llama": random_llama, "gpt2": random_gpt2}
    long = load_decoder(make[target](tmp_path / "long"))
    short = load_decoder(make[draft](tmp_path / "short", context=32))
    assert short.config.context < 64 < long.config.context
    prompts = [tuple(3 + i % 9 for i in range(length)) for length in (5, 31, 32, 60)]
    asked = Sampling(temperature=0.0, max_tokens=32)
    plain, _ = engines.complete(engines.engine(long), prompts, asked)
    for prompt, answer in zip(prompts, plain, strict=True):
        engine = engines.engine(long, speculation="draft", draft=short)
        drafted, usage = engines.complete(engine, [prompt], asked)
        assert drafted == [answer]
        assert (usage[0].draft_proposed > 0) == (len(prompt) < 32)


def test_what_comes_from_a_library_is_checked_and_converted_as_from_a_door() -> None:
    """An int temperature, numpy's numbers: what they mean. What is no number: refused by name."""
    same = Sampling(temperature=1, top_p=np.float32(1), top_k=np.int64(3), stop_ids=[np.int32(5)])
    assert same == Sampling(temperature=1.0, top_k=3, stop_ids=frozenset({5}))
    assert [type(v) for v in (same.temperature, same.top_p, same.top_k)] == [float, float, int]
    request = Request("r", torch.tensor([3, 4]), Binding(""), same)
    assert request.ids == (3, 4)
    assert all(type(i) is int for i in request.ids)
    for name, value in (
        *(("temperature", "hot"), ("temperature", None), ("top_p", "0.5"), ("top_k", 1.5)),
        *(("seed", "1"), ("max_tokens", 2.0), ("stop_ids", ["a"]), ("stop_ids", 3)),
    ):
        with pytest.raises(InvalidArgument, match=name) as caught:
            Sampling(**{name: value})
        assert caught.value.field == name
    with pytest.raises(InvalidArgument, match="ids"):
        Request("r", (1.5,), Binding(""))
    engine = Engine(HashModel(8, 4, 32), Limits(positions=32))
    for wrong in ({"deadline": float("nan")}, {"sampling": Sampling(temperature=float("nan"))}):
        with pytest.raises(InvalidArgument):
            engine.add(Request("r", (1, 2), Binding(""), **wrong))


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        (Binding("sha256:other"), "sha256:other are not held here, sha256:mine are"),
        (Binding("sha256:mine", adapter="tuned-adapter@1"), "holds no adapters"),
        (Binding("", adapter="tuned-adapter@1"), "holds no adapters"),
        (Binding("", quantization="q8_0"), "no quantised weights"),
    ],
)
def test_weights_and_adapters_that_are_not_held_are_refused(binding: Binding, says: str) -> None:
    engine = Engine(HashModel(8, 4, 32), Limits(positions=32), weights_digest="sha256:mine")
    with pytest.raises(InvalidArgument, match=says) as caught:
        engine.add(Request("r", (1, 2), binding))
    assert caught.value.field.startswith("binding")
    assert not engine.busy


@pytest.mark.parametrize("temperature", [1, 1e-3, 2.9e-39, 1e-45, 1e-300, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_smallest_temperatures_are_greedy(temperature: float, filters: dict) -> None:
    """They gave token 0 for ever."""
    from plinth.engine.sampling import sample

    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(1))
    choices = [(Sampling(temperature=temperature, seed=i, **filters), i) for i in range(16)]
    made = sample(logits, choices)
    if temperature < 1e-2:
        assert [token.id for token in made] == logits.argmax(1).tolist()
        assert all(token.logprob == pytest.approx(0, abs=1e-6) for token in made)
    else:  # an int is the number that it is
        floats = [(Sampling(temperature=1.0, seed=i, **filters), i) for i in range(16)]
        assert made == sample(logits, floats)
        assert len({token.id for token in made}) > 3
