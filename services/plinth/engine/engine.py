"""The engine: requests in, events out, one step at a time.

`step()` is the whole path: expire, draft, schedule, launch, commit. The three calls that the
design names (`schedule`, `launch`, `commit`) can be made one by one; the engine knows no
threads, no transport and no text. It is driven by one thread; `add` and `abort` belong to it too.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

from plinth.engine.blocks import BlockPool
from plinth.engine.drafting import Drafting
from plinth.engine.isolation import NON_FINITE, Outcome, run_alone, run_isolated, step_failed
from plinth.engine.plan import Plan, Row
from plinth.engine.request import (
    Event,
    FailedEvent,
    Finish,
    Request,
    SampledToken,
    ScoresEvent,
    TokensEvent,
    validate,
)
from plinth.engine.runner import RowResult, Runner
from plinth.engine.scheduler import Limits, Scheduler
from plinth.engine.sequence import Sequence
from plinth.engine.speculation import Drafter
from plinth.engine.tables import Tables, most_positions
from plinth.engine.verification import first_tokens, verify
from plinth.shared.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
)

_log = logging.getLogger(__name__)
_TELL_EVERY_S = 60.0


@dataclass(frozen=True)
class Launched:
    """The rows of a plan that was carried out, with what came of each: a result, or why there is
    none. A row whose drafts could not be computed has none."""

    rows: list[tuple[Row, Outcome]]


@dataclass(frozen=True)
class Load:
    """What a router wants to know."""

    running: int
    waiting: int
    kv_usage: float
    steps: int


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        prefix_cache: bool = True,
        drafters: dict[str, Drafter] | None = None,
        speculation: str = "off",
        weights_digest: str = "",
        poison: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`drafters` by name ("lookup", "draft"); `speculation` is the default among them."""
        config = runner.decoder.config
        cache = runner.cache
        self.runner, self.weights_digest, self.clock = runner, weights_digest, clock
        size, windows = cache.block_size, cache.windows
        context = min(limits.positions, config.context)
        self.limits = replace(
            limits, positions=most_positions(cache.blocks, size, windows, context)
        )
        self.pool = BlockPool(cache.blocks, size, windows=windows, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(self.pool, self.limits)
        self.drafting = Drafting(drafters or {}, speculation, config.vocab_size)
        self.steps = self.passes = 0  # a step is one pass, unless rows have to be told apart
        self._poison = poison
        self._numbers = itertools.count(1)
        self._by_id: dict[str, Sequence] = {}
        self._by_number: dict[int, Sequence] = {}
        self._failed: list[Event] = []
        self._under_way = (0, clock())
        self._tell_again = clock()

    # -- requests ---------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises InvalidArgument (bad parameters, over-long prompt, a binding that is not held),
        ResourceExhausted (queue full).
        """
        validate(
            request,
            vocab_size=self.runner.decoder.config.vocab_size,
            limit=self.limits.positions,
        )
        if request.id in self._by_id:
            raise InvalidArgument(f"request id {request.id!r} is in use", field="request_id")
        binding = request.binding
        if binding.weights_digest not in ("", self.weights_digest):
            raise InvalidArgument(
                f"weights {binding.weights_digest} are not held here, {self.weights_digest} are",
                reason="unknown_binding",
                field="binding.weights_digest",
            )
        if binding.adapter or binding.quantization not in ("", "fp32"):
            raise InvalidArgument(
                "this shard holds no adapters and no quantised weights", field="binding"
            )
        if request.sampling.speculation in ("lookup", "draft") and (
            request.sampling.speculation not in self.drafting.names
        ):
            raise InvalidArgument(
                f"this shard has no drafter {request.sampling.speculation!r}; "
                f"it has {self.drafting.names or 'none'}",
                field="speculation",
            )
        long = self.runner.decoder.config.rope_offset(request.length) > 0
        salt = "\0".join(
            (
                *(self.weights_digest, binding.adapter, binding.quantization, request.tenant),
                "long" if long else "",
            )
        )
        sequence = Sequence(next(self._numbers), request, list(request.ids), salt, long=long)
        sequence.usage.prompt = len(request.ids) - request.sampling.first_output_position
        displaced = self.scheduler.add(sequence)
        self._by_id[request.id] = sequence
        self._by_number[sequence.number] = sequence
        if displaced is not None:
            full = "more urgent requests took the place of this one in the queue; try again later"
            error = ResourceExhausted(full, reason="queue_full", retry_after_s=1.0)
            self._failed.append(self._fail(displaced, error))

    def abort(self, request_id: str, reason: Finish = Finish.CANCELLED) -> Event | None:
        """End a request now; its blocks are free when this returns. None if it is not here."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        return self._end(sequence, reason, ())

    def renew_weights(self) -> str:
        """The decoder's tensors have new values: take them, between requests; their digest.

        What the prefix cache holds belongs to the old digest and is never found again. Raises
        FailedPrecondition while requests run, whose keys and values are of the old weights.
        """
        if self.busy:
            raise FailedPrecondition(f"{len(self._by_id)} requests run on the old weights")
        self.weights_digest = self.runner.renew_weights()
        return self.weights_digest

    @property
    def busy(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self._by_id)

    def load(self) -> Load:
        """Sequences running and waiting, share of blocks that are live, steps made."""
        return Load(
            len(self.scheduler.running),
            len(self.scheduler.waiting),
            self.pool.live / self.pool.total,
            self.steps,
        )

    # -- one step ---------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Expire, draft, schedule, launch, commit.

        What goes wrong with one request ends that request, with a FailedEvent. Raises where the
        engine itself is broken: when nothing that it is given can be computed.
        """
        events = self.expire()
        plan = self.schedule()
        events += self.take_failed()
        if plan.rows:
            events += self.commit(self.launch(plan))
        return events

    def expire(self) -> list[Event]:
        """End what is past its deadline."""
        now = self.clock()
        late = [
            s
            for s in self.scheduler.sequences()
            if s.request.deadline is not None and s.request.deadline <= now
        ]
        return [self._end(sequence, Finish.DEADLINE, ()) for sequence in late]

    def schedule(self) -> Plan:
        """Propose drafts, then plan the step."""
        while True:
            self.scheduler.at = None
            try:
                self.drafting.draft(self.scheduler, self.limits.positions)
                plan = self.scheduler.schedule()
                break
            except Exception as error:
                # Planning is done for one sequence at a time; each failure takes one away.
                if self.scheduler.at is None:
                    raise
                self._failed.append(self._fail(self.scheduler.at, error))
        self._poison_emptied()
        return plan

    def take_failed(self) -> list[Event]:
        """Requests that could not be planned since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def launch(self, plan: Plan) -> Launched:
        """Compute the plan's rows. Raises where all of them failed, and a trial row fails too."""
        vocab_size = self.runner.decoder.config.vocab_size
        rows = run_isolated(self._run, plan.rows, vocab_size, self._repeated)
        errors = [outcome for _, outcome in rows if isinstance(outcome, PlinthError)]
        if len(errors) == len(rows) and not self._works():
            raise DataLoss(
                f"the model computes nothing any more: {errors[0].message}", reason=errors[0].reason
            ) from errors[0]
        return Launched(rows)

    def commit(self, launched: Launched) -> list[Event]:
        """Sample, verify drafts, advance every sequence; the events of this step."""
        events: list[Event] = []
        self.steps += 1
        first = self._first_tokens(launched)
        for row, outcome in launched.rows:
            sequence = self._by_number.get(row.sequence)
            if sequence is None:  # aborted since it was planned
                continue
            try:
                event = self._commit_row(sequence, row, outcome, first.get(row.sequence))
            except Exception as error:  # noqa: BLE001 - told to the request that it belongs to
                event = self._fail(sequence, error)
            if event is not None:
                events.append(event)
        self._poison_emptied()
        return events

    @property
    def under_way(self) -> tuple[int, float]:
        """Tokens of the last pass through the model, and when it began (on the engine's clock);
        another thread may read it to tell a long pass from a hang."""
        return self._under_way

    # -- details ----------------------------------------------------------------------------

    def _run(self, rows: Many[Row]) -> list[RowResult]:
        """One pass through the model."""
        self.passes += 1
        self._under_way = (sum(len(row.tokens) for row in rows), self.clock())
        return self.runner.run_rows(rows)

    def _works(self) -> bool:
        """Whether the model can compute a token at all, tried on blocks that nobody holds; True
        where there are none to try it on."""
        tables = Tables()
        if not self.pool.reserve(tables, 1):
            return True
        trial = Row(0, 0, (0,), tables.plain(), outputs=1)
        outcome = run_alone(self._run, trial, self.runner.decoder.config.vocab_size)
        self.scheduler.release(tables.held())
        return not isinstance(outcome, PlinthError)

    def _repeated(self, error: Exception) -> None:
        """A batch that always fails, though its rows do not, costs time and shows nowhere else."""
        now = self.clock()
        if now >= self._tell_again:
            self._tell_again = now + _TELL_EVERY_S
            _log.warning("a step failed and is computed row by row: %r", error, exc_info=error)

    def _first_tokens(self, launched: Launched) -> dict[int, SampledToken]:
        """The first token of every row that has one, sampled together; none where that fails:
        then each row is sampled by itself."""
        done = [(row, out) for row, out in launched.rows if not isinstance(out, PlinthError)]
        try:
            return first_tokens(done, self._by_number)
        except Exception:  # noqa: BLE001 - it is raised again for the row that it belongs to
            return {}

    def _commit_row(
        self, sequence: Sequence, row: Row, result: Outcome, first: SampledToken | None
    ) -> Event | None:
        if isinstance(result, PlinthError):
            raise result
        sequence.scores += result.scores
        computed = row.start + len(row.tokens) - row.drafts
        if result.logits_mv is None:
            self.scheduler.advance(sequence, computed)
            if sequence.scoring and computed == len(sequence.ids):
                return self._end(sequence, None, ())
            return None
        if first is None:
            first = first_tokens([(row, result)], self._by_number)[row.sequence]
        before = len(sequence.ids)
        tokens, finish = verify(sequence, row, result, first, self.limits.positions)
        accepted = max(0, len(tokens) - 1) if row.drafts else 0
        self.drafting.commit(sequence, row.drafts, accepted, before)
        sequence.usage.completion += len(tokens)
        self.scheduler.advance(sequence, computed + accepted)
        if finish is not None:
            return self._end(sequence, finish, tokens)
        return TokensEvent(sequence.request.id, tokens, None, sequence.usage)

    def _end(
        self, sequence: Sequence, finish: Finish | None, tokens: tuple[SampledToken, ...]
    ) -> Event:
        sequence.finish = finish
        self._forget(sequence)
        if sequence.scoring:
            return ScoresEvent(sequence.request.id, tuple(sequence.scores), finish)
        return TokensEvent(sequence.request.id, tokens, finish, sequence.usage)

    def _forget(self, sequence: Sequence, *, damaged: bool = False) -> None:
        self.scheduler.remove(sequence, damaged=damaged)
        del self._by_id[sequence.request.id]
        del self._by_number[sequence.number]
        self.drafting.forget(sequence)
        self._poison_emptied()

    def _fail(self, sequence: Sequence, error: Exception) -> Event:
        """End a request that can't go on. Where its numbers are not finite, what it found in the
        prefix cache may be why."""
        told = step_failed(error)
        self._forget(sequence, damaged=told.reason == NON_FINITE)
        return FailedEvent(sequence.request.id, told)

    def _poison_emptied(self) -> None:
        emptied = self.scheduler.take_emptied()
        if self._poison and emptied:
            self.runner.cache.poison(emptied)
