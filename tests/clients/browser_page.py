"""Headless Chromium with a page of another origin (another port), which shows what it was told.

What the page saw comes back to the page's own server, so that nothing but the browser is needed.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

BASE, KEY, MODEL = sys.argv[1:4]
PAGE = Path(__file__).with_name("page.html").read_bytes()
PARIS = "The capital of France is Paris."
# Without the flags on background networking a browser asks its maker's hosts at every start.
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
reports: queue.Queue[dict[str, Any]] = queue.Queue()


class PageServer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(PAGE if self.path == "/" else b"")

    def do_POST(self) -> None:
        reports.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), PageServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
fragment = urlencode({"base": BASE, "key": KEY, "model": MODEL})
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    browser = subprocess.Popen(
        [
            *(*CHROMIUM, f"--user-data-dir={profile}", "--remote-debugging-port=0"),
            f"http://127.0.0.1:{server.server_port}/#{fragment}",
        ],
        stderr=subprocess.DEVNULL,
    )
    seen = None
    try:
        while seen is None:
            assert browser.poll() is None, f"the browser ended by {browser.returncode}"
            with suppress(queue.Empty):
                seen = reports.get(timeout=1)
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
assert "error" not in seen, seen
assert seen["shown"].split("\n")[0] == PARIS and seen["shown"].count(PARIS) == 2, seen
assert seen["parts"] > 1 and seen["requestId"], seen
assert seen["wrongKey"] == "invalid_api_key", seen
print(f"{seen['origin']} -> {BASE}: {PARIS!r} whole, and in {seen['parts']} parts")
