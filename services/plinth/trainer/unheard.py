"""Ends of jobs that nobody was there to tell: their replicas died, and the queue gave them up."""

from __future__ import annotations

import time
from contextlib import suppress

from plinth.shared.errors import DataLoss, NotFound
from plinth.shared.queue import Queue
from plinth.trainer.records import ENDED, JobRecords
from plinth.v1 import jobs_pb2 as pb

_LOOKED_AT = 50  # of the newest


async def tell_ends(queue: Queue, records: JobRecords) -> None:
    """Lets the records say what the queue knows: of dead letters that they failed, and of jobs
    whose holder died while it was to stop that they are cancelled. Unavailable."""
    for letter in await queue.dead_letters(limit=_LOOKED_AT):
        job = None
        with suppress(DataLoss):  # then there is no record that could say so
            job = await records.find(letter.id)
        if job is not None and job.state not in ENDED:
            job.state, job.error = pb.JOB_STATE_FAILED, letter.reason
            job.finished_unix_ms = time.time_ns() // 1_000_000
            await records.overwrite(job)
    for job_id in await queue.cancelled(limit=_LOOKED_AT):
        with suppress(DataLoss, NotFound):
            await records.cancel_waiting(job_id)
