"""`plinth k8s rollout`: the run that it submits, what it refuses before, and the gate's figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kube_api import KubeApi
from kube_cluster import error_of, plinth_k8s
from kube_gateway import ScriptedGateway, canary_run
from kube_release import ray_release, static_pods, static_release
from plinth.coordinator.pipeline import parse
from plinth.shared.api import times
from plinth.v1 import deployments_pb2, operations_pb2
from plinth.v1 import runs_pb2 as pb

ARGUMENTS = ("rollout", "chat", "chat:next")


@pytest.fixture(autouse=True)
def served(kube: KubeApi, gateway: ScriptedGateway) -> None:
    static_release(kube)
    static_pods(kube)
    kube.ports[8081] = gateway.port
    gateway.serve("chat", "chat@7")
    gateway.store("chat", 7, "prod")
    gateway.store("chat", 8, "next")
    gateway.watched = [
        canary_run(pb.RUN_STATE_RUNNING, "3 of 40 requests"),
        canary_run(pb.RUN_STATE_SUCCEEDED),
    ]


class Tallied(ScriptedGateway):
    """Tells the figures of whatever run was submitted."""

    def GetStatus(self, request: object, context: object) -> operations_pb2.GetStatusResponse:
        found = super().GetStatus(request, context)
        if self.submitted:
            step = f"{self.submitted[-1].run_id}.canary.1"
            canary = operations_pb2.CanaryStatus(
                model="chat", state=operations_pb2.CANARY_STATE_CLOSED, step=step
            )
            canary.stable.CopyFrom(
                operations_pb2.RevisionTally(requests=360, errors=2, ttft_p95=times.duration(0.21))
            )
            canary.canary.CopyFrom(operations_pb2.RevisionTally(requests=40, errors=9))
            found = operations_pb2.GetStatusResponse(canaries=[canary])
        return found


@pytest.fixture
def gateway() -> object:
    with Tallied() as running:
        yield running


def test_the_run_is_what_the_coordinator_takes(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    result = plinth_k8s(
        kubeconfig,
        *ARGUMENTS,
        *("--share", "0.2", "--requests", "400", "--errors-above", "0.02", "--sticky"),
    )
    assert result.exit_code == 0, result.output
    (sent,) = gateway.submitted
    pipeline = parse(sent.run.spec.pipeline_yaml)  # the coordinator's own parser
    (step,) = pipeline.steps.values()
    assert (step.model, step.name, step.alias) == ("chat@8", "chat", "prod")
    assert (step.share, step.requests, step.sticky, step.shards) == (0.2, 400, True, 1)
    assert step.require.error_share_above_at_most == 0.02
    assert step.require.ttft_p95_ratio_at_most == 2.0  # the step's own default
    assert sent.run_id.startswith("rollout-chat-")
    rows = {
        line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.split()
    }
    assert rows["stable"] == ["360", "2", "0.210", "s", "0", "0"]
    assert rows["canary"][:3] in (["40", "9", "?"], ["running", "3", "of"], ["succeeded", "", ""])
    assert re.search(r"canary +40 +9 +\?", result.stdout)
    assert "port-forward svc/plinth-gateway 8081:grpc" in result.stderr
    assert yaml.safe_load(sent.run.spec.pipeline_yaml)["steps"]["canary"]["seconds"] == 3600.0


def test_one_that_is_rolled_back(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    why = "chat@8 is rolled back, 'chat' stays chat@7: 9 of 40 requests of the canary failed"
    gateway.watched = [canary_run(pb.RUN_STATE_FAILED, error=why)]
    result = plinth_k8s(kubeconfig, *ARGUMENTS)
    assert result.exit_code == 1
    assert why in result.stdout
    assert re.search(r"canary +40 +9 ", result.stdout)


def test_detached(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    result = plinth_k8s(kubeconfig, *ARGUMENTS, "--detach")
    assert result.stdout.splitlines()[-1] == gateway.submitted[0].run_id
    assert "WatchRun" not in gateway.calls


def refusal(kubeconfig: Path, gateway: ScriptedGateway, *arguments: str) -> str:
    said = error_of(plinth_k8s(kubeconfig, *(arguments or ARGUMENTS)))
    assert not gateway.submitted
    return said


def test_an_alias_that_does_not_exist(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    said = refusal(kubeconfig, gateway, "rollout", "chat", "chat:nope")
    assert "no artifact is called chat:nope" in said


def test_what_is_no_model(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    gateway.store("corpus", 1, kind="corpus")
    assert "is a corpus" in refusal(kubeconfig, gateway, "rollout", "chat", "corpus@1")


def test_a_name_that_is_not_served(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    said = refusal(kubeconfig, gateway, "rollout", "code", "chat@8")
    assert "nothing is served as 'code'" in said
    assert "served are: chat" in said


def test_a_second_canary(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    canary = deployments_pb2.Canary(deployment="deployments/chat", step="other.canary.1")
    gateway.serve("chat.canary", "chat@6", canary=canary)
    assert "chat has a canary already: chat@6, of other.canary.1" in refusal(kubeconfig, gateway)


def test_no_room_for_a_second_revision(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    gateway.serve("chat", "chat@7", 2)
    said = refusal(kubeconfig, gateway)
    assert "4 shards (chat 2 and 2 more) need 4 inference pods, and plinth has room for 2" in said
    assert "first `plinth k8s scale inference 4`" in said


def test_ray_may_start_more_pods(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    for path in list(kube.objects):
        if "/statefulsets/" in path or "/deployments/" in path:
            kube.delete(path)
    ray_release(kube)
    gateway.serve("chat", "chat@7", 2)
    assert plinth_k8s(kubeconfig, *ARGUMENTS, "--detach").exit_code == 0


def test_what_is_rolled_out_already(kubeconfig: Path, gateway: ScriptedGateway) -> None:
    said = refusal(kubeconfig, gateway, "rollout", "chat", "chat@7")
    assert "chat is chat@7 already, and so is :prod" in said
