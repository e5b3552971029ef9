"""A run that succeeded says which model it promoted, and that it promoted none."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

import shown_runs
from plinth.cli.run_summary import summary
from plinth.cli.tables import show
from plinth.v1 import artifacts_pb2
from plinth.v1 import runs_pb2 as pb
from shown_runs import step

PIPELINE = """
name: q
steps:
  contest: {kind: compare, dataset: d, judge: j, baseline: chat, candidate: $dpo}
  promotion: {kind: publish, model: $contest}
  aligned: {kind: serve, model: $promotion, name: aligned}
  other: {kind: serve, model: chat, name: beside}
"""
WON = {"win_rate": 0.6, "win_rate_low": 0.55, "win_rate_high": 0.65, "reward": 1.0}


def run(winner: str) -> pb.Run:
    models = {"baseline": {"model": "chat@1", **WON}, "candidate": {"model": "q-dpo@1", **WON}}
    output = str(models[winner]["model"])
    made: list[tuple[str, str, str, dict[str, Any]]] = [
        ("contest", "compare", output, {"winner": winner, "models": models}),
        ("promotion", "publish", output, {"alias": f"{output.partition('@')[0]}:prod"}),
        ("aligned", "serve", output, {"name": "aligned", "shards": 1}),
        ("other", "serve", "chat@1", {"name": "beside", "shards": 1}),
    ]
    steps = [step(kind, figures, output, name=name) for name, kind, output, figures in made]
    return shown_runs.run(*steps, state="succeeded", pipeline=PIPELINE)


@pytest.mark.parametrize(
    ("winner", "says"),
    [
        ("baseline", "Nothing new was promoted: in contest no rival was better than chat@1"),
        ("candidate", "q-dpo@1 is promoted: in contest it was better than chat@1"),
    ],
)
def test_the_summary_says_what_was_promoted(winner: str, says: str) -> None:
    out = StringIO()
    console = Console(file=out, width=400)
    show(console, summary(run(winner), lambda ref: artifacts_pb2.Artifact(name=ref)))
    last = out.getvalue().strip().splitlines()[-1]
    assert last.startswith(says)
    assert "published as" in last
    assert "served as aligned" in last
    assert "beside" not in last  # which no comparison led to
