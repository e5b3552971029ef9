"""A whole stack whose store is a bucket that checks signatures: trained into it, imported by two
processes at once, served from it, backed up from it into another."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backups import make, put_back, store_told
from buckets import ObjectServer
from plinth.cluster.backup.archive import Archive
from plinth.shared.artifact_cache import verify_files
from plinth.shared.storage_url import open_storage
from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2 as pb
from real_stack import PIPELINE, RealStack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def plinth(real: RealStack, *arguments: str) -> subprocess.Popen[str]:
    settings = real.stack.settings
    variables = {"PLINTH_DATA_DIR": str(settings.data_dir), "PLINTH_STORE_URL": settings.store()}
    return subprocess.Popen(
        [sys.executable, "-c", "from plinth.cli.main import app; app()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )


def ended(process: subprocess.Popen[str]) -> None:
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told


async def answer(real: RealStack, model: str) -> tuple[str, str]:
    """The text, and the weights that made it."""
    async with real.openai() as client:
        made = await client.completions.create(
            model=model, prompt="def main(", max_tokens=24, seed=7, temperature=0.7
        )
    return made.choices[0].text, made.system_fingerprint or ""


@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
def test_from_training_to_an_answer(
    object_server: ObjectServer, bucket: str, tmp_path: Path
) -> None:
    real = RealStack.up(tmp_path / "data", 0, store_url=f"{bucket}/store")
    try:
        with real.runs() as runs:
            text = PIPELINE.replace("steps: 2000", "steps: 40").replace("checkpoint_every: 100", "")
            runs.submit("trains", text + "    output: tiny\n", {})
            run = [run for run in runs.watch("trains")][-1]
            assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
        store = ArtifactStore(f"{bucket}/store", cache_dir=tmp_path / "cache")
        trained = store.get("tiny")
        race_for_a_version(real, store.fetch(trained), tmp_path)
        records = [record for record in store.list("model") if record.name == "chat"]
        assert [record.version for record in records] == [2, 1]
        for record in store.list():
            store.verify(record)

        ended(plinth(real, "models", "serve", "chat"))
        until(lambda: len(real.replicas("inference")) == 1, "the shard has loaded")
        first = asyncio.run(answer(real, "chat"))
        assert first[0] and asyncio.run(answer(real, "chat")) == first
        # What the shard reads is its own copy, whole.
        copy = tmp_path / "data" / "cache" / "artifacts" / records[0].path.rpartition("/")[2]
        verify_files(open_storage(copy.parent.as_uri()), copy.name, records[0].manifest)

        settings = real.stack.settings
        before = store_told(store)
        made = make(settings, f"{bucket}/away")
        assert made.artifacts == len(store.list())
    finally:
        real.down()
    open_storage(bucket).remove_tree("store")
    shutil.rmtree(tmp_path / "data" / "redis")
    put_back(settings, f"{bucket}/away")
    assert store_told(ArtifactStore(settings.store())) == before
    assert len(Archive(f"{bucket}/away").finished()) == 1


def race_for_a_version(real: RealStack, folder: Path, tmp_path: Path) -> None:
    """Two imports of different models under one name, in two processes at once."""
    rivals = []
    for top_k, name in enumerate(("one", "two"), 50):
        shutil.copytree(folder, tmp_path / name)
        for file in (tmp_path / name).iterdir():
            file.chmod(0o644)
        (tmp_path / name / "manifest.json").unlink()
        config = tmp_path / name / "generation_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "top_k": top_k}))
        rivals.append(plinth(real, "models", "import", str(tmp_path / name), "--name", "chat"))
    for rival in rivals:
        ended(rival)
