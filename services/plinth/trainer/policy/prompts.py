"""Prompts of a dataset, and answers to them by a model as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plinth.engine.request import Sampling
from plinth.engine.weight_set import RUNNING, engine_over
from plinth.models.decoder import Decoder
from plinth.trainer.data.shards import Split
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.loop import hash_seed
from plinth.trainer.policy.rollouts import EngineSampler, Order, Rollout, RolloutSampler

HELD_OUT = 128  # prompts that are answered to compare models, at most
_SEED = 0x5EED

Prompt = tuple[int, ...]


def prompts_of(split: Split, longest: int) -> list[Prompt]:
    """What stands before the answers, each once, in the order of the split; `longest` in tokens."""
    found: dict[Prompt, None] = {}
    if split.info.form == "prompts":
        whole = (split.document(number)[0] for number in range(split.documents))
        return list(dict.fromkeys(tuple(ids.tolist()) for ids in whole if len(ids) <= longest))
    step = 2 if split.info.form == "pairs" else 1
    for number in range(0, split.documents, step):
        ids, mask = split.document(number)
        answers = np.flatnonzero(mask)
        if len(answers) and 0 < answers[0] <= longest:
            found[tuple(ids[: answers[0]].tolist())] = None
    return list(found)


def references_of(split: Split) -> dict[Prompt, Prompt]:
    """The answer that the dataset has for each prompt, of a pair the preferred one, of several the
    first; as ids. Of a chat of several turns it is that of the first. Prompts alone have none."""
    found: dict[Prompt, Prompt] = {}
    if split.info.form == "prompts":
        return found
    step = 2 if split.info.form == "pairs" else 1
    for number in range(0, split.documents, step):
        ids, mask = split.document(number)
        answers = np.flatnonzero(mask)
        if len(answers):
            prompt = tuple(ids[: answers[0]].tolist())
            first = answers[answers - answers[0] == np.arange(len(answers))]  # without a gap
            found.setdefault(prompt, tuple(ids[first].tolist()))
    return found


def sampler_for(decoder: Decoder, answers: int, device: str) -> EngineSampler:
    """An engine with room for `answers` at a time, over the decoder's own tensors."""
    running = min(answers, RUNNING)
    return EngineSampler(engine_over(decoder, running=running, waiting=answers, device=device))


def answer(
    sampler: RolloutSampler, prompts: Sequence[Prompt], policy: PolicyConfig, stop: frozenset[int]
) -> list[Rollout]:
    """One answer to each prompt, with the same noise for every model that is asked."""
    orders = [
        Order(group, prompt, 1, hash_seed(_SEED, group)) for group, prompt in enumerate(prompts)
    ]
    sampling = Sampling(policy.temperature, max_tokens=policy.max_new_tokens, stop_ids=stop)
    return sampler.sample(orders, sampling)
