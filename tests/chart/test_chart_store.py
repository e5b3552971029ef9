"""A store in a bucket, by the chart: what a stage's pod finds opens the bucket, and only what its
own variables and mounts say is used for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import rendering
from buckets import ObjectServer
from plinth.shared.errors import FailedPrecondition
from plinth.shared.settings import load_settings
from plinth.shared.storage_url import open_storage
from plinth.shared.store import ArtifactStore
from release import Pod, Release
from running import _mounted

MODES = ["static", "rayservice"]


def pods_of(helm: rendering.Helm, mode: str, store: dict[str, Any]) -> tuple[Release, list[Pod]]:
    """Pods that use the store: Ray's."""
    values = {
        "ray": {"mode": mode},
        "store": store,
        "jobs": {"persistence": {"enabled": True}},
        "trainerWorkers": {"enabled": True, "pods": 1},
    }
    release = Release(rendering.documents(helm.render(values)))
    pods = [pod for pod in release.pods if pod.main["name"] == "ray"]
    assert {"head", "trainer", "trainer-workers", "inference"} <= {p.component for p in pods}
    return release, pods


def environment_of(pod: Pod, secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """Its variables, as a kubelet with these Secrets would set them."""
    found = {}
    for entry in pod.main["env"]:
        if "value" in entry:
            found[entry["name"]] = str(entry["value"])
        elif (ref := entry["valueFrom"].get("secretKeyRef", {})) and ref["name"] in secrets:
            found[entry["name"]] = secrets[ref["name"]][ref["key"]]
    return {name: value for name, value in found.items() if not name.startswith("PLINTH")}


def store_url(release: Release, pod: Pod, folder: Path) -> str:
    """By the file that the pod loads its settings from."""
    file = folder / "plinth.yaml"
    file.write_text(_mounted(release, pod, "/etc/plinth/plinth.yaml"))
    with mock.patch.dict(os.environ, {"PLINTH_CONFIG": str(file)}, clear=True):
        return load_settings().store()


def publish(url: str, source: Path) -> None:
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text("{}")
    assert ArtifactStore(url).publish("chat", "model", source).version == 1


@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
@pytest.mark.parametrize("mode", MODES)
def test_s3_by_a_secret(
    any_helm: rendering.Helm, mode: str, object_server: ObjectServer, bucket: str, tmp_path: Path
) -> None:
    store = {
        "url": bucket,
        "s3": {
            "existingSecret": "bucket-key",
            "endpoint": object_server.endpoint,
            "region": "us-east-1",
        },
    }
    there = object_server.environment()
    secret = {
        "access-key-id": there["AWS_ACCESS_KEY_ID"],
        "secret-access-key": there["AWS_SECRET_ACCESS_KEY"],
    }
    release, pods = pods_of(any_helm, mode, store)
    for pod in pods:
        url = store_url(release, pod, tmp_path)
        assert url == bucket
        given = environment_of(pod, {"bucket-key": secret})
        with mock.patch.dict(os.environ, given, clear=True):
            publish(url, tmp_path / "source")
        wrong = environment_of(pod, {"bucket-key": {**secret, "secret-access-key": "wrong"}})
        with (
            mock.patch.dict(os.environ, wrong, clear=True),
            pytest.raises(FailedPrecondition, match="SignatureDoesNotMatch"),
        ):
            open_storage(url)


@pytest.mark.parametrize("object_server", ["gs"], indirect=True)
@pytest.mark.parametrize("mode", MODES)
def test_gcs_by_a_secret(
    any_helm: rendering.Helm, mode: str, object_server: ObjectServer, bucket: str, tmp_path: Path
) -> None:
    store = {"url": bucket, "gcs": {"existingSecret": "google-key", "key": "account.json"}}
    there = object_server.environment()
    release, pods = pods_of(any_helm, mode, store)
    for pod in pods:
        given = environment_of(pod, {})
        path = Path(given["GOOGLE_APPLICATION_CREDENTIALS"])
        mount = next(m for m in pod.main["volumeMounts"] if m["mountPath"] == str(path.parent))
        volume = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])
        assert volume["secret"] == {
            "secretName": "google-key",
            "items": [{"key": "account.json", "path": path.name}],
        }
        # The kubelet's part, and Google's address.
        here = tmp_path / path.name
        here.write_text(Path(there["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
        assert json.loads(here.read_text())["type"] == "service_account"
        given |= {"GOOGLE_APPLICATION_CREDENTIALS": str(here)}
        given |= {"GOOGLE_BASE_URL": there["GOOGLE_BASE_URL"]}
        url = store_url(release, pod, tmp_path)
        with mock.patch.dict(os.environ, given, clear=True):
            publish(url, tmp_path / "source")


@pytest.mark.parametrize("mode", MODES)
def test_a_bucket_needs_no_volume_and_has_a_cache(any_helm: rendering.Helm, mode: str) -> None:
    store = {"url": "gs://models/plinth", "gcs": {"existingSecret": "google-key"}}
    release, pods = pods_of(any_helm, mode, store)
    names = {claim["metadata"]["name"] for claim in release.of("PersistentVolumeClaim")}
    assert not [name for name in names if name.endswith("-store")]
    for pod in pods:
        mounts = {mount["mountPath"] for mount in pod.main["volumeMounts"]}
        assert "/var/lib/plinth/cache" in mounts and "/var/lib/plinth/store" not in mounts
