"""Names of linear maps without a model: those that the model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.models.layers import Linear
from plinth.models.linear_maps import check_targets, map_names
from plinth.models.publish import import_model
from plinth.models.reward import RewardModel
from plinth.models.weights import load_decoder
from plinth.shared.errors import InvalidArgument
from plinth.shared.store import ArtifactStore

FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_are_the_decoders(family: str, tied: bool, tmp_path: Path) -> None:
    decoder = load_decoder(FAMILIES[family](tmp_path / "m", layers=2, hidden=16, tied=tied))
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
    source = byte_tokenizer(FAMILIES[family](tmp_path / "m", layers=2, hidden=16, tied=tied))
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
            with pytest.raises(InvalidArgument, match="'lm_head' is no linear map"):
                check_targets(store, base, ["lm_head"], **made)
        if not tied:
            check_targets(store, base, ["lm_head"], reward=False)
        with pytest.raises(InvalidArgument, match=r"'qkv' is no linear map.*c_proj|q_proj"):
            check_targets(store, base, [ends[0], "qkv"], reward=False)


def test_what_no_manifest_tells_is_found_later(store: ArtifactStore, tmp_path: Path) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "m", layers=1, hidden=16))
    check_targets(store, store.publish("m", "model", source), ["qkv"], reward=False)
