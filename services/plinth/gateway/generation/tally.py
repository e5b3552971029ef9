"""What the answers to one request have cost so far, counted piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.generator import Prepared
from plinth.v1 import sampling_pb2


class Tally:
    """Prompts count once, however many samples were made of them."""

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        self._prompt = sum(len(one.prompt_ids) for one in prepared)
        self._made = sampling_pb2.Usage()

    def count(self, event: TextEvent) -> None:
        """Takes note of a piece of an answer."""
        self._made.completion_tokens += len(event.tokens)
        if event.usage is not None:  # known when its answer ends
            self._made.cached_tokens += event.usage.cached_tokens
            self._made.draft_proposed += event.usage.draft_proposed
            self._made.draft_accepted += event.usage.draft_accepted

    def usage(self) -> sampling_pb2.Usage:
        """Of what was counted so far."""
        usage = sampling_pb2.Usage(prompt_tokens=self._prompt)
        usage.MergeFrom(self._made)
        usage.cached_tokens = min(usage.cached_tokens, self._prompt)
        return usage
