"""What the Kubernetes API refuses, as errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping

from plinth.cluster.kubernetes_ops.calls import Call
from plinth.shared.errors import (
    Aborted,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


class Gone(PlinthError):
    """A watch's version is too old (410): list again."""

    code = "UNAVAILABLE"
    http = 503


def failure(
    call: Call, status: int, text: str, headers: Mapping[str, str], namespace: str, host: str
) -> PlinthError:
    """The typed error of an answer that is none. text: its body, a Status as JSON mostly."""
    try:
        said = json.loads(text)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    message = str(said.get("message") or text[:300] or f"HTTP {status}")
    what = f"{call.verb} {call.resource}".strip() or call.path
    if status == 401:
        return Unauthenticated(
            f"{host} does not know you: to {what} takes a valid login, and this kubeconfig's has "
            f"expired or is wrong. Log in again. The API server said: {message}",
            reason="KUBERNETES_LOGIN",
        )
    if status == 403:
        return refused(call, namespace, message)
    kinds: dict[int, type[PlinthError]] = {
        400: InvalidArgument,
        404: NotFound,
        409: Aborted,
        410: Gone,
        422: InvalidArgument,
        429: ResourceExhausted,
    }
    kind = kinds.get(status, Unavailable)
    causes = (said.get("details") or {}).get("causes") or []
    return kind(
        f"{what}: {message}",
        reason=f"KUBERNETES_{status}",
        retry_after_s=_retry_after(status, headers),
        metadata={"causes": "; ".join(str(cause.get("message", "")) for cause in causes)},
    )


def _retry_after(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; a 429 without a word means one."""
    given = headers.get("Retry-After", "")
    if given.isdigit():
        return float(given)
    return 1.0 if status == 429 else None


def refused(call: Call, namespace: str, said: str) -> PermissionDenied:
    """The error of a call that was forbidden: the missing verb, and the Role that would grant it.

    said: what the API server said, which names the user.
    """
    kind, where = ("Role", f" in {namespace}") if call.namespaced else ("ClusterRole", "")
    flag = f"-n {namespace} " if call.namespaced else ""
    word = kind.lower()
    resource = call.resource if not call.group else _with_group(call)
    verbs = ", ".join(f'"{verb}"' for verb in call.verb.split(","))
    rule = f'{{apiGroups: ["{call.group}"], resources: ["{call.resource}"], verbs: [{verbs}]}}'
    what = f"{call.verb.replace(',', ' or ')} {call.resource}{where}"
    return PermissionDenied(
        f"you may not {what}: a {kind} with the rule {rule} would grant it (kubectl "
        f"{flag}create {word} plinth-operator --verb={call.verb} --resource={resource}, and a "
        f"{word}binding to you). The API server said: {said}",
        reason="KUBERNETES_FORBIDDEN",
        metadata={"verb": call.verb, "group": call.group, "resource": call.resource},
    )


def _with_group(call: Call) -> str:
    """As kubectl takes it: deployments.apps/scale."""
    name, slash, part = call.resource.partition("/")
    return f"{name}.{call.group}{slash}{part}"
