"""What a training that aligns did, on the screen: by held-out figures, before → after.

A loss says little of it: DPO's is at its best where the model has forgotten both answers, and a
policy's is near zero by construction. docs/objectives.md explains the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plinth.cli.tables import WholeTable

Figures = Mapping[str, Any]
# Nats per token that held-out preferred answers lost, from which on a run warns. Some loss is
# usual: quickstart.yaml's DPO costs 0.3, and 0.8 without its likelihood_weight.
FELL_ABOVE = 0.5


def line(figures: Figures) -> str | None:
    """One line of a step's metrics; None where it was no such training."""
    if "validation_reward_margin" in figures:
        return (
            f"{_right(figures)}, reward margin {figures['validation_reward_margin']:.2f}; "
            f"log p per token: chosen {_moved(figures, 'validation_chosen_logprob')}, "
            f"rejected {_moved(figures, 'validation_rejected_logprob')}"
        )
    if "validation_calibration_error" in figures:
        return _right(figures)
    if "validation_reward_before" in figures:
        kl = f", KL {figures['kl']:.2f} nats per answer" if "kl" in figures else ""
        return f"held-out reward {_moved(figures, 'validation_reward')}{kl}"
    return None


def table(steps: Mapping[str, Figures]) -> WholeTable | None:
    """The trainings on pairs among `steps`, by name, as a DPO user reads them; None without."""
    rows = {name: f for name, f in steps.items() if "validation_reward_margin" in f}
    if not rows:
        return None
    made = WholeTable()
    titles = ("held out", "pairs", "accuracy", "rewards/chosen", "rewards/rejected", "margin")
    for title in (*titles, "log p chosen", "log p rejected", "chosen fell"):
        made.add_column(title, justify="left" if title == titles[0] else "right")
    for name, figures in rows.items():
        made.add_row(
            name,
            f"{figures['validation_pairs']:,.0f}",
            f"{figures['validation_accuracy']:.1%}",
            *(f"{figures[f'validation_reward_{of}']:+.2f}" for of in ("chosen", "rejected")),
            f"{figures['validation_reward_margin']:+.2f}",
            *(_moved(figures, f"validation_{of}_logprob") for of in ("chosen", "rejected")),
            f"{figures['validation_chosen_fallen']:.0%}",
        )
    return made


def warnings(step: str, figures: Figures) -> Iterator[str]:
    """Of likelihood displacement: the preferred answers too became less likely."""
    after = figures.get("validation_chosen_logprob")
    if after is None:
        return
    if figures["validation_chosen_logprob_before"] - after > FELL_ABOVE:
        fallen, moved = figures["validation_chosen_fallen"], "validation_chosen_logprob"
        yield (
            f"{step} made {fallen:.0%} of the held-out preferred answers less likely (log p per "
            f"token {_moved(figures, moved)}): read its answers before you trust them. A higher "
            "pairs.likelihood_weight holds the preferred answers, a higher pairs.beta holds to the "
            "reference, a lower learning_rate or fewer steps move "
            "less"
        )


def _right(figures: Figures) -> str:
    pairs, right = figures["validation_pairs"], figures["validation_accuracy"]
    return f"{right:.0%} of {pairs:,.0f} held-out pairs in the right order"


def _moved(figures: Figures, name: str) -> str:
    return f"{figures[f'{name}_before']:.2f} → {figures[name]:.2f}"
