"""The real model: 20 chats served together give transformers' greedy tokens, drafts or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import checkpoints
import engines
from plinth.engine.request import Sampling
from plinth.models.decoder import Decoder
from plinth.models.weights import load_decoder

NEAR_TIE = 1e-5
SUBJECTS = (
    "the capital of France", "rain", "a prime number", "the moon", "bread", "photosynthesis",
    "a binary search", "the French Revolution", "gravity", "a haiku", "recursion", "the sea",
    "an atom", "a library", "chess", "the heart", "a volcano", "democracy", "a violin", "sleep",
)  # fmt: skip
NEW = 128


def _chats(folder: Path) -> list[tuple[int, ...]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chats = []
    for subject in SUBJECTS:
        messages = [{"role": "user", "content": f"Tell me about {subject}."}]
        chats.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    return [tuple(chat["input_ids"]) for chat in chats]


def _shorter(decoder: Decoder, layers: int) -> Decoder:
    """The model's own first layers and its head."""
    short = Decoder(replace(decoder.config, layers=layers))
    short.load_state_dict(decoder.state_dict(), strict=False)
    return short


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_chats_equal_transformers() -> None:
    folder = checkpoints.smollm2_folder()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chats = _chats(folder)
    decoder = load_decoder(folder)
    stop = frozenset(decoder.config.eos_ids)
    sampling = Sampling(temperature=0, max_tokens=NEW, stop_ids=stop)
    # Caches too small for all twenty together: some are preempted on the way.
    together = engines.engine(decoder, blocks=120, chunk=256)
    answers, _ = engines.complete(together, chats, sampling)
    assert together.scheduler.preemptions > 0
    ties = 0
    for chat, answer in zip(chats, answers, strict=True):
        ids = [token.id for token in answer]
        with torch.no_grad():
            logits = model(torch.tensor([[*chat, *ids]])).logits[0, len(chat) - 1 :]
        best = logits.topk(2, dim=-1)
        for i, token in enumerate(answer):
            if token.id != int(best.indices[i, 0]):
                assert float(best.values[i, 0] - best.values[i, 1]) <= NEAR_TIE
                ties += 1
            truth = float(logits[i].log_softmax(-1)[token.id])
            assert token.raw_logprob == pytest.approx(truth, abs=1e-4)
        if len(ids) < NEW:  # it stopped where the reference stops
            assert int(best.indices[len(ids), 0]) in stop
    print(f"near-ties excused: {ties} of {sum(map(len, answers))} tokens")

    for speculation in ("lookup", "draft"):
        drafted = engines.engine(
            decoder, speculation=speculation, draft=_shorter(decoder, 10), blocks=300
        )
        sample, usage = engines.complete(drafted, chats[:3], sampling)
        assert sample == answers[:3]
        assert sum(one.draft_proposed for one in usage) > 0
