"""`plinth config` as a user runs it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from plinth.cli.config import config
from plinth.shared.errors import InvalidArgument

runner = CliRunner()
app = typer.Typer()
app.command()(config)


def test_values_and_sources_are_shown_and_secrets_are_not(tmp_path, monkeypatch) -> None:
    (tmp_path / "plinth.yaml").write_text("gateway:\n  port: 9000\n")
    monkeypatch.setenv("PLINTH_REDIS_URL", "redis://:hunter2@localhost:6379")
    monkeypatch.setenv("PLINTH_CLUSTER_TOKEN", "hunter2" * 4)
    result = runner.invoke(app, ["--data", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    values = json.loads(result.output)
    assert values["gateway.port"] == {"value": "9000", "source": f"file {tmp_path}/plinth.yaml"}
    assert values["redis_url"]["source"] == "environment"
    assert values["data_dir"] == {"value": str(tmp_path), "source": "override"}
    assert values["engine.block_size"] == {"value": "16", "source": "default"}


def test_the_table_holds_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = runner.invoke(app, ["--data", str(tmp_path), "--changed"])
    assert "data_dir" in result.output
    assert "block_size" not in result.output


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_a_wrong_key_is_named_with_the_right_one(tmp_path, monkeypatch, flag) -> None:
    monkeypatch.setenv("PLINTH_GATEWAY__PROT", "1")
    result = runner.invoke(app, ["--data", str(tmp_path), *flag])
    assert isinstance(result.exception, InvalidArgument)
    assert "PLINTH_GATEWAY__PROT" in str(result.exception)
    assert "PLINTH_GATEWAY__PORT" in str(result.exception)
