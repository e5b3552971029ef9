"""How the prompts that run share the tokens of a step that decodes leave."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

from plinth.engine.sequence import Sequence

# A prompt of this part of a step is short: it is worth a step without long ones.
_SHORT = 8


class PromptShares:
    """Half of the tokens go to the most urgent, so that the oldest is never held up for long; the
    rest to those with the least left to do, so that a short prompt does not wait behind a long one.
    And in every other step long prompts stand back for short ones, whose first token then comes as
    soon as if they were alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._short = max(1, batch_tokens // _SHORT)
        self.long_waits = False  # long prompts stood back in the last step

    def of(self, prompts: Many[Sequence], budget: int) -> list[int]:
        """How many of `budget` tokens each prompt gets, in the order given (the most urgent first).
        To be asked once a step, or again where nothing came of it."""
        shares = [0] * len(prompts)
        top = prompts[0].request.priority if prompts else 0
        short = [
            i
            for i, s in enumerate(prompts)
            if s.pending <= self._short and s.request.priority >= top
        ]
        self.long_waits = not self.long_waits and 0 < len(short) < len(prompts)
        chosen = short if self.long_waits else range(len(prompts))
        by_length = sorted(chosen, key=lambda i: (-prompts[i].request.priority, prompts[i].pending))

        def give(order: Iterable[int], tokens: int) -> None:
            for i in order:
                more = min(prompts[i].pending - shares[i], tokens)
                shares[i] += more
                tokens -= more

        give(chosen, -(-budget // 2))
        give(by_length, budget - sum(shares))
        return shares
