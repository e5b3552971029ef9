"""The declarative configuration: read, refused, applied, and applied again after a loss."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from plinth.cluster.applications import IMPORT_PATH, Keeper, read_configuration, spec_of, stage
from plinth.cluster.layout import StageSpec
from plinth.cluster.replicas import StageReplica
from plinth.shared.errors import InvalidArgument

# Ray Serve's own schemas speak pydantic's older dialect.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
SPEC = StageSpec(
    "tokenizer",
    "plinth.tokenizer.service:build",
    replicas=2,
    resources={"plinth/tokenizer": 1.0},
    surge_percent=0,
)


def configuration() -> dict:
    return {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "tokenizer",
                "import_path": IMPORT_PATH,
                "route_prefix": None,
                "args": asdict(SPEC),
            }
        ],
    }


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_stage_from_arguments_is_placed_where_its_resource_is() -> None:
    deployment = stage(asdict(SPEC))._bound_deployment
    assert deployment.ray_actor_options == {
        "num_cpus": 0.1,
        "num_gpus": 0.0,
        "resources": {"plinth/tokenizer": 1.0},
    }
    config = deployment._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (2, 2)
    assert deployment._deployment_config.max_surge_percent == 0
    assert deployment.version == SPEC.digest()


def test_serve_kills_a_replica_only_after_its_drain() -> None:
    for seconds in (25.0, 300.0):
        deployment = stage(asdict(replace(SPEC, drain_s=seconds)))._bound_deployment
        assert deployment._deployment_config.graceful_shutdown_timeout_s > seconds


async def test_a_replica_lets_answers_run_for_as_long_as_its_stage_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Held:
        """A replica that Serve's own end of it does not reach: no `__del__`."""

        _running = None

        async def _open(self, spec: StageSpec) -> None: ...

        async def _close(self, grace_s: float) -> None:
            given.append(grace_s)

    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PLINTH_LOG_TO", "stderr")
    replica: Any = Held()
    await StageReplica.__init__(replica, asdict(replace(SPEC, drain_s=85.0)))
    await StageReplica.__del__(replica)
    assert given == [85.0]


def test_a_configuration_is_one_that_serve_takes(tmp_path) -> None:
    from ray.serve.schema import ServeDeploySchema

    found = read_configuration(written(tmp_path, configuration()))
    assert ServeDeploySchema.model_validate(found).applications[0].args == asdict(SPEC)
    assert spec_of(found["applications"][0]["args"]) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(http_options={}), "and nothing else"),
        (lambda c: c.update(proxy_location="HeadOnly"), "must be Disabled"),
        (lambda c: c["applications"][0].update(import_path="other:app"), "must be imported from"),
        (lambda c: c["applications"][0].update(name="other"), "runs stage tokenizer"),
        (lambda c: c["applications"][0]["args"].update(replica=1), "replica"),
    ],
)
def test_a_wrong_configuration_says_what_would_be_right(tmp_path, change, message) -> None:
    content = configuration()
    change(content)
    with pytest.raises(InvalidArgument, match=message):
        read_configuration(written(tmp_path, content))


class Dashboard:
    """Serve's API as the keeper uses it: what was deployed is there until it is lost."""

    def __init__(self) -> None:
        self.applications: dict = {}
        self.deployed = 0

    def get_serve_details(self) -> dict:
        return {"applications": dict(self.applications)}

    def deploy_applications(self, config: dict) -> None:
        self.deployed += 1
        self.applications.update({one["name"]: {} for one in config["applications"]})


def test_it_is_applied_once_and_again_only_after_a_loss() -> None:
    dashboard = Dashboard()
    # What an earlier process left may be of an older configuration, so a new one always applies.
    dashboard.applications = {"tokenizer": {}}
    keeper = Keeper(lambda: dashboard, configuration())
    assert [keeper.look() for _ in range(3)] == [True, False, False]
    dashboard.applications = {"inference-chat": {}}
    assert [keeper.look() for _ in range(2)] == [True, False]
    assert "inference-chat" in dashboard.applications
    assert dashboard.deployed == 2


def test_a_failed_application_is_tried_again() -> None:
    class Starting(Dashboard):
        def deploy_applications(self, config: dict) -> None:
            if not self.deployed:
                self.deployed += 1
                raise ConnectionError("the head starts")
            super().deploy_applications(config)

    keeper = Keeper(Starting, configuration())
    with pytest.raises(ConnectionError):
        keeper.look()
    assert keeper.look()
    assert not keeper.look()


def test_a_head_that_does_not_answer_yet_is_asked_again() -> None:
    dashboard, asked = Dashboard(), []

    def connect() -> Dashboard:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("Failed to connect to Ray at address")
        return dashboard

    keeper = Keeper(connect, configuration())
    for _ in range(2):
        with pytest.raises(ConnectionError):
            keeper.look()
    assert [keeper.look() for _ in range(2)] == [True, False]
    assert len(asked) == 3
