"""What a newcomer is shown can be pasted into a shell, and says what was said on the screen."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plinth.cli.quickstart import QUESTION, curl
from plinth.cli.stack import program
from plinth.cluster.stack import Stack
from plinth.shared.settings import load_settings

EXAMPLE = Path(__file__).parents[3] / "ops" / "examples" / "grpc_client.py"


class RunningStack(Stack):
    """A stack that is up, as its record says."""

    def state(self) -> Any:
        return SimpleNamespace(rest_url=lambda tls: f"http{'s' if tls else ''}://127.0.0.1:8080")


def test_the_curl_line_asks_greedily_what_the_screen_shows(tmp_path: Path) -> None:
    line = curl(RunningStack(load_settings(data_dir=tmp_path)), "it's")
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "it's"
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert body["temperature"] == 0


def test_the_command_is_shown_as_a_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / ".venv" / "bin" / "plinth"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "quickstart"])
    monkeypatch.setenv("PATH", os.defpath)
    assert program() == ".venv/bin/plinth"
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.defpath}")
    assert program() == "plinth"


def test_the_grpc_example_says_what_it_wants() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "127.0.0.1:8081"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip() == "Chats by gRPC: python grpc_client.py HOST:PORT KEY MODEL QUESTION"
    )
