"""The few calls to the Kubernetes API that a trial makes, from inside a pod.

`RIGHTS` is every call there is: what is not in it can't be made, and the chart's role is checked
against it. The service account's token and authority are where Kubernetes mounts them.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final, Literal

from plinth.shared.errors import FailedPrecondition, PermissionDenied, Unavailable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 10.0
Call = Literal["list", "delete"]
# Call → (API group, resource, verb) as a Role says it, and the HTTP method.
RIGHTS: Final[dict[Call, tuple[str, str, str, str]]] = {
    "list": ("", "pods", "list", "GET"),
    "delete": ("", "pods", "delete", "DELETE"),
}


class Pods:
    """The pods of the namespace that this one runs in."""

    def __init__(self, url: str = "", account: Path = ACCOUNT) -> None:
        """FailedPrecondition outside of a pod. `url`: of the API server; empty: this cluster's."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{x}", "") for x in ("HOST", "PORT"))
        try:
            self._token = (account / "token").read_text().strip()
            self._namespace = (account / "namespace").read_text().strip()
        except OSError as error:
            raise FailedPrecondition(
                f"{account} has no service account's token: this runs inside a pod, by `helm test`"
            ) from error
        self._url = url or f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._tls = None
        if self._url.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=str(account / "ca.crt"))

    def by_address(self, address: str, selector: str) -> str:
        """Name of the pod with that IP among those that `selector` picks; Unavailable if none."""
        query = urllib.parse.urlencode({"labelSelector": selector})
        found = self._call("list", f"?{query}")["items"]
        names = [p["metadata"]["name"] for p in found if p["status"].get("podIP") == address]
        if not names:
            raise Unavailable(f"no pod of {selector} has the address {address}")
        return str(names[0])

    def kill(self, name: str) -> None:
        """Deletes the pod without grace, as a lost machine would."""
        self._call("delete", f"/{urllib.parse.quote(name, safe='')}?gracePeriodSeconds=0")

    def _call(self, call: Call, rest: str) -> dict[str, Any]:
        _group, resource, verb, method = RIGHTS[call]
        request = urllib.request.Request(  # noqa: S310 - the API server's own address
            f"{self._url}/api/v1/namespaces/{self._namespace}/{resource}{rest}",
            method=method,
            headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._tls) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise PermissionDenied(
                    f"this service account may not {verb} {resource} in {self._namespace}: "
                    "was the chart installed with tests.chaos.enabled?"
                ) from error
            raise Unavailable(f"{verb} {resource}: the API server says {error.code}") from error
        except OSError as error:
            raise Unavailable(f"the API server does not answer: {error}") from error
