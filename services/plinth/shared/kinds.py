"""What an artifact is, in the words of an error where another kind is wanted."""

from __future__ import annotations

from plinth.shared.errors import NotFound
from plinth.shared.store import ArtifactRecord, ArtifactStore

ADAPTER = "adapter"
ADAPTER_SUFFIX = "-adapter"  # of the artifact that holds a job's adapter alone, behind its model's


def a_kind(kind: str) -> str:
    """ "an adapter", "a model"."""
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def what_it_is(record: ArtifactRecord, store: ArtifactStore) -> str:
    """ "tuned-adapter@1 is an adapter; …" with the way to the whole model. Blocks on the store."""
    said = f"{record.ref} is {a_kind(record.kind)}"
    if record.kind != ADAPTER:
        return said
    if merged := _merged(record, store):
        return f"{said}; merged into its base it is the {merged.kind} {merged.ref}"
    return (
        f"{said}; make a whole model of it: plinth models export {record.ref} DIR --merge, then "
        "plinth models import DIR --name NAME"
    )


def _merged(adapter: ArtifactRecord, store: ArtifactStore) -> ArtifactRecord | None:
    """What the job that trained the adapter made of it and its base."""
    name = adapter.name.removesuffix(ADAPTER_SUFFIX)
    if name == adapter.name:
        return None
    try:
        newest = store.get(name)
        versions = [newest, *(store.get(f"{name}@{n}") for n in range(newest.version - 1, 0, -1))]
    except NotFound:
        return None
    return next((one for one in versions if adapter.ref in one.parents), None)
