"""What a dashboard is made of, and how Grafana writes it down.

A board is rows of panels; a panel is queries with a unit and a word on what to look for, which
Grafana shows behind the "i". Ids and places are dealt in order, so that the same source makes the
same JSON. Knows no metric.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Appears = Callable[[str], str | None]
SCHEMA = 39  # Grafana 11 and later; older ones migrate it
COLUMNS = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Grafana's names: https://github.com/grafana/grafana/blob/main/packages/grafana-data/src/valueFormats
UNITS = frozenset({"short", "percentunit", "s", "bytes", "reqps", "tokps", "ops", "bool_yes_no"})
# "tokps" is no name of Grafana's, which has a suffix for such things.
_SUFFIXED = {"tokps": "suffix: tokens/s"}


@dataclass(frozen=True)
class Query:
    """PromQL and the legend of its series: `{{label}}` is replaced."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `description` says what to look for; `width` is in columns of 24."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    red_above: float | None = None  # drawn as a line, and the figure turns red
    red_below: float | None = None
    stack: bool = False

    def __post_init__(self) -> None:
        assert self.unit in UNITS, f"{self.title}: unit {self.unit!r} is none of {sorted(UNITS)}"
        assert self.description and self.queries, f"{self.title}: what is it for?"

    def json(self, number: int, x: int, y: int, appears: Appears) -> dict[str, Any]:
        """As Grafana wants it, at a place of its grid."""
        conditions = dict.fromkeys(appears(query.expr) for query in self.queries)
        notes = [f"Empty until {when}." for when in conditions if when]
        options: dict[str, Any] = {"tooltip": {"mode": "multi", "sort": "desc"}}
        options["legend"] = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        if self.kind == "stat":
            options = {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "colorMode": "background",
                "graphMode": "area",
                "textMode": "auto",
            }
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": " ".join([self.description, *notes]),
            "datasource": SOURCE,
            "gridPos": {"h": HEIGHT, "w": self.width, "x": x, "y": y},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": SOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "range": True,
                }
                for index, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": options,
        }

    def _defaults(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.red_above is not None:
            steps.append({"color": "red", "value": self.red_above})
        if self.red_below is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": self.red_below}]
        drawn = self.red_above is not None or self.red_below is not None
        return {
            "unit": _SUFFIXED.get(self.unit, self.unit),
            "min": 0,
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": {
                "fillOpacity": 20 if self.stack else 5,
                "stacking": {"mode": "normal" if self.stack else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if drawn else "off"},
                "showPoints": "never",
            },
        }


@dataclass(frozen=True)
class Choice:
    """A variable of the board: the values of `label` of `metric`."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True)
class Board:
    """One dashboard. `uid` stays for ever: links hold it."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    choices: tuple[Choice, ...] = ()

    def panels(self) -> Iterator[Panel]:
        for _, panels in self.rows:
            yield from panels

    def text(self, appears: Appears) -> str:
        """The file as it is committed and imported. `appears`: when a query finds something."""
        return json.dumps(self.json(appears), indent=2, ensure_ascii=False) + "\n"

    def json(self, appears: Appears) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["plinth"],
            "schemaVersion": SCHEMA,
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_SOURCE_CHOICE, *map(_choice, self.choices)]},
            "panels": list(self._placed(appears)),
        }

    def _placed(self, appears: Appears) -> Iterator[dict[str, Any]]:
        number, y = 0, 0
        for title, panels in self.rows:
            number += 1
            place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
            x, y = 0, y + 1
            for panel in panels:
                if x + panel.width > COLUMNS:
                    x, y = 0, y + HEIGHT
                number += 1
                yield panel.json(number, x, y, appears)
                x += panel.width
            y += HEIGHT


_SOURCE_CHOICE = {
    "name": "datasource",
    "type": "datasource",
    "query": "prometheus",
    "label": "Prometheus",
}


def _choice(choice: Choice) -> dict[str, Any]:
    query = f"label_values({choice.metric}, {choice.label})"
    return {
        "name": choice.name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "A"},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
