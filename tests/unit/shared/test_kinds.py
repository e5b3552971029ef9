"""What an error says of an artifact that is of another kind than is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from plinth.shared.kinds import a_kind, what_it_is
from plinth.shared.store import ArtifactStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "file").write_text("x")
    return made


@pytest.mark.parametrize(
    ("kind", "said"), [("adapter", "an adapter"), ("model", "a model"), ("evaluation", "an eval")]
)
def test_kinds_have_their_article(kind: str, said: str) -> None:
    assert a_kind(kind).startswith(said)


def test_of_an_adapter_the_model_that_it_was_merged_into_is_named(
    store: ArtifactStore, folder: Path
) -> None:
    """Of its own job: a later model of that name has another adapter."""
    for version in (1, 2):
        (folder / "file").write_text(f"adapter {version}")
        adapter = store.publish("tuned-adapter", "adapter", folder)
        (folder / "file").write_text(f"model {version}")
        store.publish("tuned", "model", folder, parents=[adapter.ref])
    for version in (1, 2):
        assert what_it_is(store.get(f"tuned-adapter@{version}"), store) == (
            f"tuned-adapter@{version} is an adapter; merged into its base it is the model "
            f"tuned@{version}"
        )
    assert what_it_is(store.get("tuned"), store) == "tuned@2 is a model"


@pytest.mark.parametrize("name", ["own", "own-adapter"])
def test_of_one_without_a_model_the_way_to_it(
    store: ArtifactStore, folder: Path, name: str
) -> None:
    said = what_it_is(store.publish(name, "adapter", folder), store)
    assert f"plinth models export {name}@1 DIR --merge, then plinth models import DIR" in said
