"""What a check found: of this machine (`plinth doctor`) or of a cluster (`plinth k8s doctor`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check. level: ok, warn (works, but…) or fail (it can't run); advice if not ok."""

    check: str
    level: str
    found: str
    advice: str = ""
