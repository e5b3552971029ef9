"""What a script said no to, as the error that its caller gets."""

from __future__ import annotations

from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PlinthError,
    ResourceExhausted,
)

# The script's word → (kind of error, reason, message).
_REFUSALS: dict[bytes, tuple[type[PlinthError], str, str]] = {
    b"unknown": (NotFound, "TASK_NOT_FOUND", "there is no {task}"),
    b"taken": (Aborted, "TASK_HELD", "another annotator holds {task} now; lease the next one"),
    b"judged": (AlreadyExists, "TASK_JUDGED", "{annotator} has judged {task} already"),
    b"held": (
        ResourceExhausted,
        "TOO_MANY_HELD",
        "{annotator} holds as many tasks as one annotator may; judge or release one",
    ),
    b"full": (
        ResourceExhausted,
        "TOO_MANY_JUDGES",
        "{task} has as many judgements by rules and models as it may",
    ),
    b"done": (
        FailedPrecondition,
        "TASK_DONE",
        "{task} has all the judgements that were wanted, or is closed",
    ),
    b"sampling": (
        FailedPrecondition,
        "TASK_NOT_READY",
        "{task} can't be judged yet: its responses are being sampled",
    ),
    b"failed": (
        FailedPrecondition,
        "TASK_FAILED",
        "{task} can't be judged: its responses could not be sampled",
    ),
    b"kept by lease": (
        FailedPrecondition,
        "TASK_HELD",
        "{task} is held by an annotator; close it, or delete it when the lease has ended",
    ),
    b"kept by judgement": (
        FailedPrecondition,
        "TASK_JUDGED",
        "{task} has judgements, which stay; close it, or delete its collection",
    ),
    b"expired": (
        Aborted,
        "LEASE_EXPIRED",
        "{annotator}'s lease {fence} of {task} ran out; lease it again",
    ),
    b"stale": (
        Aborted,
        "FENCE_STALE",
        "{task} is not held under fence {fence}: that lease was given back, or never was",
    ),
}


def refuse(
    word: bytes, collection: str, task_id: str, annotator: str = "", fence: int = 0
) -> PlinthError:
    """The error behind a script's word."""
    kind, reason, message = _REFUSALS[word]
    task = f"task {task_id} of collection {collection}"
    return kind(message.format(task=task, annotator=annotator, fence=fence), reason=reason)
