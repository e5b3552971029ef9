"""Who may make the next version of an artifact, and move its aliases. All calls block."""

from __future__ import annotations

from contextlib import suppress

from plinth.shared.api.owners import check_owner
from plinth.shared.errors import NotFound
from plinth.shared.identity import Principal
from plinth.shared.store import ArtifactRecord, ArtifactStore


def check_next_version(store: ArtifactStore, name: str, principal: Principal) -> None:
    """The bare name means the next version, too: PermissionDenied (OTHER_TENANT) if the latest one
    is another tenant's."""
    latest = next(store.versions(name), None)
    if latest is not None:
        check_owner(latest.owner, principal, f"artifact {name}")


def check_alias(
    store: ArtifactStore, target: ArtifactRecord, alias: str, principal: Principal
) -> None:
    """Whether `principal` may point the alias to `target`: both that and what the alias names now
    are its tenant's, or nobody's. An alias whose version has gone is nobody's. PermissionDenied
    (OTHER_TENANT)."""
    check_owner(target.owner, principal, target.ref)
    with suppress(NotFound):
        now = store.get(f"{target.name}:{alias}")
        check_owner(now.owner, principal, f"alias {target.name}:{alias}")
