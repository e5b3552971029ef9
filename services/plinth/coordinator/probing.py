"""The built-in probes: small sets of prompts with rules, in `probes/*.yaml`.

They find a model that has lost its manners, and certify nothing.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from plinth.coordinator.answers import AnswerRule

ProbeSet = Literal["harmlessness", "honesty"]


class Probe(BaseModel):
    """A prompt and what the answer must be like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1, max_length=1000)
    rule: AnswerRule


@cache
def probes(name: ProbeSet) -> tuple[Probe, ...]:
    """The probes of one set."""
    return tuple(Probe.model_validate(one) for one in yaml.safe_load(_text(name))["probes"])


def digest(name: ProbeSet) -> str:
    """Changes when the set does: an evaluation by other probes is another one."""
    return f"sha256:{hashlib.sha256(_text(name)).hexdigest()}"


@cache
def _text(name: ProbeSet) -> bytes:
    return (files("plinth.coordinator") / "probes" / f"{name}.yaml").read_bytes()
