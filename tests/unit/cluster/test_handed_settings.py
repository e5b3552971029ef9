"""A Ray that somebody else runs is told settings, and where secrets lie; never a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from plinth.cluster import ray_local
from plinth.shared.settings import Settings, load_settings
from plinth.shared.settings_values import leaves, variable

WORD = "never-shown-to-anybody-0123456789abcdef"
SECRETS = {
    "PLINTH_REDIS_URL": f"redis://:{WORD}@127.0.0.1:6379/1",
    "PLINTH_CLUSTER_TOKEN": f"{WORD}-token",
    "PLINTH_GATEWAY__FIRST_KEY": f"{WORD}-first",
    "PLINTH_STORE_URL": f"s3://user:{WORD}@bucket/x",
    "PLINTH_API_KEY": f"{WORD}-of-a-person",
}


def test_the_list_of_secrets_is_whole() -> None:
    """Every setting that is typed as a secret is in the trial below."""
    found = {
        variable(key)
        for key, _ in leaves(load_settings())
        if "SecretStr" in str(_annotation(Settings, key))
    }
    assert found and found <= set(SECRETS)


def _annotation(model: Any, key: str) -> Any:
    head, _, rest = key.partition(".")
    annotation = model.model_fields[head].annotation
    return _annotation(annotation, rest) if rest else annotation


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray is told by `connect`."""
    for name in [name for name in os.environ if name.startswith("PLINTH_")]:
        monkeypatch.delenv(name)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PLINTH_ENGINE__MAX_RUNNING", "7")
    monkeypatch.setenv("PLINTH_SOURCE_ROOTS", "/a:/b")
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **about: given.update(about))
    ray_local.connect(load_settings(ray_address="10.0.0.1:6379"))
    return given


def in_replica(told: dict[str, Any], **more: str) -> subprocess.CompletedProcess[str]:
    """What a process of that Ray's reads."""
    code = (
        "from plinth.shared.settings import load_settings; s = load_settings(); "
        "print(s.engine.max_running,"
        " s.redis_url.get_secret_value(), s.cluster_token.get_secret_value(), s.store_url,"
        " *s.source_roots)"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PLINTH_")}
    environment = {**plain, **told["runtime_env"]["env_vars"], **more}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_no_secret_is_told_and_all_settings_arrive(told: dict[str, Any]) -> None:
    assert WORD not in json.dumps(told)
    handed = Path(told["runtime_env"]["env_vars"]["PLINTH_SECRETS_FILE"])
    assert handed.stat().st_mode & 0o777 == 0o600
    assert SECRETS["PLINTH_API_KEY"] not in handed.read_text()  # no business of the stages
    replica = in_replica(told)
    wanted = (SECRETS[f"PLINTH_{n}"] for n in ("REDIS_URL", "CLUSTER_TOKEN", "STORE_URL"))
    assert replica.stdout.split() == ["7", *wanted, "/a", "/b"], replica.stderr


def test_a_node_without_the_file_needs_its_own_secrets(told: dict[str, Any]) -> None:
    handed = Path(told["runtime_env"]["env_vars"]["PLINTH_SECRETS_FILE"])
    handed.chmod(0o644)
    assert "readable by others" in in_replica(told).stderr
    handed.unlink()
    assert "which this machine does not have" in in_replica(told).stderr
    own = {"PLINTH_REDIS_URL": "redis://own:1", "PLINTH_CLUSTER_TOKEN": "t" * 20}
    assert in_replica(told, **own).stdout.split()[:3] == ["7", "redis://own:1", "t" * 20]
