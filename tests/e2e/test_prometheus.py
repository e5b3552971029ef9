"""A real Prometheus on a running stack: every panel and alert finds its figures, and a killed shard
fires its alert."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exported
import httpx
import make
import openai
import pytest
import yaml
from grafana import Board

from plinth.cluster.ports import free_port
from plinth.shared.errors import PlinthError
from plinth.v1 import runs_pb2 as pb
from real_stack import PIPELINE, RealStack, until

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus (Debian: apt-get install it)"),
]
RULES = Path(__file__).parents[2] / "ops" / "alerts" / "plinth.rules.yaml"
STAGES = ("tokenizer", "trainer", "reward", "inference", "coordinator", "reconciler")


class Prometheus:
    """A server that asks the gateway for whom to scrape."""

    def __init__(self, folder: Path, real: RealStack) -> None:
        self.folder, self.real = folder, real
        self.url = f"http://127.0.0.1:{free_port()}"
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "2s"
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {
                    "job_name": "plinth",
                    "http_sd_configs": [
                        {
                            "url": f"{real.rest}/v1/metrics/targets",
                            "refresh_interval": "1s",
                            "authorization": {"type": "Bearer", "credentials": real.key},
                        }
                    ],
                }
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    str(PROMETHEUS),
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def series(self, expr: str) -> list[dict[str, Any]]:
        """What an instant query gives now; [] too while the server comes up."""
        try:
            answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=20)
        except httpx.TransportError:
            return []
        body = answer.json()
        assert body["status"] == "success", (expr, body)
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def firing(self, alert: str) -> bool:
        return bool(self.series(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


@pytest.fixture(scope="module")
def prometheus(real: RealStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), real)
    yield server
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(20)


def _traffic(real: RealStack) -> None:
    """Answers, whole and streamed, one refusal, and a run."""

    async def talk() -> None:
        async with real.openai() as client:
            for number in range(6):
                stream = await client.chat.completions.create(
                    model=real.model,
                    messages=[{"role": "user", "content": f"{number}: say hello."}],
                    max_tokens=8,
                    stream=True,
                )
                async for _ in stream:
                    pass
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(
                    model="nobody", messages=[{"role": "user", "content": "?"}]
                )

    asyncio.run(talk())
    with real.runs() as client, pytest.raises(PlinthError):
        client.get("no-such-run")


def test_every_panel_and_alert_finds_its_figures(real: RealStack, prometheus: Prometheus) -> None:
    with real.runs() as client:
        client.submit("watched", PIPELINE, {})
        for run in client.watch("watched"):
            _traffic(real)
            ended = run
    assert ended.status.state == pb.RUN_STATE_SUCCEEDED, ended.status.error
    until(lambda: len(prometheus.series("up == 1")) > len(STAGES), "everybody scraped", 30)
    _traffic(real)
    queries = {
        f"{name}: {panel.title}: {query.expr}": _over(board, query.expr)
        for name, board in make.BOARDS.items()
        for panel in board.panels()
        for query in panel.queries
    }
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:  # an alert at rest finds nothing; what it asks for is there
            for selector in exported.selectors_in(rule["expr"]):
                queries[f"{rule.get('alert') or rule['record']}: {selector}"] = selector
    # Within the last five minutes: what tells of the job went with it.
    found = {t: prometheus.series(f"count_over_time(({q})[5m:2s])") for t, q in queries.items()}
    empty = [title for title in queries if not found[title] and exported.appears(title) is None]
    assert not empty, "\n".join(empty)


def _over(board: Board, expr: str) -> str:
    """A panel's query with its variables set to everything."""
    for choice in board.choices:
        expr = expr.replace(f"${choice.name}", ".*")
    return expr.replace("$__rate_interval", "30s")


def test_a_killed_shard_fires_its_alert(real: RealStack, prometheus: Prometheus) -> None:
    until(lambda: prometheus.series("plinth_model_shards_ready"), "figures", 30)
    assert not prometheus.firing("ShardsMissing")
    real.kill("ServeReplica:inference")
    until(lambda: prometheus.firing("ShardsMissing"), "ShardsMissing", 60)
    until(lambda: len(real.replicas("inference")) == 2, "the shard's successor")
    until(lambda: not prometheus.firing("ShardsMissing"), "all is well again", 60)
