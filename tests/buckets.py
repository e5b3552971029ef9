"""Object stores for tests: a server process each (tests/object_server), and what a process that
uses it finds in its environment."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_S

SERVE = Path(__file__).parent / "object_server" / "serve.py"
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    *("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_PROFILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BASE_URL"),
)


class ObjectServer:
    """`kind` s3 or gs; one bucket, `models`."""

    def __init__(self, kind: str, folder: Path) -> None:
        python = Path(sys.prefix) / "object-server" / "bin" / "python"
        if not python.exists():
            pytest.fail(f"{python} is not there: `make test` makes it, from {SERVE.parent}")
        self.kind = kind
        self._errors = (folder / f"{kind}.log").open("w+")
        self._process = subprocess.Popen(
            [str(python), str(SERVE), kind], stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            self._errors.seek(0)
            pytest.fail(f"no object server: {self._errors.read()[-2000:]}")
        self._told: dict[str, Any] = json.loads(first)
        self.endpoint = f"http://127.0.0.1:{self._told['port']}"
        self._key = folder / "key.json"
        if kind == "gs":
            self._key.write_text(json.dumps(self._told["service_account"]))

    def environment(self, user: str = "plinth") -> dict[str, str]:
        """What the chart sets, but for where the clouds are."""
        if self.kind == "gs":
            return {
                "GOOGLE_APPLICATION_CREDENTIALS": str(self._key),
                "GOOGLE_BASE_URL": self.endpoint,
            }
        keys = self._told[user]
        return {
            "AWS_ACCESS_KEY_ID": keys["id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def enter(self, patch: pytest.MonkeyPatch, user: str = "plinth") -> None:
        """Sets the environment of this process, and of those that it starts."""
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in self.environment(user).items():
            patch.setenv(name, value)

    def fault(self, word: str) -> None:
        """From now on; see FAULTS of serve.py. "none" ends it."""
        request = urllib.request.Request(
            f"{self.endpoint}/_fault", data=word.encode(), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.status == 200

    def uploads(self) -> int:
        """How many uploads in parts were begun and neither ended nor given up."""
        with urllib.request.urlopen(f"{self.endpoint}/_uploads", timeout=PATIENCE_S) as answer:
            return int(answer.read())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
