"""The models that are served now, read from what the shards announce.

A model whose last shard went away a moment ago is still known for a while: its shard is being
restarted, and a request for it waits instead of being told that there is no such model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from plinth.shared.errors import NotFound
from plinth.shared.registry import Registry, Replica

STAGE = "inference"
REMEMBER_S = 60.0


@dataclass(frozen=True)
class ServedModel:
    """One name that clients can ask for. `context_length` in tokens."""

    name: str
    artifact: str
    weights_digest: str
    context_length: int
    ready_shards: int = 0


class Catalogue:
    """Looks models up in the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: dict[str, tuple[float, ServedModel]] = {}

    async def models(self) -> list[ServedModel]:
        """Served models by name. Unavailable when the registry never answered."""
        models = served(await self._registry.replicas(STAGE))
        now = time.monotonic()
        self._seen = {k: v for k, v in self._seen.items() if now - v[0] < REMEMBER_S}
        self._seen.update({model.name: (now, model) for model in models})
        return models

    async def get(self, name: str) -> ServedModel:
        """The model of that name. NotFound names those that there are."""
        models = await self.models()
        for model in models:
            if model.name == name:
                return model
        if name in self._seen:
            return replace(self._seen[name][1], ready_shards=0)
        known = ", ".join(repr(model.name) for model in models) or "none"
        raise NotFound(
            f"The model {name[:256]!r} does not exist. Served now: {known}.",
            reason="MODEL_NOT_FOUND",
            field="model",
        )

    async def others(self, model: ServedModel) -> set[str]:
        """Ids of replicas that don't hold these very weights under this name."""
        return {
            replica.id
            for replica in await self._registry.replicas(STAGE)
            if model.weights_digest not in {held.weights_digest for held in _held(replica, model)}
        }


def served(replicas: Iterable[Replica]) -> list[ServedModel]:
    """One entry per name; while revisions change, that of the most shards."""
    shards: Counter[ServedModel] = Counter()
    for replica in replicas:
        shards.update(set(_bindings(replica)))
    best: dict[str, ServedModel] = {}
    for model, count in shards.items():
        counted = replace(model, ready_shards=count)
        rival = best.get(model.name)
        if rival is None or _rank(counted) > _rank(rival):
            best[model.name] = counted
    return [best[name] for name in sorted(best)]


def _rank(model: ServedModel) -> tuple[int, str, str]:
    return (model.ready_shards, model.artifact, model.weights_digest)


def _bindings(replica: Replica) -> list[ServedModel]:
    return [
        ServedModel(
            name=str(held["model"]),
            artifact=str(held["artifact"]),
            weights_digest=str(held["weights_digest"]),
            context_length=int(held["context_length"]),
        )
        for held in replica.bindings
    ]


def _held(replica: Replica, model: ServedModel) -> list[ServedModel]:
    return [held for held in _bindings(replica) if held.name == model.name]
