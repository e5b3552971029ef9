"""The outcome of a step "compare" on the screen: models side by side, then what they said."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from plinth.cli.chat import printable
from plinth.cli.tables import WholeTable

# Lines that some templates (ChatML's) write as plain text around what was said.
_ROLES = {"system", "user", "human", "assistant", "model"}


def contest(figures: dict[str, Any]) -> RenderableType:
    """`figures`: the step's metrics."""
    parts: list[RenderableType] = [_table(figures), Text(figures.get("why", ""))]
    parts += [_shown(one, figures["models"]) for one in figures.get("shown", ())]
    return Group(*parts)


def _table(figures: dict[str, Any]) -> WholeTable:
    models = figures["models"]
    judged = ["model", "reward", "wins against the first", "95 % interval"]
    said = ["distinct trigrams"] if all("distinct_trigrams" in m for m in models.values()) else []
    if all("reference_own" in model for model in models.values()):
        said += ["names its reference", "another's", "p"]
    table = WholeTable()
    for title in (*judged, *said, ""):
        table.add_column(title, justify="left" if title in {"model", ""} else "right")
    for name, model in models.items():
        first = name == "baseline"  # which is not compared with itself
        cells = [
            str(model["model"]),
            f"{model['reward']:+.3f}",
            "" if first else f"{model['win_rate']:.1%}",
            "" if first else f"{model['win_rate_low']:.1%} to {model['win_rate_high']:.1%}",
        ]
        if said:
            cells.append(f"{model['distinct_trigrams']:.2f}")
        if len(said) > 1:
            cells += [f"{model[f'reference_{whose}']:.1%}" for whose in ("own", "others")]
            cells.append(f"{model['reference_p_value']:.2g}")
        table.add_row(*cells, "goes on" if name == figures["winner"] else "")
    return table


def _shown(one: dict[str, Any], models: dict[str, Any]) -> RenderableType:
    """A prompt, the dataset's own answer to it, and each model's."""
    lines = [line for line in one["prompt"].splitlines() if line.strip().lower() not in _ROLES]
    table = WholeTable("model", "answer", texts=("answer",))
    table.show_header = False
    if one.get("reference") is not None:
        table.add_row(Text("the dataset's own", "dim"), Text(_said(one["reference"]), "dim"))
    for name, answer in one["answers"].items():
        table.add_row(str(models[name]["model"]), Text(_said(answer)))
    return Group(Text("\n> " + printable("\n".join(lines)).strip(), "bold"), table)


def _said(answer: str) -> str:
    return printable(answer).strip() or "(nothing)"
