"""What a step took of what it was given, what it left out, and why: told wherever data goes in.

Steps put it into their figures and into the manifest of what they publish, as the list `intake`.
Past `WARN_ABOVE` of what was there the screen warns; past `max_left_out` (default
`REFUSE_ABOVE`) the step fails, since a result from the rest is hardly what was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plinth.shared.errors import InvalidArgument

WARN_ABOVE = 0.1
REFUSE_ABOVE = 0.5
# What is left out is told in words, with lengths and kinds of file; these few names are for who
# counts it (a label of a metric). By how the words begin.
REASONS = {
    "too_long": ("longer than ", "too long for ", "whose answers begin after "),
    "repeated": (
        "repeated word for word",
        "that repeat a held-out one",
        "asked in what is learned from",
        "topics that are there already",
    ),
    "unread": ("of kind ", "of other kinds", "in a folder that can't be opened", "a broken link"),
    "nothing_to_learn": (
        "without a token to learn",
        "of no two sentences of prose",
        "that no rule makes worse",
    ),
    "undecided": ("undecided", "that contradict"),
    "other": ("",),
}


def reason_of(why: str) -> str:
    """The name in REASONS of what `Intake.leave_out` was told."""
    return next(name for name, begins in REASONS.items() if why.startswith(begins))


@dataclass
class Intake:
    """Counts of one unit ("files", "documents", "chats", "pairs", "prompts")."""

    unit: str
    taken: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # why → how many
    # What was asked for, or taken in part: told, and no part of the share that is left out.
    noted: dict[str, int] = field(default_factory=dict)
    remedy: str = ""  # what would let in more of it, where it is known

    def leave_out(self, why: str, count: int = 1) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + count

    def note(self, what: str, count: int = 1) -> None:
        self.noted[what] = self.noted.get(what, 0) + count

    @property
    def missing(self) -> int:
        """How many were left out."""
        return sum(self.left_out.values())

    @property
    def share(self) -> float:
        """Of what was there, 0 to 1."""
        return self.missing / max(1, self.taken + self.missing)

    @property
    def warns(self) -> bool:
        return self.share > WARN_ABOVE

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "taken": self.taken,
            "left_out": dict(self.left_out),
            "noted": dict(self.noted),
            **({"remedy": self.remedy} if self.remedy else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Intake:
        left_out, noted = dict(value["left_out"]), dict(value["noted"])
        return cls(value["unit"], value["taken"], left_out, noted, value.get("remedy", ""))

    def line(self) -> str:
        """ "20 of 182 chats; left out: 162 longer than 256 tokens"."""
        total = self.taken + self.missing
        unit = self.unit.removesuffix("s") if total == 1 else self.unit
        parts = [
            f"{self.taken:,} of {total:,} {unit}" if self.missing else f"{self.taken:,} {unit}"
        ]
        if self.missing:
            parts.append(f"left out: {_counts(self.left_out)}")
        if self.noted:
            parts.append(_counts(self.noted))
        return "; ".join(parts)


def _counts(found: Mapping[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count:,} {why}" for why, count in ordered)


def intakes_of(figures: Mapping[str, Any]) -> list[Intake]:
    """Those of a step's figures or an artifact's metrics."""
    return [Intake.from_json(one) for one in figures.get("intake", [])]


def check_intake(
    intakes: Iterable[Intake],
    limit: float | None,
    remedy: str,
    *,
    setting: str = "max_left_out: {}",
) -> None:
    """InvalidArgument (LEFT_OUT) where more than `limit` of a unit is left out (None:
    REFUSE_ABOVE). `remedy`: what to do instead of accepting it; `setting`: how it is accepted."""
    most = REFUSE_ABOVE if limit is None else limit
    for intake in intakes:
        if intake.share > most:
            raise InvalidArgument(
                f"{intake.line()}: that leaves out {intake.share:.0%}, more than {most:.0%}. "
                f"{remedy}, or accept it by {setting.format(_accepting(intake.share))}",
                reason="LEFT_OUT",
                field="max_left_out",
            )


def _accepting(share: float) -> str:
    """The least setting, in hundredths, that lets `share` pass."""
    hundredths = -int(-share * 100 // 1)  # rounded up
    return f"{min(1.0, hundredths / 100):g}"
