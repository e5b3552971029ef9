"""The models that are served now, read from what the shards announce.

A model whose last shard went away a moment ago is still known for a while: its shard is being
restarted, and a request for it waits instead of being told that there is no such model.

A canary's shards are deployed under a name of their own ("chat.canary"). Clients can't ask for it:
here they are the second revision of "chat".
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from plinth.shared.canary import SUFFIX
from plinth.shared.errors import NotFound, Unavailable
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
        """Served models by name, without canaries. Unavailable when the registry never answered."""
        models = [m for m in served(await self._registry.replicas(STAGE)) if not _is_canary(m)]
        self._remember(models)
        return models

    async def get(self, name: str, field: str = "model") -> ServedModel:
        """The model of that name. NotFound names those that there are, and the request's `field`
        that has the name."""
        return (await self.revisions(name, field))[0]

    async def revisions(
        self, name: str, field: str = "model"
    ) -> tuple[ServedModel, ServedModel | None]:
        """(the stable revision of `name`, its canary if shards of one are up). Errors as `get`."""
        found = served(await self._registry.replicas(STAGE))
        models = {model.name: model for model in found}
        listed = [model for model in found if not _is_canary(model)]
        self._remember(listed)
        second = models.get(name + SUFFIX)
        canary = replace(second, name=name) if second is not None else None
        if name in models and not name.endswith(SUFFIX):
            return models[name], canary
        if name in self._seen:
            return replace(self._seen[name][1], ready_shards=0), canary
        if canary is not None:
            raise Unavailable(
                f"no shard of {name!r} is up but a canary's, which only has a share of it",
                reason="NO_SHARD",
                retry_after_s=5.0,
            )
        known = ", ".join(repr(model.name) for model in listed) or "none"
        raise NotFound(
            f"The model {name[:256]!r} does not exist. Served now: {known}.",
            reason="MODEL_NOT_FOUND",
            field=field,
        )

    async def replaced(self, model: ServedModel) -> bool:
        """Whether nobody holds these very weights any more, and somebody others of this name."""
        replicas = await self._registry.replicas(STAGE)
        if any(held_as(replica, model) is not None for replica in replicas):
            return False
        return any(one.name == model.name for one in served(replicas))

    def _remember(self, models: Iterable[ServedModel]) -> None:
        now = time.monotonic()
        self._seen = {k: v for k, v in self._seen.items() if now - v[0] < REMEMBER_S}
        self._seen.update({model.name: (now, model) for model in models})


def held_as(replica: Replica, model: ServedModel) -> str | None:
    """What `replica` calls these weights: the model's name, or its canary's; None if it has other
    weights only. A canary that became the stable revision is held under both for a while."""
    for held in _bindings(replica):
        if held.weights_digest == model.weights_digest and held.name in (
            model.name,
            model.name + SUFFIX,
        ):
            return held.name
    return None


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


def _rank(model: ServedModel) -> tuple[int, int, str]:
    """Of revisions that as many shards hold, the newest: chat@10 before chat@9."""
    version = model.artifact.rpartition("@")[2]
    number = int(version) if version.isdecimal() else 0
    return (model.ready_shards, number, model.weights_digest)


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


def _is_canary(model: ServedModel) -> bool:
    return model.name.endswith(SUFFIX)
