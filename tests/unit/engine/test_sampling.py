"""Sampling against enumeration: the exact distribution, with filters, with and without drafts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import checkpoints
import engines
from plinth.engine.noise import uniforms
from plinth.engine.request import Sampling
from plinth.engine.sampling import distribution, draw, sample
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.weights import load_decoder

VOCAB, LENGTH = 4, 3


@settings(max_examples=60)
@given(
    st.lists(st.integers(-400, 400), min_size=2, max_size=40, unique=True),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.integers(0, 50),
    st.sampled_from([0.2, 0.7, 0.95, 1.0]),
)
def test_filters_equal_transformers(
    values: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.array(values, dtype=np.float32) / 50
    kept, probabilities = distribution(
        logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    scores = torch.from_numpy(logits.astype(np.float64)).unsqueeze(0)
    empty = torch.zeros(1, 0, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(empty, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(empty, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(empty, scores)
    truth = scores.softmax(-1)[0].numpy()
    ours = np.zeros(len(values))
    ours[kept] = probabilities
    assert ours == pytest.approx(truth, abs=1e-9)


def test_noise_is_uniform_and_keyed() -> None:
    noise = uniforms(5, 0, 9, 50_000)
    assert scipy.stats.kstest(noise, "uniform").pvalue > 1e-3
    assert (noise == uniforms(5, 0, 9, 50_000)).all()
    for other in (uniforms(6, 0, 9, 50_000), uniforms(5, 1, 9, 50_000), uniforms(5, 0, 10, 50_000)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.03


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder: Path = checkpoints.random_llama(
        tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB, hidden=16, layers=2, heads=2, kv_heads=1
    )
    return load_decoder(folder)


def _enumerate(decoder: Decoder, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of LENGTH tokens, from the whole forward pass."""
    backend = SdpaBackend(1, len(prompt) + LENGTH)
    truth = {}
    for tail in itertools.product(range(VOCAB), repeat=LENGTH):
        ids = torch.tensor([*prompt, *tail])
        with torch.no_grad():
            hidden = decoder(ids, torch.arange(len(ids)), backend)
            logprobs = decoder.logits(hidden, backend).double().log_softmax(-1)
        terms = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(tail)]
        truth[tail] = math.exp(sum(terms))
    return truth


@pytest.mark.parametrize("speculation", ["off", "lookup", "draft"])
def test_whole_sequences_have_the_enumerated_distribution(tiny: Decoder, speculation: str) -> None:
    prompt, seeds = (1, 2, 3, 1, 2, 3, 1, 2), 3000
    truth = _enumerate(tiny, prompt)
    assert sum(truth.values()) == pytest.approx(1)
    draft = Decoder(tiny.config)
    draft.init_weights(99)  # a bad draft: most of its guesses are rejected
    engine = engines.engine(tiny, speculation=speculation, draft=draft)
    plain = engines.engine(tiny)
    seen: Counter[tuple[int, ...]] = Counter()
    proposed = accepted = 0
    for seed in range(seeds):
        sampling = Sampling(seed=seed, max_tokens=LENGTH)
        answers, usage = engines.complete(engine, [prompt], sampling)
        ids = tuple(token.id for token in answers[0])
        seen[ids] += 1
        proposed += usage[0].draft_proposed
        accepted += usage[0].draft_accepted
        if seed < 200:
            assert engines.complete(plain, [prompt], sampling)[0] == answers
    expected = [truth[key] * seeds for key in truth]
    observed = [seen[key] for key in truth]
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3
    if speculation != "off":
        assert 0 < accepted < proposed


@pytest.mark.parametrize("vocabulary", [5, 32, 301, 49_152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_row_gets_the_same_bits_alone_and_in_a_crowd(vocabulary: int, temperature: float) -> None:
    """Greedy, filtered and free rows mixed; and what is raced together is what `draw` draws."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(24, vocabulary, generator=generator) * 4
    kinds = [
        {"temperature": temperature},
        {"temperature": temperature, "top_k": 3},
        {"temperature": 0.0},
        {"temperature": 1.0},
    ]
    choices = [(Sampling(seed=row, **kinds[row % 4]), 7 * row) for row in range(24)]
    crowd = sample(logits, choices)
    for row, choice in enumerate(choices):
        assert sample(logits[row : row + 1], [choice]) == [crowd[row]]
        if row % 4 != 2:
            drawn = draw(logits[row].numpy(), *choice)
            assert (crowd[row].id, crowd[row].logprob) == pytest.approx(drawn, abs=2e-6)
        raw = torch.log_softmax(logits[row].double(), -1)[crowd[row].id]
        assert crowd[row].raw_logprob == pytest.approx(float(raw), abs=1e-5)


@settings(max_examples=150)
@given(
    st.integers(1, 400),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.sampled_from([0.05, 0.6, 1.0, 3.0]),
    st.sampled_from([0.0, 1e-6, 1.0, 30.0]),
)
def test_the_kernel_names_the_winner_of_double_precision(
    vocabulary: int, seed: int, position: int, temperature: float, spread: float
) -> None:
    """Flat rows, where the noise alone decides, and steep ones; some tokens ruled out."""
    generator = torch.Generator().manual_seed(seed % 1000)
    logits = torch.randn(4, vocabulary, generator=generator) * spread
    logits[1, vocabulary // 2 + 1 :] = -torch.inf
    logits[2] += 1000.0
    choices = [
        (Sampling(temperature=temperature, seed=seed, sample_index=row), position)
        for row in range(4)
    ]
    for row, token in enumerate(sample(logits, choices)):
        winner, logprob = draw(logits[row].numpy(), *choices[row])
        assert token.id == winner
        assert token.logprob == pytest.approx(logprob, abs=1e-5)
