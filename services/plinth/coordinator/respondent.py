"""A model on the store asked by way of the rollout queue: prompts in, sampled answers out, scored.

Whatever shards are up sample for it beside what they serve; the model need not be served. The same
prompts, model and seed give the same answers, whichever shards made them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plinth.coordinator.scoring import context_length, end_ids, read_config
from plinth.internal.v1 import rollouts_pb2, tokenizer_pb2
from plinth.shared.api.structs import struct_of
from plinth.shared.errors import DataLoss, FailedPrecondition
from plinth.shared.prompt_set import Prompt
from plinth.shared.rewards import RewardTasks, divided
from plinth.shared.rollout_results import RolloutResults, check_fits, raw_logprobs
from plinth.shared.rollouts import RolloutTasks
from plinth.shared.store import ArtifactRecord
from plinth.v1 import chat_pb2, rewards_pb2

if TYPE_CHECKING:
    from plinth.coordinator.steps.contract import Tools

_CALL = 256  # conversations and sequences of one call to the tokenizer
_SCORING_S = 1800.0


@dataclass(frozen=True)
class Sampled:
    """One answer. ids end with the stop token where it ended by itself; raw_logprobs are the
    model's own, before temperature; `reward` is None until it was scored."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    raw_logprobs: tuple[float, ...]
    ended: bool
    reward: float | None = None
    parts: Mapping[str, float] | None = None


class Respondent:
    """One model, as one run asks it. `name` makes the queue's ids."""

    def __init__(self, tools: Tools, model: ArtifactRecord, name: str) -> None:
        self._tools, self._model, self._name = tools, model, name

    async def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        heard: Callable[[int], None] = lambda _: None,
    ) -> list[Sampled]:
        """`samples` answers to each prompt, in order. `heard`: how many prompts are done.

        Raises FailedPrecondition (a prompt that leaves no room), and what `RolloutTasks` raises.
        """
        check_fits(samples, max_tokens)
        folder = await asyncio.to_thread(self._tools.store.fetch, self._model)
        context = context_length(await asyncio.to_thread(read_config, folder))
        rendered, stops = await self._rendered(prompts)
        # As it ends when it is served: by its template, and by what its files say.
        stops = list(dict.fromkeys([*stops, *await asyncio.to_thread(end_ids, folder)]))
        for prompt, ids in zip(prompts, rendered, strict=True):
            if len(ids) + max_tokens > context:
                raise FailedPrecondition(
                    f"the prompt {prompt.text[:80]!r} has {len(ids)} tokens; with max_tokens "
                    f"{max_tokens} that is more than the model's context of {context}"
                )
        weights = rollouts_pb2.PolicyWeights(run_id=self._name, folder=str(folder))
        tasks = [
            rollouts_pb2.RolloutTask(
                policy=weights,
                group=number,
                prompt_ids=ids,
                samples=samples,
                seed=_seed(seed, number),
                max_tokens=max_tokens,
                temperature=temperature,
                stop_ids=stops,
            )
            for number, ids in enumerate(rendered)
        ]
        stored = RolloutResults(lambda: self._tools.store.storage)
        results = await RolloutTasks(self._tools.redis, stored, heard=heard).answers(tasks)
        if len({result.weights_digest for result in results}) > 1:
            raise DataLoss(f"shards answered for {self._model.ref} with different weights")
        texts = iter(
            await self._texts([sample.ids for result in results for sample in result.samples])
        )
        return [
            Sampled(
                prompt,
                tuple(ids),
                tuple(sample.ids),
                next(texts),
                tuple(raw_logprobs(sample)),
                sample.ended,
            )
            for prompt, ids, result in zip(prompts, rendered, results, strict=True)
            for sample in result.samples
        ]

    async def scored(
        self, answers: Sequence[Sampled], sources: Sequence[rewards_pb2.RewardSource]
    ) -> list[Sampled]:
        """The same with their rewards, by the reward stage's queue. Raises what scoring raises;
        FailedPrecondition for an answer that can't be scored."""
        tasks = RewardTasks(self._tools.redis, self._name)
        ids = []
        for request in divided(sources, [_item(one) for one in answers]):
            content = request.SerializeToString(deterministic=True)
            id = f"{self._name}.{hashlib.sha256(content).hexdigest()[:32]}"
            await tasks.submit(id, request)
            ids.append(id)
        rewards: list[rewards_pb2.Reward] = []
        for id in ids:
            rewards += (await tasks.wait(id, timeout_s=_SCORING_S)).rewards
        return [_with(one, reward) for one, reward in zip(answers, rewards, strict=True)]

    async def _rendered(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[int]]:
        """(ids of each prompt with the answer's turn open, ids that end a turn)"""
        tokenizer = await self._tools.clients.tokenizer()
        conversations = [
            tokenizer_pb2.Conversation(
                messages=[chat_pb2.ChatMessage(role="user", content=prompt.text)],
                add_generation_prompt=True,
            )
            for prompt in prompts
        ]
        ids: list[list[int]] = []
        stops: list[int] = []
        for low in range(0, len(conversations), _CALL):
            answer = await tokenizer.ApplyChatTemplates(
                tokenizer_pb2.ApplyChatTemplatesRequest(
                    model=self._model.ref, conversations=conversations[low : low + _CALL]
                )
            )
            ids += [list(sequence.ids) for sequence in answer.sequences]
            stops = list(answer.stop_token_ids)
        return ids, stops

    async def _texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        tokenizer = await self._tools.clients.tokenizer()
        texts: list[str] = []
        for low in range(0, len(sequences), _CALL):
            answer = await tokenizer.Decode(
                tokenizer_pb2.DecodeRequest(
                    model=self._model.ref,
                    sequences=[
                        tokenizer_pb2.TokenIds(ids=ids) for ids in sequences[low : low + _CALL]
                    ],
                    skip_special=True,
                )
            )
            texts += answer.texts
        return texts


def _seed(seed: int, number: int) -> int:
    """A seed of its own for each prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}.{number}".encode()).digest()[:8], "big")


def _item(answer: Sampled) -> rewards_pb2.RewardItem:
    return rewards_pb2.RewardItem(
        prompt_messages=rewards_pb2.RewardMessages(
            messages=[chat_pb2.ChatMessage(role="user", content=answer.prompt.text)]
        ),
        response_text=answer.text,
        response_cut_off=not answer.ended,
        checks=[struct_of(check, "checks") for check in answer.prompt.checks],
    )


def _with(answer: Sampled, reward: rewards_pb2.Reward) -> Sampled:
    if not reward.HasField("total"):
        why = next(part for part in reward.parts if not part.HasField("value"))
        raise FailedPrecondition(
            f"the answer {answer.text[:80]!r} can't be scored by {why.source}: {why.reason}",
            reason="NOT_SCORED",
        )
    fields: dict[str, Any] = {**vars(answer)}
    fields["reward"] = reward.total
    fields["parts"] = {part.source: part.value for part in reward.parts}
    return Sampled(**fields)
