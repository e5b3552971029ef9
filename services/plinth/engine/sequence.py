"""A request as the scheduler sees it: its ids, how many are computed, the blocks it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from plinth.engine.request import Finish, Request, Usage
from plinth.engine.tables import Tables


@dataclass(eq=False)
class Sequence:
    """Mutable state of one request.

    `ids` is the input and what was sampled; keys and values exist for the first `computed`.
    `block_keys` are the keys of the leading blocks that are full. `drafts` are proposals for
    the tokens after `ids`; `draft_length` adapts to how many were accepted.
    """

    number: int
    request: Request
    ids: list[int]
    salt: str
    computed: int = 0
    tables: Tables = field(default_factory=Tables)
    block_keys: list[bytes] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    draft_length: int = 4
    draft_rest: int = 0
    # Whether it turns as long sequences do: as its request may come to be, from its beginning on.
    long: bool = False
    scores: list[float] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish: Finish | None = None
    admitted: bool = False
    # Sorts the most urgent first: level of priority, then age. The scheduler's.
    rank: tuple[int, int] = (0, 0)

    @property
    def pending(self) -> int:
        """Known tokens without keys and values."""
        return len(self.ids) - self.computed

    @property
    def made(self) -> int:
        """Tokens sampled so far."""
        return len(self.ids) - len(self.request.ids)

    @property
    def output_position(self) -> int:
        """Position, in the whole answer, of the next token to be sampled."""
        return self.request.sampling.first_output_position + self.made

    @property
    def scoring(self) -> bool:
        """Whether log-probabilities of the input are wanted instead of new tokens."""
        return self.request.score_from is not None

    def allowance(self, limit: int) -> int:
        """Tokens that may still be made, within `limit` positions."""
        return min(self.request.sampling.max_tokens - self.made, limit - len(self.ids))
