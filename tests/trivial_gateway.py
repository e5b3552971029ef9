"""A gateway that only answers /healthz, run as `python -m trivial_gateway` by a test's stack."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer

from plinth.shared.settings import load_settings


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    gateway = load_settings().gateway
    HTTPServer((gateway.host, gateway.port), Health).serve_forever()
