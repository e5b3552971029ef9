"""Settings: precedence, sources, and errors that name what is wrong and what would be right."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pydantic
import pytest

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.settings import Settings, effective, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch, tmp_path) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("PLINTH_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def table(settings: Settings) -> dict[str, tuple[str, str]]:
    return {key: (value, source) for key, value, source in effective(settings)}


def test_override_beats_environment_beats_file_beats_default(tmp_path, monkeypatch) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("engine: {block_size: 2, max_running: 2, max_waiting: 2}\n")
    monkeypatch.setenv("PLINTH_CONFIG", str(path))
    monkeypatch.setenv("PLINTH_ENGINE__BLOCK_SIZE", "3")
    monkeypatch.setenv("PLINTH_ENGINE__MAX_RUNNING", "3")
    rows = table(load_settings(engine__block_size=4))
    assert rows["engine.block_size"] == ("4", "override")
    assert rows["engine.max_running"] == ("3", "environment")
    assert rows["engine.max_waiting"] == ("2", f"file {path}")
    assert rows["engine.max_batch_tokens"] == ("512", "default")


def test_the_data_directory_may_hold_the_file(tmp_path, monkeypatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "plinth.yaml").write_text("log_level: debug\n")
    assert load_settings(data_dir=tmp_path / "d").log_level == "debug"
    monkeypatch.setenv("PLINTH_DATA_DIR", "d")
    settings = load_settings()
    assert (settings.log_level, settings.data_dir) == ("debug", tmp_path / "d")
    assert settings.store() == f"file://{tmp_path}/d/store"


def test_a_file_in_the_data_directory_cannot_move_it(tmp_path) -> None:
    (tmp_path / "plinth.yaml").write_text("data_dir: /elsewhere\n")
    with pytest.raises(InvalidArgument, match="can't set data_dir"):
        load_settings(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway: {prot: 1}", "unknown setting gateway.prot; the nearest one is gateway.port"),
        ("engin: {block_size: 1}", "the nearest one is engine.block_size"),
        ("log_levl: info", "the nearest one is log_level"),
        ("gateway: 5", "gateway is a section"),
        ("gateway:", "gateway is empty"),
        ("gateway: {port: {a: 1}}", "unknown setting gateway.port.a"),
        ("1: 2", "unknown setting 1"),
        ("- a", "must hold a mapping"),
        ("a: [", "is no YAML"),
        ("gateway: {port: 70000}", r"gateway.port: .*65535.*some.yaml"),
        ("engine: {block_size: many}", r"engine.block_size: .*integer.*some.yaml"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, monkeypatch, text, message) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    monkeypatch.setenv("PLINTH_CONFIG", str(path))
    with pytest.raises(InvalidArgument, match=message):
        load_settings()


def test_a_named_file_must_be_there(monkeypatch) -> None:
    monkeypatch.setenv("PLINTH_CONFIG", "/nowhere/at/all.yaml")
    with pytest.raises(InvalidArgument, match=r"/nowhere/at/all.yaml"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PLINTH_GATEWAY__PROT", "PLINTH_GATEWAY__PORT"),
        ("PLINTH_GATEWAY_PORT", "PLINTH_GATEWAY__PORT"),
        ("PLINTH_REDISURL", "PLINTH_REDIS_URL"),
        ("plinth_engine__blocksize", "PLINTH_ENGINE__BLOCK_SIZE"),
    ],
)
def test_an_unknown_variable_names_the_nearest(monkeypatch, name, nearest) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidArgument, match=f"{name}; the nearest one is {nearest}"):
        load_settings()


def test_an_unknown_override_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"engine.block_size"):
        load_settings(engine={"block_sise": 4})


def test_ray_address_is_taken_from_rays_own_variable(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert table(load_settings())["ray_address"] == ("10.0.0.1:6379", "environment")
    monkeypatch.setenv("PLINTH_RAY_ADDRESS", "10.0.0.2:6379")
    assert load_settings().ray_address == "10.0.0.2:6379"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "::ffff:8.8.8.8"])
def test_auth_off_is_refused_beyond_loopback(host) -> None:
    with pytest.raises(InvalidArgument, match=r"gateway.auth.*keys"):
        load_settings(gateway={"auth": "off", "host": host})
    assert load_settings(gateway={"auth": "keys", "host": host}).gateway.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_auth_off_is_allowed_on_loopback(host) -> None:
    assert load_settings(gateway={"auth": "off", "host": host}).gateway.auth == "off"


def test_secrets_never_show(monkeypatch) -> None:
    monkeypatch.setenv("PLINTH_REDIS_URL", "redis://:hunter2@localhost:6379")
    settings = load_settings(cluster_token="hunter2" * 4, store_url="s3://key:hunter2@bucket/path")
    assert "hunter2" not in repr(effective(settings))
    assert "hunter2" not in repr(settings).replace(settings.store_url or "", "")
    assert settings.redis_url is not None
    assert "hunter2" in settings.redis_url.get_secret_value()
    with pytest.raises(InvalidArgument) as caught:
        load_settings(cluster_token="hunter2")
    assert "hunter2" not in str(caught.value)


def test_settings_are_frozen_and_survive_pickling() -> None:
    settings = load_settings(gateway__port=0)
    with pytest.raises(pydantic.ValidationError):
        settings.log_level = "debug"  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        settings.gateway.port = 1  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert again.sources == settings.sources


def test_the_secrets_folder_is_its_owners_only(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path / "new")
    folder = settings.ensure_secrets_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(FailedPrecondition, match="chmod 700"):
        settings.ensure_secrets_dir()


def test_the_pages_file_and_variable_are_settings(tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    (text,) = re.findall(r"```yaml settings\n(.*?)```", page, re.S)
    (tmp_path / "plinth.yaml").write_text(text)
    settings = load_settings(data_dir=tmp_path)
    assert (settings.gateway.port, settings.gateway.grpc_port) == (9000, 9001)
    assert settings.source_roots == (Path.home() / "texts", Path("/data"))
    (variable,) = re.findall(r"`(PLINTH_GATEWAY__PORT)=9000`", page)
    monkeypatch.setenv(variable, "9100")
    assert load_settings(data_dir=tmp_path).gateway.port == 9100
