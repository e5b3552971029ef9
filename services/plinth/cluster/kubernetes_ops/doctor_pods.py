"""What `plinth k8s doctor` says of a release's pods: those that are there, those that should be,
and probes that fail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops.api import Json
from plinth.cluster.kubernetes_ops.events import involved, of_makers, time_of, told
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import (
    Release,
    component_of,
    is_ready,
    last_end,
    restarts,
    trouble,
)

_MANY_RESTARTS = 5
_RECENT = timedelta(minutes=15)
_ADVICE = (
    ("OOMKilled", "raise the service's resources.limits.memory, or serve a smaller model"),
    ("ImagePull", "check images.registry, the tag, and images.pullSecrets"),
    ("ErrImage", "check images.registry, the tag, and images.pullSecrets"),
    ("CreateContainerConfigError", "a Secret or ConfigMap that it names is missing"),
    ("Insufficient", "no node has room: add nodes, or lower the service's requests"),
    ("Unschedulable", "no node fits: check nodeSelector, tolerations, GPUs and requests"),
    ("CrashLoopBackOff", "plinth k8s logs STAGE --previous says how it ended"),
    (
        "service account",
        "set serviceAccount.create=true, or make the account that serviceAccount.name names",
    ),
    ("serviceaccount", "whoever makes the pods may not look at it: check serviceAccount.*"),
    ("exceeded quota", "raise the quota (plinth k8s doctor --before shows it), or ask for less"),
    ("must specify limits", "a quota counts what a container does not say: set its resources"),
    ("violates PodSecurity", "the namespace's Pod Security level refuses them: lower its label, or "
     "change the values that it names"),
    ("admission webhook", "an admission webhook refuses them: ask who runs it"),
)  # fmt: skip


def check_pods(release: Release, pods: list[Json], events: list[Json]) -> Iterator[Finding]:
    """Each component's pods beside what is wanted. pods, events: of the release, newest event
    first."""
    for component in release.components:
        own = [pod for pod in pods if component_of(pod) == component]
        yield _of_component(release, component, own, events)
        for pod in own:
            if restarts(pod) >= _MANY_RESTARTS:
                name = pod["metadata"]["name"]
                ended = f"{name}: {restarts(pod)} restarts, the last by {last_end(pod) or '?'}"
                advice = _advice(last_end(pod)) or f"plinth k8s logs {component} --previous"
                yield Finding(f"restarts {component}", "warn", ended, advice)


def check_probes(release: Release, pods: list[Json], events: list[Json]) -> Iterator[Finding]:
    """Probes that failed lately, by the kubelet's events."""
    names = {pod["metadata"]["name"] for pod in pods if not is_ready(pod)}
    failed: dict[str, str] = {}
    since = datetime.now(UTC) - _RECENT
    for event in events:
        name, when = involved(event), time_of(event)
        if event.get("reason") == "Unhealthy" and name in names and (not when or when >= since):
            failed.setdefault(name, str(event.get("message", ""))[:200])
    for name, message in sorted(failed.items()):
        advice = f"kubectl -n {release.namespace} logs {name}; is its model still loading?"
        yield Finding("probes", "fail", f"{name}: {message}", advice)
    if not failed:
        yield Finding("probes", "ok", "none failed lately on a pod that isn't ready")


def _of_component(release: Release, component: str, own: list[Json], events: list[Json]) -> Finding:
    check, wanted = f"pods {component}", release.wanted(component)
    unwell = {pod["metadata"]["name"]: why for pod in own if (why := trouble(pod))}
    waiting = [p["metadata"]["name"] for p in own if not is_ready(p)]
    counted = "" if len(own) >= wanted else f"{len(own)} of {wanted} pods; "
    if unwell:
        name, why = next(iter(unwell.items()))
        return Finding(check, "fail", f"{counted}{name}: {why}", _advice(why))
    if counted:
        return _lacking(release, component, counted, events)
    if waiting:
        advice = kubectl(release.namespace, "describe", "pod", waiting[0])
        return Finding(check, "warn", f"{', '.join(waiting)} not ready", advice)
    return Finding(check, "ok", f"{len(own)} ready, {wanted} wanted")


def _lacking(release: Release, component: str, counted: str, events: list[Json]) -> Finding:
    """Pods that were never made, by the words of whoever tries."""
    made_by = of_makers(release, component, events)
    if component == "gateway":
        maker = f"deployment/{release.fullname}-gateway"
    elif component in release.sets:
        maker = f"statefulset/{release.fullname}-{component}"
    else:
        maker = f"rayservice/{release.fullname}"
    why = f"{involved(made_by[0])}: {told(made_by[0])}" if made_by else f"no event of {maker}"
    describe = kubectl(release.namespace, "describe", maker)
    return Finding(f"pods {component}", "fail", f"{counted}{why}", _advice(why) or describe)


def _advice(why: str) -> str:
    """What to do about the usual reasons."""
    return next((advice for word, advice in _ADVICE if word in why), "")
