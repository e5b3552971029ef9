"""The chart's values.schema.json: written here, so that `config` is Plinth's own settings.

    python ops/chart/values_schema.py [--check]

What the chart decides itself (addresses, ports, secrets, files) is left out of `config`, so that
setting it is refused with its path. JSON Schema of draft 7, which Helm 3 and 4 both read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gateway_schema import gateway
from schema_parts import (
    ANY,
    FLAG,
    ITEMS,
    LABELS,
    NAME,
    QUANTITY,
    STRING,
    WORDS,
    Schema,
    at_least,
    choice,
    closed,
)
from settings_schema import settings_schema

CHART = Path(__file__).resolve().parents[2] / "charts" / "plinth"
TARGET = CHART / "values.schema.json"


def build() -> Schema:
    """The whole schema."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart plinth",
        **closed(
            nameOverride=STRING,
            fullnameOverride={"type": "string", "pattern": "^$|^[a-z]([-a-z0-9]*[a-z0-9])?$"},
            commonLabels=LABELS,
            extraObjects={
                "type": "array",
                "items": {"type": "object", "required": ["apiVersion", "kind", "metadata"]},
            },
            **{"global": ANY},  # Helm's own
            images=_images(),
            config=settings_schema(),
            secrets=closed(existingSecret=NAME),
            serviceAccount=closed(create=FLAG, name=NAME, annotations=WORDS, workloadIdentity=FLAG),
            redis=_redis(),
            store=_store(),
            cache=closed(type=choice("emptyDir", "hostPath"), sizeLimit=QUANTITY, hostPath=STRING),
            jobs=closed(persistence=closed(enabled=FLAG, **_claim())),
            tls=_tls(),
            ray=_ray(),
            defaults=closed(**_service()),
            gateway=gateway(_service(), _resources()),
            head=closed(**_service(), resources=_resources()),
            stages=_stages(),
            trainerWorkers=closed(
                **_service(),
                resources=_resources(),
                enabled=FLAG,
                pods=at_least(0),
                maxPods=at_least(0),
                cpus=at_least(1),
                workerSlots=at_least(1),
            ),
            monitoring=closed(
                serviceMonitor=_monitor(),
                podMonitor=_monitor(),
                rules=closed(enabled=FLAG, labels=LABELS),
                dashboards=closed(enabled=FLAG, labels=LABELS),
            ),
            networkPolicy=_network(),
            tests=closed(
                smoke=closed(enabled=FLAG, model=STRING),
                chaos=closed(enabled=FLAG, model=STRING, tokens=at_least(50, 100_000)),
                podLabels=LABELS,
                resources=_resources(),
            ),
        ),
    }


def _monitor() -> Schema:
    interval: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(ms|s|m)$"}
    return closed(enabled=FLAG, interval=interval, labels=LABELS)


def _image() -> dict[str, Schema]:
    return {
        "registry": STRING,
        "repository": STRING,
        "tag": STRING,
        "digest": {"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"},
    }


def _images() -> Schema:
    return closed(
        registry={"type": "string", "minLength": 1},
        pullPolicy=choice("Always", "IfNotPresent", "Never"),
        pullSecrets={"type": "array", "items": closed(name=NAME)},
        **{flavour: closed(**_image()) for flavour in ("gateway", "cpu", "cuda", "redis")},
    )


def _resources() -> Schema:
    amounts: Schema = {"type": "object", "additionalProperties": QUANTITY}
    return closed(requests=amounts, limits=amounts)


def _claim() -> dict[str, Schema]:
    mode = choice("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod")
    return {
        "existingClaim": NAME,
        "size": QUANTITY,
        "storageClass": NAME,
        "accessModes": {"type": "array", "items": mode, "minItems": 1},
    }


def _redis() -> Schema:
    return closed(
        enabled=FLAG,
        database=at_least(0, 15),
        maxmemory={"type": "string", "pattern": "^[0-9]+(kb|mb|gb)?$"},
        persistence=closed(enabled=FLAG, size=QUANTITY, storageClass=NAME),
        resources=_resources(),
        nodeSelector=LABELS,
        tolerations=ITEMS,
        affinity=ANY,
        priorityClassName=NAME,
        podAnnotations=WORDS,
        podLabels=LABELS,
        external=closed(
            host=STRING,
            port=at_least(1, 65535),
            username=STRING,
            existingSecret=NAME,
            passwordKey={"type": "string", "minLength": 1},
            tls=closed(enabled=FLAG, caSecret=NAME, caKey={"type": "string", "minLength": 1}),
        ),
    )


def _store() -> Schema:
    return closed(
        url={"type": "string", "pattern": "^$|^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[^ ]*)?$"},
        persistence=closed(**_claim(), singleNode=FLAG),
        s3=closed(
            existingSecret=NAME,
            endpoint={"type": "string", "pattern": "^$|^https?://[^ ]+$"},
            region=STRING,
        ),
        gcs=closed(existingSecret=NAME, key={"type": "string", "minLength": 1}),
    )


def _tls() -> Schema:
    duration: Schema = {"type": "string", "pattern": "^([0-9]+(h|m|s))+$"}
    services = ("gateway", "head", "tokenizer", "trainer", "reward", "coordinator", "inference")
    return closed(
        enabled=FLAG,
        certManager=closed(
            enabled=FLAG,
            issuerRef=closed(name=NAME, kind=choice("Issuer", "ClusterIssuer"), group=STRING),
            duration=duration,
            renewBefore=duration,
        ),
        existingSecrets=closed(**dict.fromkeys(services, NAME)),
    )


def _ray() -> Schema:
    return closed(
        mode=choice("rayservice", "static"),
        version={"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+$"},
        gcsFaultTolerance=FLAG,
        deletionDelaySeconds=at_least(0),
        waitForHead=closed(resources=_resources()),
        applications=closed(resources=_resources()),
        autoscaler=closed(enabled=FLAG, idleTimeoutSeconds=at_least(0), resources=_resources()),
        operatorNamespace={**NAME, "minLength": 1},
        labels=LABELS,
    )


def _service() -> dict[str, Schema]:
    """What every service may set, and `defaults` for all of them."""
    probe = closed(
        periodSeconds=at_least(1),
        timeoutSeconds=at_least(1),
        failureThreshold=at_least(1),
        initialDelaySeconds=at_least(0),
    )
    return {
        "image": closed(**_image()),
        "podAnnotations": WORDS,
        "workloadLabels": LABELS,
        "podLabels": LABELS,
        "nodeSelector": LABELS,
        "tolerations": ITEMS,
        "affinity": ANY,
        "topologySpreadConstraints": ITEMS,
        "priorityClassName": NAME,
        "runtimeClassName": NAME,
        "podSecurityContext": ANY,
        "securityContext": ANY,
        "extraEnv": ITEMS,
        "extraEnvFrom": ITEMS,
        "extraVolumes": ITEMS,
        "extraVolumeMounts": ITEMS,
        "gpu": closed(
            count=at_least(0, 16),
            resource={"type": "string", "minLength": 1},
            tolerations=ITEMS,
        ),
        "shm": QUANTITY,
        "drainSeconds": at_least(0, 86_400),
        "pdb": closed(enabled=FLAG, maxUnavailable=at_least(0), minAvailable=at_least(0)),
        "probes": closed(startup=probe, readiness=probe, liveness=probe),
    }


def _stages() -> Schema:
    common = {
        **_service(),
        "resources": _resources(),
        "pods": at_least(1),
        "maxPods": at_least(1),
        "cpus": at_least(1),
    }
    replicas = at_least(1)
    one = closed(**common, replicas=replicas)
    scaled = closed(enabled=FLAG, maxReplicas=at_least(1, 64))
    return closed(
        tokenizer=one,
        reward=closed(**common, replicas=replicas, autoscaling=scaled),
        coordinator=one,
        trainer=closed(**common, replicas=replicas, autoscaling=scaled, workerSlots=at_least(0)),
        inference=closed(**common, surgePercent=at_least(0, 100), autoscaling=closed(enabled=FLAG)),
    )


def _network() -> Schema:
    return closed(
        enabled=FLAG,
        gateway=closed(**{"from": ITEMS}),
        metrics=closed(**{"from": ITEMS}),
        egress=closed(
            dns=ITEMS, store=ITEMS, apiServerPorts={"type": "array", "items": at_least(1, 65535)}
        ),
        extraIngress=ITEMS,
        extraEgress=ITEMS,
    )


def text() -> str:
    """The file's content."""
    return json.dumps(build(), indent=1, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        if TARGET.read_text() == text():
            return 0
        print(f"{TARGET} is not what ops/chart/values_schema.py makes: run it", file=sys.stderr)
        return 1
    TARGET.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
