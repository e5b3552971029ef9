"""Models whose layers keep different things give the bits that they give when nothing is given up:
alone and in a crowd, however they are cut, with a known prefix, preempted, with drafts."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import engines
from plinth.engine.engine import Engine
from plinth.engine.request import Request, SampledToken, Sampling
from plinth.engine.tables import blocks_needed
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.race import log_normalisers
from plinth.models.decoder import Decoder
from plinth.models.families import new_config
from plinth.models.parts import LayerKind
from plinth.models.rope import Rope, RopeScaling

SIZES: dict[str, Any] = {
    "vocab_size": 61, "layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8,
    "intermediate": 40, "context": 160, "ropes": (Rope(),),
}  # fmt: skip
_LONG = RopeScaling(
    "longrope", original_context=70, attention_factor=1.1, short_factors=(1.0, 1.1, 1.3, 1.5),
    long_factors=(1.0, 2.0, 3.0, 4.0),
)  # fmt: skip
_DYNAMIC = RopeScaling("dynamic", 2.0, original_context=70)


def _kinds(*windows: int) -> dict[str, Any]:
    return {"layers": len(windows), "layer_kinds": tuple(LayerKind(window) for window in windows)}


# One window for all; Gemma 3's pattern, in seven groups; two widths; ropes that go by length, the
# last beside one that does not.
MODELS: dict[str, dict[str, Any]] = {
    "one window": {"family": "mistral", **_kinds(9, 9, 9)},
    "mixed": {
        "family": "gemma3_text",
        **_kinds(*[6, 6, 6, 6, 6, 0] * 2, 6, 6),
        "norms": "both", "qk_norm": "head", "norm_offset": True, "activation": "gelu_tanh",
    },
    "two widths": {"family": "llama", **_kinds(1, 21, 1, 21)},
    "longrope": {"family": "phi3", **_kinds(30, 30), "ropes": (Rope(scaling=_LONG),)},
    "dynamic": {
        "family": "llama",
        "layers": 3,
        "layer_kinds": (LayerKind(12, 0), LayerKind(0, 1), LayerKind(12, 0)),
        "ropes": (Rope(), Rope(scaling=_DYNAMIC)),
    },
}  # fmt: skip


@cache
def decoder(name: str) -> Decoder:
    made = Decoder(new_config(**{**SIZES, **MODELS[name]})).eval().requires_grad_(False)
    made.init_weights(5)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.mul_(9)  # or all tokens would be about as likely
    return made


@cache
def prompts() -> list[tuple[int, ...]]:
    dice = random.Random(3)
    lengths = [1, 3, 8, 17, 30, 44, 61, 80, 90]
    return [tuple(dice.randrange(61) for _ in range(length)) for length in lengths]


GREEDY = Sampling(temperature=0.0, max_tokens=24)


@cache
def crowd(name: str) -> list[list[SampledToken]]:
    answers, _ = engines.complete(engines.engine(decoder(name)), prompts(), GREEDY)
    return answers


def whole(model: Decoder, ids: list[int], length: int) -> torch.Tensor:
    """Logits [n, vocab] of a sequence that is read in one launch, all of which every layer keeps;
    it may come to have `length` tokens."""
    memory = KvCache.of_one_launch(model.states, 1, len(ids))
    batch = PagedBatch.build([(0, len(ids), [(0, [0])])], len(ids))
    backend = NativeBackend(PackedWeights(), memory, batch)
    with torch.inference_mode():
        positions_n = batch.positions_n + model.config.rope_offset(length)
        return model.logits(model(torch.tensor(ids), positions_n, backend), backend)


@pytest.mark.parametrize("name", MODELS)
def test_answers_and_scores_are_those_of_one_launch_that_keeps_all(name: str) -> None:
    model, engine = decoder(name), engines.engine(decoder(name), block_size=4, chunk=11)
    for prompt, answer in zip(prompts(), crowd(name), strict=True):
        ids = [*prompt, *(token.id for token in answer)]
        logits = whole(model, ids, len(prompt) + GREEDY.max_tokens)
        normalisers = log_normalisers(logits).tolist()
        for place, token in enumerate(answer, len(prompt) - 1):
            assert token.id == int(logits[place].argmax())
            assert token.raw_logprob == float(logits[place, token.id]) - normalisers[place]
        engine.add(Request("scored", tuple(ids), engines.BINDING, score_from=1))
        scores: list[float] = []
        while engine.busy:
            for event in engine.step():
                scores = list(event.logprobs)
        truth = whole(model, ids, len(ids))
        picked = truth[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        assert scores == (picked - log_normalisers(truth)[:-1]).tolist()
    assert len({token.id for answer in crowd(name) for token in answer}) > 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "chunk", "native"), [(4, 9, True), (5, 64, True), (3, 20, False)])
def test_bits_do_not_depend_on_company_chunks_or_blocks(
    name: str, size: int, chunk: int, native: bool
) -> None:
    """A cache that is too small for all, so that some are preempted; freed blocks are not numbers.
    The reference differs in the last bits, and in nothing else."""
    model = decoder(name)
    windows = engines.runner(model, 99, size).cache.windows
    blocks = 5 * blocks_needed(-(-120 // size), size, windows) // 4
    engine = engines.engine(model, block_size=size, blocks=blocks, chunk=chunk, native=native)
    answers, _ = engines.complete(engine, prompts(), GREEDY)
    for answer, expected in zip(answers, crowd(name), strict=True):
        if native:
            assert answer == expected
        else:
            assert [token.id for token in answer] == [token.id for token in expected]
    assert engine.pool.live == 0
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_known_prefix_changes_nothing_but_what_is_computed(name: str) -> None:
    engine = engines.engine(decoder(name), block_size=4, blocks=2000, chunk=16)
    for turn in range(2):
        for prompt, expected in zip(prompts(), crowd(name), strict=True):
            (answer,), (usage,) = engines.complete(engine, [prompt], GREEDY)
            assert answer == expected
            found = (len(prompt) - 1) // 4 * 4
            assert usage.cached == (found if turn else usage.cached)
    # The next turn of a chat: all that was said is known, but for the last token.
    prompt, answer = prompts()[4], crowd(name)[4]
    said = [*prompt, *(token.id for token in answer)]
    _, (usage,) = engines.complete(engine, [(*said, 5, 6)], replace(GREEDY, max_tokens=3))
    assert usage.cached == (len(said) - 1) // 4 * 4


@pytest.mark.parametrize(
    ("name", "speculation", "blocks"),
    [
        *((name, name, 2000) for name in MODELS),
        *(("mixed", "lookup", 240), ("one window", "lookup", 60), ("dynamic", "mixed", 200)),
        *(("mixed", "one window", 240), ("one window", "longrope", 60)),
    ],
)
def test_drafts_of_whatever_model_change_nothing(name: str, speculation: str, blocks: int) -> None:
    """Also where the cache is so small that somebody is preempted; a draft's has the same size."""
    drafting = "lookup" if speculation == "lookup" else "draft"
    draft = None if speculation == "lookup" else decoder(speculation)
    engine = engines.engine(
        decoder(name), block_size=4, blocks=blocks, chunk=50, speculation=drafting, draft=draft
    )
    if draft is not None:  # what the draft has not computed is no number
        drafter = engine.drafting._drafters["draft"]._drafter
        drafter.runner.cache.poison(list(range(blocks)))
    repeated = [prompt * 2 for prompt in prompts()[2:5]]
    asked = replace(GREEDY, max_tokens=50)
    expected, _ = engines.complete(engines.engine(decoder(name)), repeated, asked)
    answers, usage = engines.complete(engine, repeated, asked)
    assert answers == expected
    assert sum(one.draft_proposed for one in usage) > 0
    if speculation == name:  # the draft is the target: every guess is right
        assert all(one.draft_accepted == one.draft_proposed > 35 for one in usage)
    assert engine.pool.live == 0
    if draft is not None:
        assert drafter.pool.live == 0


def test_a_sequence_turns_as_its_request_may_come_to_be_from_the_beginning_on() -> None:
    """The same where an answer is gone on with elsewhere: what was made counts no more as asked
    for. And two lengths never share a prefix."""
    engine = engines.engine(decoder("longrope"), block_size=4)
    prompt = prompts()[4]
    answers = {}
    for most in (40, 41):
        (answer,), (usage,) = engines.complete(engine, [prompt], replace(GREEDY, max_tokens=most))
        answers[most] = answer
        assert usage.cached == 0
        truth = whole(decoder("longrope"), list(prompt), len(prompt) + most)
        normaliser = float(log_normalisers(truth)[-1])
        assert answer[0].raw_logprob == float(truth[-1, answer[0].id]) - normaliser
    assert answers[40][0].raw_logprob != answers[41][0].raw_logprob
    made = answers[41][:7]
    rest = replace(GREEDY, max_tokens=34, first_output_position=7)
    elsewhere = engines.engine(decoder("longrope"), block_size=16)
    given = (*prompt, *(token.id for token in made))
    (gone_on,), _ = engines.complete(elsewhere, [given], rest)
    assert [*made, *gone_on] == answers[41]


def _peak(engine: Engine, ids: tuple[int, ...]) -> int:
    most = 0
    engine.add(Request("long", ids, engines.BINDING, score_from=len(ids) - 1))
    while engine.busy:
        engine.step()
        most = max(most, engine.pool.live)
    return most


@pytest.mark.slow
def test_a_window_takes_no_more_memory_for_32768_tokens_than_for_1024() -> None:
    config = new_config(
        **{**SIZES, "family": "gemma3_text", **_kinds(64, 64, 64, 64, 64, 0), "context": 32_768}
    )
    held = {}
    for layers in (config, replace(config, layers=5, layer_kinds=config.layer_kinds[:5])):
        model = Decoder(layers).eval().requires_grad_(False)
        model.init_weights(1)
        groups = len(engines.runner(model, 99, 16).cache.windows)
        for length in (1024, 32_768):
            engine = engines.engine(model, blocks=8192, chunk=256, prefix_cache=False)
            ids = tuple(random.Random(1).randrange(61) for _ in range(length))
            held[groups, length] = _peak(engine, ids)
    assert held[1, 1024] == held[1, 32_768] <= (64 + 256) // 16 + 1
    assert held[6, 32_768] <= 32_768 // 16 + 5 * held[1, 1024]
