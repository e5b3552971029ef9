"""What an error of a command advises is done here, and helps."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from plinth.cli.api_keys import _free_file
from plinth.cli.gateway_access import api_key
from plinth.cli.quickstart import PIPELINE
from plinth.cli.runs import new_run_id
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.settings import load_settings


def test_no_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLINTH_API_KEY", raising=False)
    settings = load_settings(data_dir=tmp_path / "empty")
    with pytest.raises(FailedPrecondition, match=r"set PLINTH_API_KEY, or name .* with --data"):
        api_key(settings)
    with monkeypatch.context() as patch:
        patch.setenv("PLINTH_API_KEY", "plinth-x")
        assert api_key(settings) == "plinth-x"
        patch.setenv("PLINTH_API_KEY", "zwölf")
        with pytest.raises(InvalidArgument, match="printable ASCII, like plinth-…, on one line"):
            api_key(settings)
    with monkeypatch.context() as patch:
        (tmp_path / "key").write_text("plinth-z\n")
        patch.setenv("PLINTH_API_KEY_FILE", str(tmp_path / "key"))
        assert api_key(load_settings(data_dir=tmp_path / "empty")) == "plinth-z"
    there = load_settings(data_dir=tmp_path / "there")
    there.ensure_secrets_dir()
    there.first_key_file.write_text("plinth-y\n")
    assert api_key(there) == "plinth-y"


def test_a_key_file_that_is_taken(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    path = _free_file(settings)
    path.write_text("plinth-x")
    with pytest.raises(FailedPrecondition, match="remove it first, or leave --save out"):
        _free_file(settings)
    path.unlink()
    assert _free_file(settings) == path


def test_a_run_needs_no_id_of_its_own() -> None:
    """ "Leave --run-id out to run it again": each time it is a new one."""
    text = PIPELINE.read_text("utf-8")
    assert len({new_run_id(text) for _ in range(50)}) == 50
    command = typer.main.get_command(_one_command())
    assert "--run-id" in {option for one in command.params for option in one.opts}


def _one_command() -> typer.Typer:
    from plinth.cli.runs import run

    app = typer.Typer()
    app.command()(run)
    return app
