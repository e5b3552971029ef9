"""A repository of a hub, brought to a local folder: names, revision, token, errors.

Takes configuration, safetensors, tokenizer and the card (for its licence), never code or pickles.
`HF_ENDPOINT` and `HF_TOKEN` are honoured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from plinth.shared.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
    Unavailable,
)

ALLOWED = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "README.md"]
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """A downloaded revision: `commit` is its hash on the hub, `license` what its card says."""

    folder: Path
    commit: str
    license: str


def parse_hub_name(source: str) -> tuple[str, str | None]:
    """`hf:org/name[@revision]` → ("org/name", revision or None)."""
    repository, _, revision = source.removeprefix("hf:").partition("@")
    if repository.count("/") > 1 or not repository.strip("/"):
        raise InvalidArgument(f"{source!r}: a hub name is hf:org/name or hf:org/name@revision")
    return repository, revision or None


def download(repository: str, revision: str | None, token: str | None, folder: Path) -> Snapshot:
    """Bring one commit's files into `folder`.

    Raises InvalidArgument (name), NotFound, PermissionDenied (gated), Unavailable (network).
    """
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(
            repository, revision=revision, timeout=TIMEOUT_S
        )
        commit = info.sha or ""
        snapshot_download(
            repository,
            revision=commit or revision,
            local_dir=folder,
            allow_patterns=ALLOWED,
            token=token,
            endpoint=endpoint,
            etag_timeout=TIMEOUT_S,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx2.HTTPError) as error:
        raise _explained(error, f"hf:{repository}", revision) from error
    license_name = getattr(info.card_data, "license", None) or next(
        (t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:")), ""
    )
    return Snapshot(folder, commit, str(license_name))


def _explained(error: Exception, name: str, revision: str | None) -> PlinthError:
    kinds: list[tuple[type[Exception], PlinthError]] = [
        # From the narrow to the wide: gated is a kind of "not found" there.
        (HFValidationError, InvalidArgument(f"{name}: not a valid repository name")),
        (GatedRepoError, PermissionDenied(f"{name}: gated; accept its terms and set HF_TOKEN")),
        (
            RepositoryNotFoundError,
            NotFound(f"{name}: no such repository, or it is private and HF_TOKEN is not set"),
        ),
        (RevisionNotFoundError, NotFound(f"{name}: no revision {revision!r}")),
    ]
    for kind, explained in kinds:
        if isinstance(error, kind):
            return explained
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return PermissionDenied(f"{name}: the hub answered {status}; check HF_TOKEN")
        return Unavailable(f"{name}: the hub answered {status}")
    return Unavailable(f"{name}: the hub cannot be reached ({type(error).__name__})")
