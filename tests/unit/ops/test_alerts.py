"""Alerts: by the real promtool at work and at rest, each with its runbook, none on a metric that
nobody exports."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import exported
import pytest
import yaml

OPS = Path(__file__).resolve().parents[3] / "ops"
RULES, TESTS = OPS / "alerts" / "plinth.rules.yaml", OPS / "alerts" / "plinth.test.yaml"
RUNBOOKS = OPS / "runbooks"
SECTIONS = ("## What it means", "## First look", "## Fix", "## Escalate")
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not here (Debian: apt-get install prometheus)"
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = exported.recorded(rules())


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@needs_promtool
def test_the_rules_are_what_prometheus_takes() -> None:
    done = promtool("check", "rules", RULES.name, folder=RULES.parent)
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    done = promtool("test", "rules", TESTS.name, folder=TESTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("how", ["never", "at once"])
def test_the_tests_can_fail(tmp_path: Path, how: str) -> None:
    """Every alert is tested both ways: all silent, and all firing without their time, is told."""
    shutil.copy(TESTS, tmp_path)
    groups = yaml.safe_load(RULES.read_text())
    for rule in (rule for group in groups["groups"] for rule in group["rules"]):
        if "alert" in rule:
            rule["expr"] = "vector(1) > 1" if how == "never" else "vector(1)"
            rule.pop("for", None)
    (tmp_path / RULES.name).write_text(yaml.safe_dump(groups))
    done = promtool("test", "rules", TESTS.name, folder=tmp_path)
    said = done.stdout + done.stderr
    failed = set(re.findall(r"alertname=.{1,2}(\w+?)\\?\"", said))
    assert failed == set(ALERTS), set(ALERTS) - failed


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_the_code_exports(rule: dict[str, Any]) -> None:
    assert exported.faults(rule["expr"], RECORDED) == []
    assert exported.metrics_in(rule["expr"])


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert notes["runbook"] == f"ops/runbooks/{alert}.md"
    # A label that the expression aggregates away would be an empty word in the summary.
    used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
    known = exported.series() | RECORDED
    for label in used:
        names = exported.metrics_in(rule["expr"])
        assert any(label in known[name] | exported.TARGET_LABELS for name in names), label


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    look = text[places[1] : places[2]]
    assert re.search(r"On a laptop:\n\n```sh\n.+In a cluster:\n\n```sh\n.*kubectl", look, re.S)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_says_when_its_alert_has_nothing_to_look_at(alert: str) -> None:
    """A query without data is silent as one at rest is: who looks at night must know which."""
    text = " ".join((RUNBOOKS / f"{alert}.md").read_text().split())
    said = re.findall(r"No data until (.+?)\.(?= |$)", text)
    assert set(said) == exported.conditions(ALERTS[alert]["expr"], rules())


def test_every_runbook_has_an_alert_and_a_line_in_the_list() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == set(ALERTS)
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text(), re.M)
    assert listed == [(alert, alert) for alert in ALERTS]


def test_commands_in_runbooks_are_commands() -> None:
    """What follows `plinth` in a block of shell is a command of ours, with options that it has."""
    from typer.main import get_command

    from plinth.cli import main

    root = get_command(main._typer)
    blocks = [
        block
        for path in RUNBOOKS.glob("*.md")
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.S)
    ]
    calls = set(re.findall(r"(?:^|-- )plinth ([^#|\n]+)", "\n".join(blocks), re.M))
    assert len(calls) > 10
    for call in calls:
        words = call.split()
        command: Any = root
        while (
            words and hasattr(command, "list_commands") and words[0] in command.list_commands(None)
        ):  # type: ignore[arg-type]
            command = command.get_command(None, words.pop(0))
        assert command is not root, call
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, call
