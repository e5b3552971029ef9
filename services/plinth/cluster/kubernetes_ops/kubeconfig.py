"""Which API server, as whom, and in which namespace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from plinth.shared.errors import FailedPrecondition

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def configured(kubeconfig: Path | None, context: str | None) -> tuple[Any, str]:
    """(the client's configuration, the context's namespace or ""), from a kubeconfig (given,
    KUBECONFIG, ~/.kube/config) or, inside a pod, from its service account. FailedPrecondition
    when there is neither, or it can't be used."""
    try:
        from kubernetes import client, config  # noqa: PLC0415
    except ImportError as error:
        raise FailedPrecondition(
            "the kubernetes client is not installed: pip install 'plinth-llm[operations]'",
            reason="KUBERNETES_CLIENT_MISSING",
        ) from error
    configuration = client.Configuration()
    # Of its own accord urllib3 would wait as long as a server asks it to.
    configuration.retries = False
    path = _kubeconfig(kubeconfig)
    try:
        if path:
            config.load_kube_config(path, context, configuration, persist_config=False)
            return configuration, _context_namespace(config, path, context)
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
            return configuration, _ACCOUNT.read_text().strip() if _ACCOUNT.exists() else ""
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise FailedPrecondition(
            f"the kubeconfig {path or 'of this pod'} can't be used: {error}",
            reason="KUBECONFIG_INVALID",
        ) from error
    raise FailedPrecondition(
        "no kubeconfig: give --kubeconfig, set KUBECONFIG, or put one at ~/.kube/config",
        reason="NO_KUBECONFIG",
    )


def _kubeconfig(given: Path | None) -> str:
    if given is not None:
        return str(given)
    if named := os.environ.get("KUBECONFIG"):
        return named
    usual = Path("~/.kube/config").expanduser()
    return str(usual) if usual.exists() else ""


def _context_namespace(config: Any, path: str, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(path)
    named = next((one for one in contexts if one["name"] == context), active)
    return str(named["context"].get("namespace") or "")
