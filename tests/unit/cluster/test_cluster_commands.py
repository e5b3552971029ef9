"""What the commands show, and what they are made of; no stack runs here."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from plinth.cli.stack_table import UpTable, doctor_screen, status_screen
from plinth.cli.tables import show
from plinth.cluster import doctor, ports, serve_model
from plinth.cluster.layout import ComponentState, Layout
from plinth.cluster.logs import follow_logs, log_files, tail
from plinth.cluster.stack import Stack, StackEvent, connect_clients, running_state
from plinth.shared import status_views
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore
from plinth.v1 import deployments_pb2, operations_pb2


def _rendered(what: RenderableType) -> str:
    screen = io.StringIO()
    show(Console(width=140, file=screen), what)
    return screen.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", gateway__port=0, gateway__grpc_port=0)


def test_doctor_finds_this_machine_fit_and_says_what_is_wrong(settings: Settings) -> None:
    findings = {f.check: f for f in doctor.examine(settings)}
    assert {"python", "packages", "redis", "cpu", "memory", "ports", "leftovers"} <= set(findings)
    assert [f for f in findings.values() if f.level == "fail"] == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        crowded = load_settings(data_dir=settings.data_dir, gateway__port=port)
        found = next(f for f in doctor.examine(crowded) if f.check == "ports")
    assert found.level == "fail"
    assert "PLINTH_GATEWAY__PORT" in found.advice
    assert "PLINTH_GATEWAY__PORT" in _rendered(doctor_screen([found]))


def test_doctor_tells_of_a_data_directory_that_others_can_look_into(settings: Settings) -> None:
    def privacy() -> list[str]:
        return [f.advice for f in doctor.examine(settings) if f.check == "privacy"]

    assert privacy() == []  # none yet: it will be made for its owner
    settings.data_dir.mkdir(mode=0o700)
    assert privacy() == []
    settings.data_dir.chmod(0o755)
    assert privacy()[0].startswith(f"chmod 700 {settings.data_dir}")


@pytest.mark.parametrize("object_server", ["s3"], indirect=True)
def test_doctor_asks_the_bucket(
    bucket: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = settings.model_copy(update={"store_url": bucket})
    found = {f.check: f for f in doctor.examine(there)}["store"]
    assert found.level == "ok" and bucket in found.found
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = {f.check: f for f in doctor.examine(there)}["store"]
    assert found.level == "fail" and "check AWS_ACCESS_KEY_ID" in found.advice


def test_the_holder_of_a_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ports.taken("127.0.0.1", port)
        assert "pid" in ports.holder(port)
    assert not ports.taken("127.0.0.1", port)


def test_without_a_stack_commands_say_what_to_do(settings: Settings) -> None:
    stack = Stack(settings)
    assert not stack.running()
    assert stack.state() is None
    assert stack.down() == 0
    for call in (running_state, connect_clients):
        with pytest.raises(NotFound, match="plinth up"):
            call(settings)


def test_logs_are_found_cut_and_followed(settings: Settings) -> None:
    layout = Layout.of(settings)
    layout.logs.mkdir(parents=True)
    layout.log("echo").write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(layout.log("echo"), 2) == ["line 98", "line 99"]
    assert list(log_files(layout)) == ["echo"]
    with pytest.raises(NotFound, match="echo"):
        log_files(layout, "nothing")
    following = follow_logs(layout)
    # The generator notes where the files end when it is first asked; write after that.
    writer = threading.Timer(0.5, lambda: layout.log("new").write_text("first\nunfinished"))
    writer.start()
    assert next(following) == ("new", "first")
    writer.join()


def test_the_up_table_shows_each_part_once() -> None:
    table = UpTable()
    table.update(StackEvent("redis", ComponentState("starting"), 0.1))
    line = table.update(StackEvent("redis", ComponentState("ready", address="here"), 0.4))
    assert line.split() == ["0.4", "s", "redis", "ready", "here"]
    table.update(StackEvent("ray", ComponentState("failed", detail="[boom]"), 1.0))
    shown = _rendered(table)
    assert shown.count("redis") == 1
    assert "[boom]" in shown


def test_the_status_screen_names_what_it_could_not_learn() -> None:
    model = operations_pb2.ModelStatus(
        artifact="chat@1", shards=2, ready_shards=1, state=deployments_pb2.DEPLOYMENT_STATE_STARTING
    )
    code = operations_pb2.ModelStatus(model="code", min_shards=1, max_shards=4)
    code.MergeFrom(model)
    model.model = "chat"
    queue = operations_pb2.Queue(name="queues/trainer-jobs", waiting=7, claimed=1)
    canary = operations_pb2.CanaryStatus(
        model="chat", state=operations_pb2.CANARY_STATE_OPEN, step="run-7"
    )
    found = {
        "stack": {
            "phase": "ready",
            "up_s": 61,
            "url": "http://127.0.0.1:1",
            "grpc": "127.0.0.1:2",
            "data_dir": "/d",
        },
        "components": {"redis": vars(ComponentState("ready", pid=4))},
        "processes": [{"memory_bytes": 1 << 30}],
        "replicas": [
            status_views.replica(
                operations_pb2.ReplicaStatus(
                    stage="echo", address="a:1", replica_id="echo-1", running=3, kv_use=0.25
                )
            )
        ],
        "models": [status_views.model(model), status_views.model(code)],
        "queues": [status_views.queue(queue)],
        "canaries": [status_views.canary(canary)],
        "runs": [],
        "errors": [{"where": "redis", "what": "takes no writes"}],
        "unknown": {"runs": "no coordinator"},
    }
    shown = _rendered(status_screen(found))
    for word in (
        "1.00 GiB",
        "echo-1",
        "chat@1",
        "1/2 ",
        "1/2 (1-4)",
        "trainer-jobs",
        "no coordinator",
        "25%",
        "run-7",
        "takes no writes",
    ):
        assert word in shown


def test_an_artifact_is_served_under_its_name_and_keeps_its_shards(
    settings: Settings, tmp_path: Path
) -> None:
    store = ArtifactStore(settings.store())
    for number in (1, 2):
        (tmp_path / f"m{number}").mkdir()
        (tmp_path / f"m{number}" / "config.json").write_text(str(number))
        store.publish("chat", "model", tmp_path / f"m{number}")
    assert serve_model.serve_model(settings, "chat@1").artifact == "chat@1"
    records = DeploymentRecords(store)
    wanted = records.list()[0]
    wanted.shards = 3
    records.put(wanted)
    served = serve_model.serve_model(settings, "chat")
    assert (served.name, served.artifact, served.shards) == ("chat", "chat@2", 3)
    with pytest.raises(NotFound):
        serve_model.serve_model(settings, "absent")
    store.publish("words", "tokenizer", tmp_path / "m1")
    with pytest.raises(FailedPrecondition, match="only a model"):
        serve_model.serve_model(settings, "words")


def test_what_came_from_a_hub_is_served_again_without_it(
    settings: Settings, tmp_path: Path
) -> None:
    store = ArtifactStore(settings.store())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    store.publish("tiny", "model", tmp_path / "m", extra={"source": "hf:org/tiny"})
    served = serve_model.serve_model(settings, "hf:org/tiny")
    assert (served.name, served.artifact) == ("tiny", "tiny@1")
