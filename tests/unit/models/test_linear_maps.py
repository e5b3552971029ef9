"""Names of linear maps without a model: those that the model has."""

from __future__ import annotations

from pathlib import Path

import pytest

import families
from checkpoints import byte_tokenizer, random_llama
from family_models import random_model, saved
from plinth.models.adapters.linear_maps import check_targets, map_names
from plinth.models.families import FAMILIES, names_of
from plinth.models.layers import Linear
from plinth.models.publish import import_model
from plinth.models.reward import RewardModel
from plinth.models.weights import load_decoder
from plinth.shared.errors import InvalidArgument
from plinth.shared.store import ArtifactStore


def model(family: str, folder: Path, *, tied: bool) -> Path:
    keys = families.smallest(family) | {"vocab_size": 320, "tie_word_embeddings": tied}
    return saved(random_model(family, keys), folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_are_the_decoders(family: str, tied: bool, tmp_path: Path) -> None:
    decoder = load_decoder(model(family, tmp_path / "m", tied=tied))
    found = [name for name, module in decoder.named_modules() if isinstance(module, Linear)]
    assert map_names(family, 2, head=not tied) == found
    judge = RewardModel.of(decoder, seed=0)
    left = [name for name, module in judge.named_modules() if isinstance(module, Linear)]
    assert map_names(family, 2, head=False) == [name for name in left if name != "score"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_checked_by_manifests_alone(
    family: str, tied: bool, store: ArtifactStore, tmp_path: Path
) -> None:
    """Of an import, of what was tuned from it, and of what was trained here from nothing."""
    source, head = byte_tokenizer(model(family, tmp_path / "m", tied=tied)), names_of(family).head
    imported = import_model(store, str(source), "base", workspace=tmp_path / "w")
    words = store.publish("words", "tokenizer", source)
    tuned = store.publish("tuned", "model", source, parents=[words.ref, imported.ref])
    shape = {"family": family, "layers": 2} | ({"tie_embeddings": True} if tied else {})
    new = store.publish("new", "model", source, config={"objective": "clm", "model": shape})
    ends = [name.rpartition(".")[2] for name in map_names(family, 1, head=False)]
    for base in (imported, tuned, new):
        check_targets(store, base, (), reward=False)
        check_targets(store, base, ends, reward=True)
        heads = [{"reward": True}] if not tied else [{"reward": True}, {"reward": False}]
        for made in heads:
            with pytest.raises(InvalidArgument, match=f"'{head}' is no linear map"):
                check_targets(store, base, [head], **made)
        if not tied:
            check_targets(store, base, [head], reward=False)
        with pytest.raises(InvalidArgument, match=rf"'qkv' is no linear map.*{ends[-1]}"):
            check_targets(store, base, [ends[0], "qkv"], reward=False)


def test_what_no_manifest_tells_is_found_later(store: ArtifactStore, tmp_path: Path) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "m", layers=1, hidden=16))
    check_targets(store, store.publish("m", "model", source), ["qkv"], reward=False)
