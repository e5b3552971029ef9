"""Logs and metrics as a machine reads them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import urllib.request

import pytest
import structlog

from hostile_texts import NASTY
from plinth.shared.errors import FailedPrecondition
from plinth.shared.identity import call_scope
from plinth.shared.settings import load_settings
from plinth.shared.telemetry import (
    configure_logging,
    counter,
    get_logger,
    start_metrics_server,
    stop_metrics_server,
)


@pytest.fixture
def _logging_restored():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    before = structlog.get_config()
    yield
    root.handlers[:], root.level = handlers, level
    structlog.configure(**before)


@pytest.fixture
def _json_logs(tmp_path, _logging_restored):
    configure_logging(load_settings(data_dir=tmp_path, log_format="json"), "tester")


def events(capsys) -> list[dict]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.usefixtures("_json_logs")
def test_an_event_is_one_json_line_on_stderr_with_the_request_id(capsys) -> None:
    log = get_logger("plinth.test")
    with call_scope(request_id="r-1"):
        log.info("token made", tokens=3, api_key="plinth-hunter2", cluster_token="hunter2")
        logging.getLogger("some.library").warning("it %s", "broke")
    log.debug("unseen")
    first, second = events(capsys)
    assert first["event"] == "token made"
    assert first["component"] == "tester"
    assert first["logger"] == "plinth.test"
    assert first["request_id"] == second["request_id"] == "r-1"
    assert first["tokens"] == 3
    assert "hunter2" not in str(first)
    assert (second["event"], second["level"]) == ("it broke", "warning")
    assert second["logger"] == "some.library"


@pytest.mark.usefixtures("_json_logs")
def test_a_traceback_stays_on_its_line_and_shows_no_locals(capsys) -> None:
    def fail() -> None:
        secret = "hunter2"
        raise ValueError(len(secret))

    try:
        fail()
    except ValueError:
        get_logger("plinth.test").exception("broke")
    (event,) = events(capsys)
    assert event["exception"][0]["exc_type"] == "ValueError"
    assert "hunter2" not in json.dumps([f.get("locals") for f in event["exception"][0]["frames"]])


@pytest.mark.usefixtures("_logging_restored")
def test_pretty_is_for_people(tmp_path, capsys) -> None:
    configure_logging(load_settings(data_dir=tmp_path, log_format="pretty"), "tester")
    get_logger("plinth.test").warning("look", here=1)
    line = capsys.readouterr().err
    assert "look" in line
    assert "here=1" in line
    assert not line.startswith("{")


def test_metrics_are_served_on_loopback_and_carry_the_prefix() -> None:
    made = counter("telemetry_test_total", "Made by a test.", ["kind"])
    made.labels("a").inc(2)
    try:
        port = start_metrics_server(0)
        assert start_metrics_server(0) == port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        assert 'plinth_telemetry_test_total{kind="a"} 2.0' in text
        assert "plinth_rpc_requests_total" in text or "# HELP" in text
    finally:
        stop_metrics_server()
    other = start_metrics_server(0)
    try:
        assert other > 0
    finally:
        stop_metrics_server()


def test_a_metrics_port_in_use_is_a_clear_error() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FailedPrecondition, match="PLINTH_METRICS_PORT"):
            start_metrics_server(taken.getsockname()[1])


def test_the_ground_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, plinth.shared.stage, plinth.shared.telemetry, plinth.cli.config;"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"


def test_errors_import_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import plinth.shared.errors;"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names;"
        "print(sorted(new))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "['plinth']"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize("form", ["json", "pretty"])
def test_whatever_an_event_holds_is_logged(tmp_path, monkeypatch, form) -> None:
    """To a file that is strict about UTF-8, as a log collector's is."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, "utf-8", "strict"))
    configure_logging(load_settings(data_dir=tmp_path, log_format=form), "tester")
    log, library = get_logger("plinth.test"), logging.getLogger("some.library")
    count = 0
    for value in (*NASTY, *map(ValueError, NASTY), Mute(), OSError(2, "no", "caf\udce9")):
        log.warning("it broke", error=value)
        try:
            raise value if isinstance(value, Exception) else ValueError(value)
        except Exception as error:
            log.exception("it broke", error=error)
            library.exception("it broke")
        count += 3
    sys.stderr.flush()
    told = written.getvalue().decode()
    if form == "json":
        assert [json.loads(line)["event"] for line in told.splitlines()] == ["it broke"] * count
    else:
        assert told.count("it broke") >= count
