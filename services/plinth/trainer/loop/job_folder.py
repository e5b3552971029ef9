"""What a run and those who watch it tell one another, as files in the job's folder.

config.json    the run (written before it starts)
progress.json  where it stands, replaced whole
control        "cancel" or "pause", written by whoever wants it to stop at its next step
trace          the traceparent of the attempt, empty where nobody traces
outcome.json   how it ended; while it is there, a restarted worker has nothing to do
checkpoints/   see `trainer.checkpoint`
model/         the trained model, once it is complete
adapter/       before it, the adapter that was merged into it, where one was trained
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from plinth.shared.errors import ERROR_TYPES, Internal, PlinthError, ResourceExhausted
from plinth.trainer.disk import disk_error
from plinth.trainer.finite import require_finite_figures

CONTROLS = ("cancel", "pause")
ATTEMPT = "attempt-"  # before the number of an attempt, as the folder of a job's attempt is named

# Of an error, beside its code: all that decides what becomes of the job.
_ERROR = ("message", "reason", "field", "retry_after_s", "metadata")


# What is counted: the API's ProgressUnit.
ProgressUnit = Literal["step", "byte", "model"]


@dataclass
class JobProgress:
    """As `JobProgress` of the protocol. Rates are tokens per second, times are seconds."""

    done: int
    total: int
    unit: ProgressUnit = "step"
    loss: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens_per_second: float = 0.0
    eta_seconds: float = 0.0
    validation_bits_per_byte: float | None = None
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)  # what else is counted, by name


class JobFolder:
    """Typed access to the files above."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.adapter = path / "adapter"

    @property
    def job_id(self) -> str:
        """Of the job: the folder's name, or of an attempt's folder the name of the one around."""
        path = self.path
        return path.parent.name if path.name.startswith(ATTEMPT) else path.name

    def write_progress(self, progress: JobProgress) -> None:
        """ResourceExhausted when the disk is full."""
        replace_json(self.path / "progress.json", asdict(progress))

    def progress(self) -> JobProgress | None:
        value = _read_json(self.path / "progress.json")
        return None if value is None else JobProgress(**value)

    def request(self, control: str) -> None:
        """Ask the run to stop: "cancel" for good, "pause" to go on later."""
        assert control in CONTROLS
        temporary = self.path / ".control"
        temporary.write_text(control)
        temporary.replace(self.path / "control")

    def requested(self) -> str | None:
        path = self.path / "control"
        return path.read_text() if path.exists() else None

    def end(self, status: str, *, error: PlinthError | None = None, **facts: Any) -> None:
        """Record how the run ended: "succeeded", "failed", "cancelled" or "paused".

        FailedPrecondition where it would have succeeded with a figure that is no finite number.
        """
        if status == "succeeded":
            require_finite_figures(facts, "the run's figures")
        value: dict[str, Any] = {"status": status, **facts}
        if error is not None:
            value["error"] = {"code": error.code, **{name: getattr(error, name) for name in _ERROR}}
        try:
            replace_json(self.path / "outcome.json", value)
        except ResourceExhausted:  # a full disk must be told of too: in what progress took
            (self.path / "progress.json").unlink(missing_ok=True)
            replace_json(self.path / "outcome.json", value)

    def outcome(self) -> dict[str, Any] | None:
        return _read_json(self.path / "outcome.json")

    def error(self) -> PlinthError | None:
        """The typed error of a failed run."""
        found = (self.outcome() or {}).get("error")
        if found is None:
            return None
        said = {name: found[name] for name in _ERROR if name in found}
        return ERROR_TYPES.get(found["code"], Internal)(**said)

    def begin(self) -> None:
        """Forget an earlier attempt's end; its checkpoints stay."""
        for name in ("outcome.json", "control"):
            (self.path / name).unlink(missing_ok=True)


class Throttle:
    """True at most once per interval, and at once the first time."""

    def __init__(self, interval_s: float) -> None:
        self._interval, self._last = interval_s, float("-inf")

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._interval:
            return False
        self._last = now
        return True


def replace_json(path: Path, value: dict[str, Any]) -> None:
    """A reader sees the old file or the new one, never half of one. ResourceExhausted or DataLoss
    where it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
    except OSError as failed:
        temporary.unlink(missing_ok=True)
        raise disk_error(failed, path.parent, path.stem) from failed


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text())
    return value
