"""The engine against transformers: same checkpoint, same greedy tokens, close log-probabilities."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

import checkpoints
import engines
from plinth.engine.request import Request, Sampling

NEAR_TIE = 1e-5


def _prompts(vocab: int, count: int, seed: int) -> list[tuple[int, ...]]:
    dice = random.Random(seed)
    return [
        tuple(dice.randrange(3, vocab) for _ in range(dice.randrange(1, 90))) for _ in range(count)
    ]


def _truth(folder: Path, prompts: list[tuple[int, ...]], new: int) -> list[list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        answers.append(made[0, len(prompt) :].tolist())
    return answers


def _first_real_difference(
    folder: Path, prompt: tuple[int, ...], ours: list[int], theirs: list[int]
) -> str | None:
    """None where the answers are equal up to a near-tie of the reference's two best logits."""
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            logits = model(torch.tensor([[*prompt, *theirs[:i]]])).logits[0, -1]
            best = logits.detach().topk(2).values
            if float(best[0] - best[1]) <= NEAR_TIE:
                return None
            return f"token {i}: {mine} instead of {other}, gap {float(best[0] - best[1])}"
    return None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llama-tied": checkpoints.random_llama(root / "tied", tied=True),
        "llama-untied": checkpoints.random_llama(root / "untied", tied=False, heads=6, hidden=96),
        "gpt2": checkpoints.random_gpt2(root / "gpt2"),
        "mixtral": checkpoints.random_mixtral(
            root / "mixtral", sliding_window=9, tie_word_embeddings=False
        ),
        "qwen3_moe": checkpoints.random_qwen3_moe(root / "qwen3_moe"),
    }


@pytest.fixture(scope="module")
def truths(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    named = ("llama-tied", "llama-untied", "gpt2")
    return {name: _truth(folders[name], _prompts(300, 64, 1), 24) for name in named}


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "gpt2"])
@pytest.mark.parametrize(
    ("block_size", "blocks", "chunk", "native"),
    [(16, 512, 512, True), (4, 256, 7, True), (8, 30, 64, True), (5, 200, 64, False)],
)
def test_greedy_equals_transformers(
    folders: dict[str, Path],
    truths: dict[str, list[list[int]]],
    name: str,
    block_size: int,
    blocks: int,
    chunk: int,
    native: bool,
) -> None:
    """64 prompts of mixed length together; small caches force preemption."""
    engine = engines.engine(
        folders[name], block_size=block_size, blocks=blocks, chunk=chunk, native=native
    )
    prompts = _prompts(300, 64, 1)
    if not native:  # the reference is slow
        prompts = prompts[:12]
    answers, _ = engines.complete(engine, prompts, Sampling(temperature=0, max_tokens=24))
    for i, answer in enumerate(answers):
        ids = [token.id for token in answer]
        assert not _first_real_difference(folders[name], prompts[i], ids, truths[name][i])
    if blocks == 30:
        assert engine.scheduler.preemptions > 0
    assert engine.pool.live == 0
    assert engine.pool.free + engine.pool.cached == engine.pool.total


@pytest.mark.parametrize("name", ["llama-untied", "gpt2", "mixtral", "qwen3_moe"])
def test_logprobs_equal_transformers(folders: dict[str, Path], name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    prompts = _prompts(300, 8, 2)
    engine = engines.engine(folders[name], chunk=16)
    answers, _ = engines.complete(engine, prompts, Sampling(temperature=0, max_tokens=12))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *(token.id for token in answer)]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for i, token in enumerate(answer):
            truth = float(logprobs[len(prompt) + i - 1, token.id])
            assert token.raw_logprob == pytest.approx(truth, abs=1e-4)
        engine.add(Request("score", tuple(ids), engines.BINDING, score_from=1))
        scores: list[float] = []
        while engine.busy:
            for event in engine.step():
                scores = list(event.logprobs)
        truths = logprobs[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        assert scores == pytest.approx(truths.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "qwen3_moe"])
def test_same_bits_alone_and_in_a_crowd(folders: dict[str, Path], name: str) -> None:
    """Log-probabilities do not depend on company, chunks, blocks, threads or the cache."""
    prompts = _prompts(300, 20, 3)
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=7, max_tokens=16)
    crowd, _ = engines.complete(engines.engine(folders[name]), prompts, sampling)
    small = engines.engine(folders[name], block_size=4, blocks=60, chunk=9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for prompt, tokens in zip(prompts[:6], crowd, strict=False):
            alone, _ = engines.complete(small, [prompt], sampling)
            assert alone[0] == tokens
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("speculation", ["lookup", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing_but_speed(
    folders: dict[str, Path], speculation: str, temperature: float
) -> None:
    """Also with a cache that is small enough to preempt in the middle of drafts."""
    prompts = [prompt * 2 for prompt in _prompts(300, 4, 4)]
    # Two candidates per token: sampled text that repeats itself, so that there is what to look up.
    sampling = Sampling(temperature=temperature, top_k=2, seed=3, max_tokens=80)
    plain, _ = engines.complete(engines.engine(folders["llama-tied"]), prompts, sampling)
    for blocks in (400, 70):
        engine = engines.engine(
            folders["llama-tied"],
            block_size=4,
            blocks=blocks,
            speculation=speculation,
            draft=folders["llama-tied"] if speculation == "draft" else None,
        )
        drafted, usage = engines.complete(engine, prompts, sampling)
        assert drafted == plain
        assert sum(u.draft_proposed for u in usage) > 0
        if speculation == "draft":  # the draft is the target itself: every guess is right
            assert all(u.draft_accepted == u.draft_proposed for u in usage)
        assert engine.pool.live == 0
