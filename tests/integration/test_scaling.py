"""Real Ray Serve follows the load that replicas report: more of them, and fewer again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from plinth.cluster import ray_local
from plinth.cluster.layout import NUMBERS, StackPlan, StageSpec
from plinth.cluster.replicas import autoscaling
from plinth.cluster.stack import Stack
from plinth.internal.v1.deployments_pb2 import DeploymentRecord
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from trivial_stack import announced, answering, publish_model, told_models, until


class Loaded:
    """A stack whose replicas report what stands in `load`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "load"
        self.load(0.5)
        options = {"load": str(self._file)}
        shard = StageSpec("inference", "trivial_stage:build_shard", "inference", options=options)
        echo = StageSpec("echo", "trivial_stage:build_echo", options=options, max_replicas=3)
        settings = load_settings(
            data_dir=folder / "data",
            gateway__port=0,
            gateway__grpc_port=0,
            scaling__over_s=12.0,
            scaling__down_after_s=3.0,
        )
        self.stack = Stack.up(settings, plan=StackPlan((echo,), shard, gateway=""))

    def load(self, ratio: float) -> None:
        """By one rename: a replica may read at any time."""
        staged = self._file.with_suffix(".new")
        staged.write_text(str(ratio))
        staged.replace(self._file)

    def figures(self, stage: str) -> str:
        """What all of its replicas tell Prometheus."""
        found = [one.fields["metrics"] for one in announced(self.stack, stage)]
        return "\n".join(httpx.get(f"http://{where}/metrics").text for where in found)

    def ids(self, stage: str, number: int) -> set[str]:
        """Of its replicas, once there are `number`, all of which answer."""

        def found() -> set[str] | None:
            ids = {replica.id for replica in answering(self.stack, stage)}
            return ids if len(ids) == number else None

        ids: set[str] = until(found, f"{number} of {stage}")
        return ids


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with pytest.MonkeyPatch.context() as patch:
        tests = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        up = Loaded(tmp_path_factory.mktemp("s"))
        yield up
        up.stack.down()


def test_shards_follow_their_load_between_their_bounds(loaded: Loaded) -> None:
    records = DeploymentRecords(ArtifactStore(loaded.stack.settings.store()))
    ref = publish_model(loaded.stack, "chat")

    def want(most: int) -> None:
        records.put(DeploymentRecord(name="chat", artifact=ref, shards=1, max_shards=most))

    def told(number: int) -> dict[str, object]:
        def found() -> dict[str, object] | None:
            chat = told_models(loaded.stack)["chat"]
            return chat if chat["shards"] == chat["ready"] == number else None

        chat: dict[str, object] = until(found, f"{number} shards are told of")
        return chat

    want(most=0)
    first = loaded.ids("inference", 1)
    # A fixed number holds whatever the load; new bounds are no new replica.
    loaded.load(1.6)
    want(most=2)
    two = loaded.ids("inference", 2)
    assert first < two
    assert (told(2)["min_shards"], told(2)["max_shards"]) == (1, 2)
    figures = loaded.figures("reconciler")
    assert 'plinth_model_shards_wanted{model="chat"} 2.0' in figures
    assert 'plinth_stage_replicas_wanted{stage="inference"} 2.0' in figures
    assert 'plinth_stage_load_ratio{stage="inference"} 1.6' in loaded.figures("inference")
    # Two at a third of their target are one too many.
    loaded.load(0.3)
    assert loaded.ids("inference", 1) < two
    assert told(1)["max_shards"] == 2


# Deploys a declared configuration, as KubeRay and the head of static pods do.
DECLARE = """
import json, ray, sys
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init(address=sys.argv[1], namespace="plinth", log_to_driver=False, configure_logging=False)
_get_global_client().deploy_apps(ServeDeploySchema(**json.load(sys.stdin)))
"""


def _declare(stack: Stack, spec: StageSpec) -> None:
    """As the chart does: the numbers beside the arguments."""
    application = {
        "name": spec.name,
        "import_path": "plinth.cluster.applications:stage",
        "route_prefix": None,
        "args": {key: value for key, value in asdict(spec).items() if key not in NUMBERS},
        "deployments": [{"name": spec.name, "autoscaling_config": autoscaling(spec)}],
    }
    state = stack.state()
    assert state is not None
    subprocess.run(
        [sys.executable, "-c", DECLARE, state.components["ray"].address],
        input=json.dumps({"proxy_location": "Disabled", "applications": [application]}),
        env=ray_local.environment(stack.layout, os.environ),
        text=True,
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_numbers_that_are_declared_are_no_new_replicas(loaded: Loaded) -> None:
    spec = StageSpec("declared", "trivial_stage:build_shard", "declared", {"declared": "yes"})

    def ids(number: int) -> set[str]:
        def found() -> set[str] | None:
            there = [r for r in answering(loaded.stack, "inference") if "declared" in r.fields]
            return {replica.id for replica in there} if len(there) == number else None

        ids: set[str] = until(found, f"{number} replicas of the declared stage")
        return ids

    _declare(loaded.stack, spec)
    first = ids(1)
    _declare(loaded.stack, replace(spec, replicas=2, max_replicas=4))
    two = ids(2)
    assert first < two
    _declare(loaded.stack, spec)
    assert ids(1) < two


@pytest.mark.slow
def test_a_stage_follows_its_load(loaded: Loaded) -> None:
    loaded.load(0.5)
    first = loaded.ids("echo", 1)
    loaded.load(1.6)
    two = loaded.ids("echo", 2)
    assert first < two
    loaded.load(0.3)
    assert loaded.ids("echo", 1) < two
