"""Times of records (milliseconds since 1970) and of the API (google.protobuf.Timestamp)."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(unix_ms: int) -> Timestamp | None:
    """None for 0: a time that has not come."""
    return Timestamp(seconds=unix_ms // 1000, nanos=unix_ms % 1000 * 1_000_000) if unix_ms else None


def unix_ms(time: Timestamp) -> int:
    """Whole milliseconds."""
    return int(time.seconds * 1000 + time.nanos // 1_000_000)


def instant(time: Timestamp) -> datetime | None:
    """For filters; None for a time that has not come."""
    return moment(unix_ms(time)) if time.ByteSize() else None


def moment(unix_ms: int) -> datetime:
    """For filters."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def duration(seconds: float) -> Duration:
    """To the microsecond."""
    whole = Duration()
    whole.FromMicroseconds(round(seconds * 1e6))
    return whole


def seconds(given: Duration) -> float:
    return float(given.ToMicroseconds() / 1e6)
