"""What an evaluation asks of a candidate before it may go on. Pure: figures in, a refusal out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plinth.coordinator.answers import Judged
from plinth.shared.differences import beside, digits_apart
from plinth.shared.errors import FailedPrecondition

_SHOWN, _SHOWN_CHARS = 20, 500  # answers that broke a rule, in a report


class EvaluateRequire(BaseModel):
    """Conditions that the candidate must meet; those not given are not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.06: at least 6 % fewer bits per byte than the 5-gram.
    bits_per_byte_below_ngram: float | None = Field(default=None, gt=-10, lt=1)
    bits_per_byte_at_most: float | None = Field(default=None, gt=0)
    # 1.02: at most 2 % more bits per byte than `baseline`, on the same text.
    bits_per_byte_ratio_at_most: float | None = Field(default=None, gt=0, le=100)
    # Share of `checks` that must pass. Where there are checks, all must unless this says otherwise.
    checks_pass_at_least: float = Field(default=1.0, ge=0, le=1)
    # Share of the built-in probes that must pass: a smoke test, no certificate.
    harmlessness_at_least: float | None = Field(default=None, ge=0, le=1)
    honesty_at_least: float | None = Field(default=None, ge=0, le=1)


def tally(judged: Sequence[Judged]) -> dict[str, Any]:
    """{of, passed, share, failed: [{prompt, answer, why}]}, JSON-ready and bounded."""
    failed = [one for one in judged if one.why]
    passed = len(judged) - len(failed)
    return {
        "of": len(judged),
        "passed": passed,
        "share": passed / len(judged),
        "failed": [
            {
                "prompt": one.prompt[:_SHOWN_CHARS],
                "answer": one.answer[:_SHOWN_CHARS],
                "why": one.why[:_SHOWN_CHARS],
            }
            for one in failed[:_SHOWN]
        ],
    }


def check(require: EvaluateRequire, metrics: Mapping[str, Any]) -> None:
    """FailedPrecondition that says by how much the candidate falls short, and what to do. Of
    several gates that fail, all are told."""
    failed = [
        *_bits(require, metrics),
        *_share("checks_pass_at_least", require.checks_pass_at_least, metrics.get("checks")),
        *_share(
            "harmlessness_at_least", require.harmlessness_at_least, metrics.get("harmlessness")
        ),
        *_share("honesty_at_least", require.honesty_at_least, metrics.get("honesty")),
    ]
    if failed:
        raise FailedPrecondition(
            "; ".join(why for _, why in failed),
            reason="REQUIREMENT_NOT_MET",
            field=f"require.{failed[0][0]}",
        )


def _bits(require: EvaluateRequire, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    bits, ngram = metrics["bits_per_byte"], metrics["ngram_bits_per_byte"]
    failed = []
    required = require.bits_per_byte_below_ngram
    if required is not None and metrics["below_ngram"] < required:
        below = metrics["below_ngram"]
        digits = digits_apart(100 * below, 100 * required, 1)
        why = (
            f"{bits:.3f} bits per byte held out is {beside(below, digits)} the 5-gram's "
            f"{ngram:.3f}, {beside(required, digits)} it is required: give the step that trained "
            "it more max_seconds (docs/quickstart.md says how many are enough), more text, or "
            "lower require.bits_per_byte_below_ngram"
        )
        failed.append(("bits_per_byte_below_ngram", why))
    ceiling = require.bits_per_byte_at_most
    if ceiling is not None and bits > ceiling:
        digits = digits_apart(bits, ceiling, 3)
        why = f"{bits:.{digits}f} bits per byte held out, at most {ceiling:.{digits}f} is required"
        failed.append(("bits_per_byte_at_most", why))
    ratio = require.bits_per_byte_ratio_at_most
    if ratio is not None and bits > ratio * metrics["baseline_bits_per_byte"]:
        found = metrics["bits_per_byte_ratio"]
        digits = digits_apart(found, ratio, 3)
        why = (
            f"{bits:.3f} bits per byte held out, the baseline has "
            f"{metrics['baseline_bits_per_byte']:.3f}: a ratio of "
            f"{found:.{digits}f}, at most {ratio:.{digits}f} is required"
        )
        failed.append(("bits_per_byte_ratio_at_most", why))
    return failed


def _share(
    name: str, bar: float | None, figures: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    if bar is None or figures is None or figures["share"] >= bar:
        return []
    worst = figures["failed"][0]
    what = name.removesuffix("_pass_at_least").removesuffix("_at_least")
    return [
        (
            name,
            f"{figures['passed']} of {figures['of']} {what} passed, {bar:.0%} is required; the "
            f"answer to {worst['prompt'][:80]!r} {worst['why']}",
        )
    ]
