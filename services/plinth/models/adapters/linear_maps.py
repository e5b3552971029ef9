"""The linear maps of a decoder by their names, which are what LoRA's targets mean. Needs no torch.

A target is found among them before a model is opened: of an artifact, its manifest says enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plinth.models.families import FAMILIES, names_of
from plinth.shared.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from plinth.shared.store import ArtifactRecord, ArtifactStore

# Parts of a layer that are linear maps which an adapter may be put on, in any family's order.
_ATTENTION = ("qkv", "q", "k", "v", "o")
_MLP = ("gate_up", "gate", "up", "down")
_GENERATIONS = 64  # of models tuned from one another


def maps_of_a_layer(family: str) -> list[str]:
    """Within a layer, in the model's order; of models with experts those of attention (see
    `mixture`)."""
    parts = names_of(family).parts
    maps = _ATTENTION if "router" in parts else _ATTENTION + _MLP
    return [name for part, name in parts.items() if part in maps]


def map_names(family: str, layers: int, *, head: bool) -> list[str]:
    """Full names in the model's order. head: it has an output map of its own, which a model of
    tied embeddings and a reward model have not."""
    layer = names_of(family).layer
    found = [f"{layer.format(n)}.{name}" for n in range(layers) for name in maps_of_a_layer(family)]
    return [*found, names_of(family).head] if head else found


def chosen(names: Sequence[str], family: str, targets: Sequence[str]) -> list[str]:
    """Those of `names` that `targets` mean, full names or their ends; without any, the linear maps
    of the blocks. InvalidArgument for a target that means none."""
    wanted = tuple(targets) or [name.rpartition(".")[2] for name in maps_of_a_layer(family)]
    for target in wanted:
        if not any(_means(target, name) for name in names):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise InvalidArgument(
                f"targets: {target[:80]!r} is no linear map of this model; there are {known}",
                field="targets",
            )
    return [name for name in names if any(_means(target, name) for target in wanted)]


def _means(target: str, name: str) -> bool:
    """PEFT's rule for a list of target_modules."""
    return name == target or name.endswith(f".{target}")


def check_targets(
    store: ArtifactStore, base: ArtifactRecord, targets: Sequence[str], *, reward: bool
) -> None:
    """InvalidArgument for a target that is no linear map of the model artifact `base`; reward: of
    the reward model that is made of it. Nothing where manifests do not tell its shape."""
    if shape := _shape(store, base):
        family, layers, tied = shape
        chosen(map_names(family, layers, head=not (tied or reward)), family, targets)


def _shape(store: ArtifactStore, record: ArtifactRecord) -> tuple[str, int, bool] | None:
    """(family, layers, tied) of a model; what was tuned has the shape of what it was tuned from."""
    for _ in range(_GENERATIONS):
        said: dict[str, Any] = record.manifest.get("config") or {}
        if "model_type" in said or "model" in said:
            return _as_said(said)
        try:
            parents = [store.get(ref) for ref in record.parents]
        except NotFound:
            return None
        models = [parent for parent in parents if parent.kind == "model"]
        if not models:
            return None
        record = models[0]
    return None


def _as_said(said: dict[str, Any]) -> tuple[str, int, bool] | None:
    """Of a new model as its job says, of an import as its config.json does."""
    new = said.get("model")
    if isinstance(new, dict):
        family, layers, tied = (
            new.get("family"),
            new.get("layers"),
            new.get("tie_embeddings", False),
        )
    else:
        family = said.get("model_type")
        layers = said.get("num_hidden_layers", said.get("n_layer"))
        tied = said.get("tie_word_embeddings")
    if family in FAMILIES and isinstance(layers, int) and isinstance(tied, bool):
        return str(family), layers, tied
    return None
