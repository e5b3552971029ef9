"""What an operation did: for people, and as the commands that do the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class CommandOutcome:
    """notes: what happened, a line each. equivalents: kubectl or helm commands, in order."""

    notes: list[str] = field(default_factory=list)
    equivalents: list[str] = field(default_factory=list)


def command(*words: str) -> str:
    """A command line that a shell reads back as these words."""
    return shlex.join(words)


def kubectl(namespace: str, *words: str) -> str:
    return command("kubectl", "-n", namespace, *words)


def helm_set(release: str, namespace: str, values: Iterable[str]) -> str:
    """What keeps a change beyond the next upgrade. CHART: wherever it was installed from."""
    sets = [word for value in values for word in ("--set", value)]
    return command("helm", "upgrade", release, "CHART", "-n", namespace, "--reuse-values", *sets)
