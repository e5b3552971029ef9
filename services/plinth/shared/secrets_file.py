"""Secrets that one process hands to others on other machines: a file (0600), named by a variable.

Ray shows an application's variables in its dashboard and its logs, so what goes to a Ray that
somebody else runs is the name of a file in the data directory, which such a stack's nodes share.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Container, Mapping
from pathlib import Path

from plinth.shared.errors import DataLoss, FailedPrecondition

VARIABLE = "PLINTH_SECRETS_FILE"


def write_secrets(path: Path, values: Mapping[str, str]) -> None:
    """Replaces the file: settings by dotted key ("redis_url")."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(dict(values), file)
    staged.replace(path)


def read_secrets(path: Path) -> dict[str, str] | None:
    """What `write_secrets` wrote; None when there is no such file. FailedPrecondition when others
    can read it, DataLoss when it is no JSON object of strings."""
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise FailedPrecondition(f"{path} is readable by others (mode {mode:o}); chmod 600 it")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataLoss(f"{path} is no JSON") from error
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise DataLoss(f"{path} must hold an object of strings")
    return values


def handed_secrets(environment: Container[str]) -> dict[str, str]:
    """What was handed to this process by the file that PLINTH_SECRETS_FILE names; nothing where
    none is named. FailedPrecondition where the file is missing, unless the environment holds
    `redis_url` and `cluster_token` itself."""
    named = os.environ.get(VARIABLE)
    if not named:
        return {}
    found = read_secrets(Path(named))
    if found is None and not ("redis_url" in environment and "cluster_token" in environment):
        raise FailedPrecondition(
            f"{VARIABLE} names {named}, which this machine does not have: share the stack's "
            "data directory with all nodes of Ray, or set PLINTH_REDIS_URL and "
            "PLINTH_CLUSTER_TOKEN where a node's `ray start` runs",
            reason="SECRETS_MISSING",
        )
    return found or {}
