"""Several writers of one artifact store at once: of two that want one thing, one gets it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plinth.shared.errors import Aborted
from plinth.shared.store import ArtifactStore


def race(where: str, tmp_path: Path) -> None:
    """Six threads publish, move an alias, and publish the same, each with a store of its own."""
    sources = [_source(tmp_path / f"src{i}", str(i)) for i in range(12)]
    barrier = threading.Barrier(6)

    def publish(part: int) -> list[int]:
        own = ArtifactStore(where)
        barrier.wait()
        return [own.publish("chat", "model", s).version for s in sources[part::6]]

    with ThreadPoolExecutor(6) as pool:
        versions = sorted(v for found in pool.map(publish, range(6)) for v in found)
    assert versions == list(range(1, 13))
    store = ArtifactStore(where)
    assert len({record.digest for record in store.list()}) == 12

    def move(version: int) -> bool:
        own = ArtifactStore(where)
        barrier.wait()
        try:
            own.set_alias("chat", "prod", version, expected=None)
        except Aborted:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(move, range(1, 7)))
    assert sum(won) == 1 and store.aliases("chat") == {"prod": won.index(True) + 1}

    same = _source(tmp_path / "same", "same")

    def publish_same(_: int) -> int:
        own = ArtifactStore(where)
        barrier.wait()
        return own.publish("chat", "model", same, input_digest="i").version

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(publish_same, range(6))) == {13}
    assert len(store.storage.names("artifacts/chat/content")) == 13


def _source(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "a").write_text(text)
    return path
