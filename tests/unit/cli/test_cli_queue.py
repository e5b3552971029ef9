"""`plinth queue` and `plinth keys` where no stack runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from plinth.cli.main import app


@pytest.mark.parametrize("command", [("queue", "list"), ("keys", "list"), ("keys", "create")])
def test_no_stack_is_one_clear_line(
    command: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Without a key; and with one, where nobody answers."""
    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["plinth", *command])
    monkeypatch.delenv("PLINTH_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        app()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "is the stack up?" in told
    assert "plinth keys create --local" in told
    monkeypatch.setenv("PLINTH_API_KEY", "plinth-x")
    monkeypatch.setenv("PLINTH_URL", "127.0.0.1:1")
    with pytest.raises(SystemExit):
        app()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "127.0.0.1:1 can't be reached" in told
