"""Step "evaluate": is the candidate better than counting bytes, and what does it say?

1. A temporary deployment for the candidate goes to the desired state; a shard comes up.
2. The byte-level 5-gram of the same training text judges the held-out documents.
3. The engine scores the same documents; both in bits per byte.
4. The candidate answers prompts, greedily: those to show, those with rules (regression and format
   checks), and the built-in probes.
5. The baseline, if one is given, scores the same documents.
6. What `require` asks is checked: a candidate that falls short fails the step and the run.
7. A report is published, and the temporary deployments go.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from plinth.coordinator.answers import AnswerRule, Check, judge
from plinth.coordinator.deployments import put, until_ready
from plinth.coordinator.gates import EvaluateRequire, check, tally
from plinth.coordinator.heldout import HeldOut, judge_by_ngram
from plinth.coordinator.probing import ProbeSet, digest, probes
from plinth.coordinator.scoring import (
    PromptAnswer,
    ServedModel,
    context_length,
    read_config,
    start_id,
)
from plinth.coordinator.steps.contract import Input, Progress, StepOutcome, StepSpec, Tools, Work
from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.errors import NotFound
from plinth.shared.source_roots import SourceRoots


class EvaluateSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "model": frozenset({"model"}),
        "corpus": frozenset({"corpus"}),
        "baseline": frozenset({"model"}),
    }

    kind: Literal["evaluate"]
    model: Input
    # The model whose bits per byte are compared with the candidate's.
    baseline: Input | None = None
    # The corpus that the model was trained on: its held-out half judges, the other half makes
    # the 5-gram.
    corpus: Input
    prompts: tuple[str, ...] = Field(default=(), max_length=32)
    # Prompts whose answers must keep rules: words, patterns, format.
    checks: tuple[Check, ...] = Field(default=(), max_length=200)
    # Built-in sets: small, judged by words, no certificate.
    probes: tuple[ProbeSet, ...] = Field(default=(), max_length=2)
    max_tokens: int = Field(default=64, ge=1, le=4096)  # per answer
    max_bytes: int = Field(default=1 << 20, ge=1, le=64 << 20)  # of held-out text
    require: EvaluateRequire = EvaluateRequire()
    cpus_per_shard: float = Field(default=0, ge=0, le=1024)
    gpus_per_shard: float = Field(default=0, ge=0, le=64)
    ready_within_s: float = Field(default=600, gt=0, le=86_400)

    @model_validator(mode="after")
    def _gates_have_figures(self) -> EvaluateSpec:
        if self.require.bits_per_byte_ratio_at_most is not None and self.baseline is None:
            raise ValueError("require.bits_per_byte_ratio_at_most needs a baseline to compare with")
        for name in get_args(ProbeSet):
            if getattr(self.require, f"{name}_at_least") is not None and name not in self.probes:
                raise ValueError(f"require.{name}_at_least needs {name} in probes")
        return self

    def produces(self) -> str:
        return "report"


class EvaluateStep:
    spec: type[StepSpec] = EvaluateSpec
    pure = True

    def surroundings(
        self, spec: EvaluateSpec, run_id: str, roots: SourceRoots
    ) -> Mapping[str, str]:
        return {f"probes.{name}": digest(name) for name in spec.probes}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, EvaluateSpec)
        wanted = _candidate(work, spec, "model")
        await put(tools.deployments, wanted)

        yield Progress(0.02, "the 5-gram learns and judges")
        folder = await asyncio.to_thread(tools.store.fetch, work.inputs["corpus"])
        held_out = await asyncio.to_thread(judge_by_ngram, folder, max_bytes=spec.max_bytes)
        exam = _Exam(work, spec, tools, held_out)
        async for event in exam.score("model", 0.1, 0.5):
            yield event
        async for event in exam.ask(0.5, 0.8):
            yield event
        metrics = figures(held_out, exam.bits["model"], exam.answers)
        metrics |= await exam.judged()
        if spec.baseline is not None:
            await _take_down(tools, wanted.name)  # one model at a time
            async for event in exam.score("baseline", 0.8, 1.0):
                yield event
            theirs = exam.bits["baseline"] / held_out.size_bytes
            metrics["baseline_bits_per_byte"] = theirs
            metrics["bits_per_byte_ratio"] = metrics["bits_per_byte"] / theirs
        check(spec.require, metrics)
        report = await asyncio.to_thread(_publish, work, tools, metrics)
        await self.abandon(work, tools)
        yield StepOutcome(report, metrics)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Takes the temporary deployments down; ones that are gone are no error."""
        for field in work.inputs.keys() & {"model", "baseline"}:
            await _take_down(tools, _candidate_name(work, field))


class _Exam:
    """What the models under examination say: `bits` by input field, `answers` to prompts."""

    def __init__(self, work: Work, spec: EvaluateSpec, tools: Tools, held_out: HeldOut) -> None:
        self._work, self._spec, self._tools = work, spec, tools
        self._held_out = held_out
        self._served: ServedModel | None = None
        self._context = 0
        self._ruled: list[
            tuple[str, str, PromptAnswer, AnswerRule]
        ] = []  # set, prompt, answer, its rule
        self.bits: dict[str, float] = {}
        self.answers: list[PromptAnswer] = []

    async def score(self, field: str, low: float, high: float) -> AsyncIterator[Progress]:
        """Serves the model of an input field and has it score the held-out documents."""
        tools, model = self._tools, self._work.inputs[field]
        wanted = _candidate(self._work, self._spec, field)
        await put(tools.deployments, wanted)
        within_s = self._spec.ready_within_s
        async for ready in until_ready(tools.registry, wanted, within_s=within_s):
            yield Progress(low, f"{ready} of 1 shards of {model.ref} ready")
        folder = await asyncio.to_thread(tools.store.fetch, model)
        config = await asyncio.to_thread(read_config, folder)
        start = await asyncio.to_thread(start_id, folder, config)
        self._context = context_length(config)
        self._served = ServedModel(tools.clients, wanted.name, model.ref)
        documents = self._held_out.documents
        total = len(documents)
        scoring = self._served.document_bits(documents, start=start, context=self._context)
        async for done, so_far in scoring:
            self.bits[field] = so_far
            fraction = low + (high - low) * done / total
            yield Progress(fraction, f"{model.ref} scored {done:,} of {total:,} documents")

    async def ask(self, low: float, high: float) -> AsyncIterator[Progress]:
        """Has the model that is served now answer everything that it is asked."""
        questions: list[tuple[str, str, AnswerRule | None]] = [
            ("", p, None) for p in self._spec.prompts
        ]
        questions += [("checks", check.prompt, check) for check in self._spec.checks]
        questions += [(n, one.prompt, one.rule) for n in self._spec.probes for one in probes(n)]
        assert self._served is not None
        for number, (name, prompt, rule) in enumerate(questions, start=1):
            yield Progress(low + (high - low) * number / len(questions), f"asks {prompt[:80]!r}")
            answer = await self._served.answer(
                prompt, max_tokens=self._spec.max_tokens, context=self._context
            )
            if rule is None:
                self.answers.append(answer)
            else:
                self._ruled.append((name, prompt, answer, rule))

    async def judged(self) -> dict[str, Any]:
        """Figures of the checks and of each set of probes."""
        verdicts = await judge([(prompt, a.text, rule) for _, prompt, a, rule in self._ruled])
        sets = [name for name, *_ in self._ruled]
        return {
            name: tally([one for one, of in zip(verdicts, sets, strict=True) if of == name])
            for name in dict.fromkeys(sets)
        }


async def _take_down(tools: Tools, name: str) -> None:
    try:
        await asyncio.to_thread(tools.deployments.delete, name)
    except NotFound:
        return


def _candidate_name(work: Work, field: str) -> str:
    key = hashlib.sha256(f"{work.run_id}\0{work.input_digest}".encode()).hexdigest()
    return f"candidate-{key[:12]}" if field == "model" else f"candidate-{key[:12]}-{field}"


def _candidate(work: Work, spec: EvaluateSpec, field: str) -> pb.DeploymentRecord:
    return pb.DeploymentRecord(
        name=_candidate_name(work, field),
        artifact=work.inputs[field].ref,
        shards=1,
        cpus_per_shard=spec.cpus_per_shard,
        gpus_per_shard=spec.gpus_per_shard,
        traffic_share=1.0,
    )


def figures(held_out: HeldOut, bits: float, answers: Sequence[PromptAnswer]) -> dict[str, Any]:
    """What the report says, JSON-ready. `below_ngram`: 0.12 is 12 % fewer bits per byte."""
    bits_per_byte = bits / held_out.size_bytes
    seconds = sum(answer.seconds for answer in answers)
    made = sum(answer.tokens for answer in answers)
    return {
        "bits_per_byte": bits_per_byte,
        "ngram_bits_per_byte": held_out.ngram_bits_per_byte,
        "below_ngram": 1 - bits_per_byte / held_out.ngram_bits_per_byte,
        "held_out_documents": len(held_out.documents),
        "held_out_bytes": held_out.size_bytes,
        "answers": [
            {"prompt": answer.prompt, "answer": answer.text, "tokens": answer.tokens}
            for answer in answers
        ],
        "tokens_per_second": made / seconds if seconds > 0 else 0.0,
    }


def _publish(work: Work, tools: Tools, metrics: Mapping[str, Any]) -> str:
    model, corpus = work.inputs["model"], work.inputs["corpus"]
    with tempfile.TemporaryDirectory(prefix="plinth-report-") as name:
        folder = Path(name)
        report = {"model": model.ref, "corpus": corpus.ref, **metrics}
        if "baseline" in work.inputs:
            report["baseline"] = work.inputs["baseline"].ref
        (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
        record = tools.store.publish(
            work.output_name,
            "report",
            folder,
            parents=(model.ref, corpus.ref),
            config=work.spec.settings(),
            metrics=dict(metrics),
            input_digest=work.input_digest,
        )
    return record.ref
