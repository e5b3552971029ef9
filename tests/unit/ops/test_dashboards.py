"""The dashboards are what their source makes, and ask for nothing that the code doesn't export."""

from __future__ import annotations

import json
from pathlib import Path

import exported
import make
import pytest
import yaml
from grafana import Panel, Query

BOARDS = list(make.BOARDS.items())


def test_the_committed_files_are_what_the_source_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make.outdated() == []
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    assert len(make.outdated()) == len(BOARDS)
    make.main([])
    assert make.outdated() == []
    changed = tmp_path / "serving.json"
    changed.write_text(changed.read_text().replace("p95", "p96"))
    (tmp_path / "stray.json").write_text("{}")
    assert make.main(["--check"]) == 1
    assert make.outdated() == ["serving.json", "stray.json"]


@pytest.mark.parametrize(("name", "board"), BOARDS)
def test_every_query_asks_for_what_the_code_exports(name: str, board) -> None:
    for panel in board.panels():
        for query in panel.queries:
            assert exported.faults(query.expr) == [], panel.title
            assert exported.metrics_in(query.expr), panel.title
    for choice in board.choices:
        assert choice.label in exported.series()[choice.metric]


def test_everything_that_is_exported_is_shown_somewhere() -> None:
    shown = set()
    for _, board in BOARDS:
        for panel in board.panels():
            for query in panel.queries:
                shown |= exported.metrics_in(query.expr)
    unseen = [
        family.name
        for family in exported.families().values()
        if not shown & {name for name, _ in family.series()}
    ]
    assert unseen == []


@pytest.mark.parametrize(("name", "board"), BOARDS)
def test_panels_are_told_apart_and_lie_beside_one_another(name: str, board) -> None:
    made = json.loads(board.text(exported.appears))
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert len(panel["description"]) > 10


def test_a_panel_without_a_unit_or_a_word_is_none() -> None:
    query = (Query("up"),)
    with pytest.raises(AssertionError, match="unit"):
        Panel("a", "parsecs", "what to look for", query)
    with pytest.raises(AssertionError, match="what is it for"):
        Panel("a", "s", "", query)


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("sum(plinth_gone_total)", "plinth_gone_total is exported by nobody"),
        ('plinth_queue_items{que="a"}', "no label 'que'"),
        ("sum by (queu) (plinth_queue_items)", "the label 'queu'"),
        ('rate(plinth_request_ttft_seconds{le="1"}[5m])', "exported by nobody"),
        ('plinth_request_ttft_seconds_count{le="1"}', "no label 'le'"),
    ],
)
def test_a_wrong_query_is_found(expr: str, wrong: str) -> None:
    assert wrong in exported.faults(expr)[0]


def test_a_right_query_has_no_faults() -> None:
    rate = 'rate(plinth_request_ttft_seconds_bucket{model=~"a|b", job="x"}[5m])'
    assert exported.faults(f"sum by (le, model) ({rate})") == []


def test_each_condition_belongs_to_a_query_of_some_panel_or_rule() -> None:
    asked = [q.expr for board in make.BOARDS.values() for p in board.panels() for q in p.queries]
    rules = Path(make.__file__).parents[1] / "alerts" / "plinth.rules.yaml"
    groups = yaml.safe_load(rules.read_text())["groups"]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    for part in exported.APPEARS:
        assert any(part in expr for expr in asked), part
