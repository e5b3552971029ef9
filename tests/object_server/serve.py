"""An object store in a process of its own, for tests: moto's S3, with what tests ask for around it.

    python serve.py s3    checks signatures and policies; users `plinth` and `reader`
    python serve.py gs    the same buckets by Google's XML API, whose tokens it checks

Its first line of output is JSON: the port, and credentials. Google's XML API is S3's with other
headers, another condition and other tokens (cloud.google.com/storage/docs/xml-api); the emulators
on PyPI (fake-gcs-server, gcp-storage-emulator) have its JSON API alone, which our client does not
speak. PUT /_fault with a word of FAULTS makes the store err from then on; GET /_uploads counts
uploads in parts that were begun and neither ended nor given up.

Runs in the environment of requirements.lock beside it, and knows nothing of Plinth.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

KIND = sys.argv[1]
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0" if KIND == "s3" else "inf"

from cryptography.exceptions import InvalidSignature  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import padding, rsa  # noqa: E402
from moto.iam.models import iam_backends  # noqa: E402
from moto.s3.models import s3_backends  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

ACCOUNT = "123456789012"
FAULTS = {
    "none",
    "ignores-conditions",  # a PUT that should be refused overwrites
    "knows-no-conditions",  # 501 to a conditional PUT
    "loses-an-answer",  # the next conditional PUT is done, and answered by 500
    "hangs-up",  # conditional PUTs are done, and the connection is closed without an answer
    "is-full",
    "is-down",
}
Environ = dict[str, Any]
Start = Callable[..., Any]


class Door:
    """The WSGI application: one request at a time, as a store with strong consistency seems."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._fault = "none"

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_fault":
            word = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
            assert word in FAULTS, word
            self._fault = word
            return answer(start, "200 OK")
        if environ["PATH_INFO"] == "/_uploads":
            return answer(start, "200 OK", body=str(len(bucket().multiparts)))
        if self._fault == "is-down":
            return answer(start, "503 Service Unavailable", "SlowDown")
        if KIND == "gs":
            if not token_is_right(environ.pop("HTTP_AUTHORIZATION", "")):
                return answer(start, "401 Unauthorized", "AuthenticationRequired")
            start = as_s3(environ, start)
            deletes = environ["REQUEST_METHOD"] == "DELETE" and not environ["QUERY_STRING"]
            if deletes and not self._exists(environ):
                return answer(start, "404 Not Found", "NoSuchKey")
        return self._served(environ, start)

    def _served(self, environ: Environ, start: Start) -> Iterable[bytes]:
        is_put = environ["REQUEST_METHOD"] == "PUT"
        if is_put and self._fault == "is-full":
            return answer(start, "507 Insufficient Storage", "XMinioStorageFull")
        conditional = "HTTP_IF_NONE_MATCH" in environ
        if conditional and self._fault == "knows-no-conditions":
            return answer(start, "501 Not Implemented", "NotImplemented")
        if conditional and self._fault == "ignores-conditions":
            key = environ["PATH_INFO"].removeprefix("/models/")
            with self._lock:  # (the header is signed, so it can't be taken away)
                s3_backends[ACCOUNT]["aws"].delete_object("models", key)
        with self._lock:
            body = list(self._app(environ, start))
        if conditional and self._fault == "loses-an-answer":
            self._fault = "none"
            return answer(start, "500 Internal Server Error", "InternalError")
        if conditional and self._fault == "hangs-up":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("as asked")
        return body

    def _exists(self, environ: Environ) -> bool:
        found: list[str] = []
        asked = {**environ, "REQUEST_METHOD": "HEAD"}
        with self._lock:
            list(self._app(asked, lambda status, *_: found.append(status)))
        return found[-1].startswith("200")


def bucket() -> Any:
    return s3_backends[ACCOUNT]["aws"].buckets["models"]


def answer(start: Start, status: str, code: str = "", body: str = "") -> list[bytes]:
    if code:
        body = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>"
    start(status, [("Content-Length", str(len(body)))])
    return [body.encode()]


# -- Google's words --------------------------------------------------------------------------------

_KEY = rsa.generate_private_key(65537, 2048)
_EMAIL = "plinth@tests.iam.gserviceaccount.com"


def as_s3(environ: Environ, start: Start) -> Start:
    """The request in S3's words; what starts an answer in Google's."""
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    for name in [name for name in environ if name.startswith("HTTP_X_GOOG_META_")]:
        environ[name.replace("_GOOG_", "_AMZ_")] = environ.pop(name)
    # (unsigned requests are anonymous to moto; signatures it does not check here)
    environ["HTTP_AUTHORIZATION"] = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x"
    path = quote(environ["PATH_INFO"].encode("latin1"))
    query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
    environ["RAW_URI"] = environ["REQUEST_URI"] = path + query

    def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        told = [(name.replace("x-amz-", "x-goog-"), value) for name, value in headers]
        return start(status, [*told, ("x-goog-generation", "1")], *rest)

    return started


def token_is_right(authorization: str) -> bool:
    """A bearer token that the service account signed itself, and that has not expired."""
    try:
        signed, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
        _KEY.public_key().verify(
            decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        claims = json.loads(decoded(signed.partition(".")[2]))
    except (ValueError, InvalidSignature):
        return False
    return bool(claims["iss"] == _EMAIL and claims["exp"] > time.time())


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def service_account() -> dict[str, str]:
    private = _KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": _EMAIL,
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }


# -- Amazon's ----------------------------------------------------------------------------------


def user(name: str, *actions: str) -> dict[str, str]:
    """Keys of a new user who may do `actions`."""
    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user("us-east-1", name)
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(name, "may", policy)
    key = iam.create_access_key(name)
    return {"id": key.access_key_id, "secret": key.secret_access_key}


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        pass


def main() -> None:
    s3_backends[ACCOUNT]["aws"].create_bucket("models", "us-east-1")
    told: dict[str, Any] = {"service_account": service_account()}
    if KIND == "s3":
        told = {
            "plinth": user("plinth", "s3:*"),
            "reader": user("reader", "s3:GetObject", "s3:ListBucket"),
        }
    server = make_server("127.0.0.1", 0, Door(), threaded=True, request_handler=Quiet)
    print(json.dumps({"port": server.server_port, **told}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
