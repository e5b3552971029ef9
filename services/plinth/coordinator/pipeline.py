"""The pipeline file: named steps, their kinds, and which step's output is another's input.

    name: quickstart
    steps:
      corpus:     {kind: data, builtin: stdlib}
      vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 2048}

`$corpus` is what the step `corpus` publishes; an input without the dollar sign is an artifact on
the store. Everything that can be wrong without running is found here, each with its path and,
where a key is unknown, the nearest right one: nothing runs of a pipeline that can't end well.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from plinth.coordinator.pipeline_text import MAX_BYTES, loaded, nearest
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.contract import Name, StepSpec
from plinth.shared.errors import InvalidArgument
from plinth.shared.kinds import a_kind, what_it_is
from plinth.shared.source_roots import SourceRoots
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.shared.store import ArtifactStore

MAX_STEPS = 64
# Of a run's record: one setting to a line, a text is longer than it may have been written.
STORED_BYTES = 4 * MAX_BYTES
_MOST_MISTAKES = 20
_SHOWN = 200  # characters of a path
_TOP_KEYS = ("name", "steps")


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline. `text` is its YAML after overrides."""

    name: str
    steps: Mapping[str, StepSpec]
    text: str

    def needs(self, step: str) -> set[str]:
        """Steps that must be done before `step`."""
        return _needs(self.steps[step])

    def output_name(self, step: str) -> str:
        """Artifact name that the step publishes under."""
        return self.steps[step].output or f"{self.name}-{step}"


def parse(
    text: str, overrides: Mapping[str, str] | None = None, *, most: int = MAX_BYTES
) -> Pipeline:
    """The pipeline in `text` with `overrides` ("steps.corpus.max_bytes" → "1000") applied.
    InvalidArgument with every mistake in it (the first 20). most: bytes of both together;
    STORED_BYTES for what a run's record holds."""
    raw = loaded(text, overrides or {}, most)
    mistakes = _Mistakes()
    name = _top(raw, mistakes)
    steps = {
        step: spec
        for step, fields in (raw.get("steps") or {}).items()
        if (spec := _step(step, fields, mistakes)) is not None
    }
    if not mistakes.found:
        _check_inputs(steps, mistakes)
    mistakes.raise_if_any()
    written = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    if (size := len(written.encode())) > 3 * MAX_BYTES:  # (there is to be room for `pinned`)
        raise InvalidArgument(
            f"with one setting to a line, the pipeline has {size} bytes; at most {3 * MAX_BYTES}",
            reason="PIPELINE_INVALID",
        )
    return Pipeline(name, steps, written)


def pinned(pipeline: Pipeline, store: ArtifactStore) -> Pipeline:
    """The pipeline with references to artifacts on the store fixed to the version that they name
    now, so that an alias that moves during the run changes nothing in it. Blocks on the store;
    NotFound, and InvalidArgument where the kind is wrong, or the step's settings do not fit it."""
    versions, mistakes = {}, _Mistakes()
    for step, spec in pipeline.steps.items():
        for field, reference in spec.inputs().items():
            if reference.startswith("$"):
                continue
            record = store.get(reference)
            if record.kind not in spec.INPUTS[field]:
                raise InvalidArgument(
                    f"steps.{step}.{field}: takes {_taken(spec, field)}; "
                    f"{what_it_is(record, store)}",
                    reason="PIPELINE_INVALID",
                    field=f"steps.{step}.{field}",
                )
            versions[f"steps.{step}.{field}"] = record.ref
            for wrong, what in spec.misfits(field, record, store):
                mistakes.add(f"steps.{step}.{wrong}", what)
    mistakes.raise_if_any()
    return parse(pipeline.text, versions, most=STORED_BYTES)


def check_paths(pipeline: Pipeline, roots: SourceRoots) -> None:
    """PermissionDenied for the first path of a step that lies outside of the roots."""
    for step, spec in pipeline.steps.items():
        for field, path in spec.paths().items():
            roots.check(path, field=f"steps.{step}.{field}")


def input_digest(
    spec: StepSpec,
    *,
    inputs: Mapping[str, str],
    surroundings: Mapping[str, str],
) -> str:
    """ "sha256:<hex>" of all that shapes a step's result, the code of its kind included; `inputs`:
    field → content digest. What the result is called is no part of it."""
    content = {
        "schema": 2,
        "version": STEP_VERSIONS[spec.kind],
        "settings": spec.settings(),
        "inputs": dict(inputs),
        "surroundings": dict(surroundings),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


class _Mistakes:
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, path: str, what: str) -> None:
        """Raises what was found once that is enough to mend: each is looked into, and told."""
        self.found.append((path[:_SHOWN], what))
        if len(self.found) >= _MOST_MISTAKES:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        if self.found:
            raise InvalidArgument(
                "; ".join(f"{path}: {what}" for path, what in self.found),
                reason="PIPELINE_INVALID",
                field=self.found[0][0],
            )


class _Named(BaseModel):
    name: Name


def _top(raw: Mapping[str, Any], mistakes: _Mistakes) -> str:
    for key in raw:
        if key not in _TOP_KEYS:
            mistakes.add(str(key), f"unknown key{nearest(str(key), _TOP_KEYS)}")
    try:
        name = _Named.model_validate({"name": raw.get("name")}).name
    except ValidationError:
        mistakes.add("name", "a pipeline needs a name of 1 to 40 of a-z 0-9 _ -, a letter first")
        name = ""
    steps = raw.get("steps")
    if not isinstance(steps, dict) or not 1 <= len(steps) <= MAX_STEPS:
        mistakes.add("steps", f"a pipeline has 1 to {MAX_STEPS} steps, a mapping by their names")
        mistakes.raise_if_any()
    return name


def _step(step: object, fields: object, mistakes: _Mistakes) -> StepSpec | None:
    path = f"steps.{step}"
    try:
        _Named.model_validate({"name": step})
    except ValidationError:
        mistakes.add(path, "a step's name has 1 to 40 of a-z 0-9 _ -, a letter first")
        return None
    if not isinstance(fields, dict):
        mistakes.add(path, "a step is a mapping with a kind")
        return None
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in STEP_KINDS:
        hint = nearest(kind, STEP_KINDS) if isinstance(kind, str) else ""
        mistakes.add(f"{path}.kind", f"one of {', '.join(STEP_KINDS)}, not {kind!r}{hint}")
        return None
    model = STEP_KINDS[kind].spec
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            said = item["msg"]
            if said.startswith("Input should be") and isinstance(item["input"], str | int | float):
                said = f"{said.removeprefix('Input ')}, not {item['input']!r:.60}"
            _explain(path, item["loc"], item["type"], said, model, mistakes)
        return None


def _explain(
    path: str,
    location: tuple[int | str, ...],
    kind: str,
    message: str,
    model: type[BaseModel],
    mistakes: _Mistakes,
) -> None:
    where = ".".join([path, *(str(part) for part in location)])
    if kind == "extra_forbidden":
        key, right = str(location[-1]), _keys_at(model, location[:-1])
        deeper = "" if location[:-1] else _section_with(key, model)
        hint = f"; did you mean {deeper}?" if deeper else nearest(key, right)
        mistakes.add(where, f"unknown key{hint}")
    elif kind == "missing":
        mistakes.add(where, "is needed")
    else:
        mistakes.add(where, message.removeprefix("Value error, "))


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Collection[str]:
    """Field names of the section at `location` within `model`."""
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list
        annotation = model.model_fields[part].annotation
        choices = getattr(annotation, "__args__", (annotation,))
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return model.model_fields


def _section_with(key: str, model: type[BaseModel]) -> str:
    """The one place within a section of `model` where there is such a key, "pairs.beta"; or
    nothing."""
    found = [
        f"{section}.{key}"
        for section, field in model.model_fields.items()
        for choice in getattr(field.annotation, "__args__", (field.annotation,))
        if isinstance(choice, type) and issubclass(choice, BaseModel) and key in choice.model_fields
    ]
    return found[0] if len(found) == 1 else ""


def _needs(spec: StepSpec) -> set[str]:
    references = spec.inputs().values()
    return {r[1:] for r in references if r.startswith("$")} | set(spec.after)


def _taken(spec: StepSpec, field: str) -> str:
    return " or ".join(a_kind(kind) for kind in sorted(spec.INPUTS[field]))


def _check_inputs(steps: Mapping[str, StepSpec], mistakes: _Mistakes) -> None:
    for step, spec in steps.items():
        for other in spec.after:
            if other not in steps:
                mistakes.add(f"steps.{step}.after", f"no step {other!r}{nearest(other, steps)}")
        for field, reference in spec.inputs().items():
            if not reference.startswith("$"):
                continue
            path, source = f"steps.{step}.{field}", reference[1:]
            if source not in steps:
                mistakes.add(path, f"no step {source!r}{nearest(source, steps)}")
            elif (made := steps[source].produces()) not in spec.INPUTS[field]:
                taken = _taken(spec, field)
                mistakes.add(path, f"takes {taken}; the step {source!r} makes {a_kind(made)}")
    if mistakes.found:
        return
    for step, spec in steps.items():
        for field, what in spec.conflicts(steps):
            mistakes.add(f"steps.{step}.{field}", what)
    order = graphlib.TopologicalSorter({step: _needs(spec) for step, spec in steps.items()})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        around = " → ".join(reversed(error.args[1]))
        mistakes.add("steps", f"steps wait for one another: {around}")
