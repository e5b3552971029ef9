"""What goes wrong under a command is one line on standard error, and exit code 1."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from plinth.cli.main import app


def failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    monkeypatch.setattr("sys.argv", ["plinth", *arguments])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("plinth: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_data_directory_that_is_a_file(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    (tmp_path / "file").touch()
    line = failed(capsys, monkeypatch, command, "--data", str(tmp_path / "file"))
    assert f"{tmp_path}/file/" in line
    assert "Not a directory" in line


@pytest.mark.parametrize(
    "url", ["sesame", "http://:sesame@host", "redis://:sesame@host:port/0", "redis://[sesame"]
)
def test_a_url_that_is_none_of_a_redis_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url: str,
) -> None:
    monkeypatch.setenv("PLINTH_REDIS_URL", url)
    line = failed(capsys, monkeypatch, "keys", "create", "--local", "--data", str(tmp_path))
    assert "redis://:password@host:6379/0" in line
    assert "sesame" not in line


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers by its path: nothing, half of it, or something that no gateway says."""

    def do_GET(self) -> None:
        if self.path.startswith("/nothing"):
            return
        self.send_response(200)
        self.send_header("content-length", "10")
        self.end_headers()
        self.wfile.write(b"<html>" if self.path.startswith("/half") else b'{"data":1}')

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def odd() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/nothing", "/half", "/other"])
def test_what_is_no_gateway_is_said_by_its_address(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    odd: str,
    path: str,
) -> None:
    monkeypatch.setenv("PLINTH_API_KEY", "x")
    url = f"{odd}{path}"
    line = failed(capsys, monkeypatch, "chat", "--data", str(tmp_path), "--url", url, "hello")
    assert f"{url} does not answer" in line
