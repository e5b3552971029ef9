"""What a leader does: it drives the runs that have not ended, and leaves no canary of others."""

from __future__ import annotations

import asyncio

from plinth.coordinator import metrics
from plinth.coordinator.canaries import sweep
from plinth.coordinator.driver import RunDriver
from plinth.coordinator.leader import Leadership
from plinth.coordinator.performer import Performer
from plinth.coordinator.results import StepResults
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import Tools
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import Aborted, PlinthError, Unavailable
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.coordinator")


class Conductor:
    """What a leader does: one driver for each run that has not ended."""

    def __init__(self, records: RunRecords, feed: ChangeFeed, tools: Tools) -> None:
        self._records = records
        self._feed = feed
        self._tools = tools
        self._results = StepResults(tools.store)

    async def conduct(self, leadership: Leadership) -> None:
        """Until cancelled (the lead is lost, or this replica stops)."""
        drivers: dict[str, asyncio.Task[None]] = {}
        try:
            count, swept = 0, False
            while True:
                swept = not self._reap(drivers) and swept
                swept = swept or await self._sweep(leadership)
                active = await self._active()
                metrics.RUNS_ACTIVE.set(len(active))
                for run_id in active:
                    if run_id not in drivers:
                        driver = self._driver(run_id, leadership)
                        drivers[run_id] = asyncio.create_task(driver.drive())
                count = await self._feed.any_change(count)
        finally:
            metrics.RUNS_ACTIVE.set(0)
            await cancel_and_wait(*drivers.values())

    def _driver(self, run_id: str, leadership: Leadership) -> RunDriver:
        return RunDriver(
            run_id,
            records=self._records,
            feed=self._feed,
            store=self._tools.store,
            roots=self._tools.roots,
            performer=Performer(self._tools, self._results, leadership),
            leadership=leadership,
        )

    async def _sweep(self, leadership: Leadership) -> bool:
        """Whether no canary is left that outlived its run; else it is tried again."""
        try:
            await sweep(self._tools.under(leadership.fences()), self._records.active)
        except PlinthError as error:
            _log.warning("canaries of ended runs may be left", reason=error.message)
            return False
        return True

    async def _active(self) -> list[str]:
        try:
            return await self._records.active()
        except Unavailable:
            return []

    @staticmethod
    def _reap(drivers: dict[str, asyncio.Task[None]]) -> bool:
        """Forgets drivers that ended; a run whose driver broke gets a new one. Whether any did."""
        before = len(drivers)
        for run_id, task in list(drivers.items()):
            if not task.done():
                continue
            del drivers[run_id]
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Aborted | Unavailable):
                _log.info("a run is taken up again", run_id=run_id, reason=error.message)
            elif error is not None:
                _log.error("a run's driver broke", run_id=run_id, exc_info=error)
        return len(drivers) < before
