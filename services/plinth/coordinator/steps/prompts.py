"""Step "prompts": topics times constraints, or a user's own file, split into what is learned from
and what is held out.

    topics: [the moon, bread]           one prompt per topic and constraint
    ask: Tell me about {topic}.
    constraints:
      - {name: brief, ask: Use at most 20 words., checks: [{kind: max_words, n: 20}]}

Whole topics are held out: nothing that is asked at the end was ever seen with another constraint.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from plinth.coordinator.steps.contract import Name, Progress, StepOutcome, StepSpec, Tools, Work
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.intake import Intake, check_intake
from plinth.shared.prompt_set import MAX_CHECKS, Prompt, read_prompts, write_prompts
from plinth.shared.source_roots import SourceRoots
from plinth.shared.splits import SPLITS, normalised
from plinth.shared.store import ArtifactRecord

Topic = Annotated[str, Field(min_length=1, max_length=200)]


class Constraint(BaseModel):
    """What an answer must keep, in words and as rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    ask: str = Field(min_length=1, max_length=2000)
    checks: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=MAX_CHECKS)


class PromptsSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {}

    kind: Literal["prompts"]
    # Either a file of JSON lines ({"prompt", "group", "checks"}), or topics and constraints.
    file: str | None = Field(default=None, max_length=4096)
    topics: tuple[Topic, ...] = Field(default=(), max_length=10_000)
    ask: str = Field(default="Tell me about {topic}.", max_length=2000)
    constraints: tuple[Constraint, ...] = Field(default=(), max_length=100)
    # Of the topics, or of the file's prompts: the last so many are held out.
    held_out: int = Field(ge=1, le=100_000)
    # The share of the topics, or of the file's prompts, that may be left out before the step fails.
    max_left_out: float | None = Field(default=None, ge=0, le=1)

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute():
            raise ValueError(f"must be an absolute path, not {value!r}: it is read elsewhere")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PromptsSpec:
        if (self.file is None) == (not self.topics):
            raise ValueError("give either a file, or topics with constraints")
        if self.topics and not self.constraints:
            raise ValueError("topics need constraints: what an answer must keep")
        if self.topics and "{topic}" not in self.ask:
            raise ValueError("ask must hold {topic}")
        different = len(set(map(normalised, self.topics)))
        if self.topics and self.held_out >= different:
            raise ValueError(f"held_out must leave some of the {different} topics")
        return self

    def paths(self) -> dict[str, str]:
        return {} if self.file is None else {"file": self.file}

    def produces(self) -> str:
        return "prompts"


class PromptsStep:
    spec: type[StepSpec] = PromptsSpec
    pure = True

    def surroundings(self, spec: PromptsSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        if spec.file is None:
            return {}
        path = Path(spec.file)
        if not path.is_file():
            return {"file": f"unseen, run {run_id}"}
        return {"file": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, PromptsSpec)
        record, counts = await asyncio.to_thread(_publish, work, spec, tools)
        yield StepOutcome(record.ref, counts)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Nothing to do: the artifact was published whole or not at all."""


def split(spec: PromptsSpec, intake: Intake) -> dict[str, list[Prompt]]:
    """Prompts by split; `intake` is told what was left out. Blocks on the file, if there is one."""
    if spec.file is not None:
        return _split_file(Path(spec.file), spec.held_out, intake)
    topics = {normalised(topic): topic for topic in reversed(spec.topics)}  # the first spelling
    for _ in range(len(spec.topics) - len(topics)):
        intake.leave_out("topics that are there already")
    order = list(dict.fromkeys(topics[normalised(topic)] for topic in spec.topics))
    sides = {"train": order[: -spec.held_out], "validation": order[-spec.held_out :]}
    made = {
        name: [
            Prompt(f"{spec.ask.replace('{topic}', topic)} {one.ask}", one.name, one.checks)
            for topic in side
            for one in spec.constraints
        ]
        for name, side in sides.items()
    }
    intake.taken = sum(map(len, made.values()))
    return made


def _split_file(path: Path, held_out: int, intake: Intake) -> dict[str, list[Prompt]]:
    """The last `held_out` are held out; one before them that is the same but for case and white
    space is left out, since it would teach what is to be measured."""
    if not path.is_file():
        raise NotFound(f"there is no file {path} on the coordinator's machine")
    prompts = list(read_prompts(path))
    held = prompts[-held_out:]
    keys = {prompt.key for prompt in held}
    learned = [prompt for prompt in prompts[:-held_out] if prompt.key not in keys]
    if not learned:
        raise InvalidArgument(
            f"{path} has {len({prompt.key for prompt in prompts})} different prompts in "
            f"{len(prompts)} lines; held_out must leave some of them",
            field="held_out",
        )
    if repeated := len(prompts) - len(held) - len(learned):
        intake.leave_out("that repeat a held-out one", repeated)
    intake.taken = len(held) + len(learned)
    return {"train": learned, "validation": held}


def _publish(work: Work, spec: PromptsSpec, tools: Tools) -> tuple[ArtifactRecord, dict[str, Any]]:
    intake = Intake("prompts")
    sides = split(spec, intake)
    check_intake([intake], spec.max_left_out, "Give prompts that differ")
    with tempfile.TemporaryDirectory(prefix="plinth-prompts-") as name:
        folder = Path(name)
        counts: dict[str, Any] = {s: write_prompts(sides[s], folder / f"{s}.jsonl") for s in SPLITS}
        counts["intake"] = [intake.to_json()]
        record = tools.store.publish(
            work.output_name,
            "prompts",
            folder,
            config=spec.settings(),
            metrics=counts,
            input_digest=work.input_digest,
        )
    return record, counts
