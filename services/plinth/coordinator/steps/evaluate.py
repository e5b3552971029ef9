"""Step "evaluate": is the candidate better than counting bytes, and what does it say?

1. A temporary deployment for the candidate goes to the desired state; a shard comes up.
2. The byte-level 5-gram of the same training text judges the held-out documents.
3. The engine scores the same documents; both in bits per byte.
4. The candidate answers some prompts, greedily.
5. What `require` asks is checked: a candidate that falls short fails the step and the run.
6. A report is published, and the temporary deployment goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.coordinator.deployments import put, until_ready
from plinth.coordinator.heldout import HeldOut, judge_by_ngram
from plinth.coordinator.scoring import Answer, ServedModel, context_length, read_config, start_id
from plinth.coordinator.steps.contract import Input, Outcome, Progress, StepSpec, Tools, Work
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.v1 import coordinator_pb2 as pb


class Require(BaseModel):
    """Conditions that the candidate must meet; those not given are not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.06: at least 6 % fewer bits per byte than the 5-gram.
    bits_per_byte_below_ngram: float | None = Field(default=None, gt=-10, lt=1)
    bits_per_byte_at_most: float | None = Field(default=None, gt=0)


class EvaluateSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "model": frozenset({"model"}),
        "corpus": frozenset({"corpus"}),
    }

    kind: Literal["evaluate"]
    model: Input
    # The corpus that the model was trained on: its held-out half judges, the other half makes
    # the 5-gram.
    corpus: Input
    prompts: tuple[str, ...] = Field(default=(), max_length=32)
    max_tokens: int = Field(default=64, ge=1, le=4096)  # per answer
    max_bytes: int = Field(default=1 << 20, ge=1, le=64 << 20)  # of held-out text
    require: Require = Require()
    cpus_per_shard: float = Field(default=0, ge=0, le=1024)
    gpus_per_shard: float = Field(default=0, ge=0, le=64)
    ready_within_s: float = Field(default=600, gt=0, le=86_400)

    def produces(self) -> str:
        return "report"


class EvaluateStep:
    spec: type[StepSpec] = EvaluateSpec
    pure = True

    def surroundings(self, spec: EvaluateSpec, run_id: str) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | Outcome]:
        spec = work.spec
        assert isinstance(spec, EvaluateSpec)
        model, corpus = work.inputs["model"], work.inputs["corpus"]
        wanted = _candidate(work, spec)
        await put(tools.deployments, wanted)

        yield Progress(0.02, "the 5-gram learns and judges")
        folder = await asyncio.to_thread(tools.store.fetch, corpus)
        held_out = await asyncio.to_thread(judge_by_ngram, folder, max_bytes=spec.max_bytes)
        async for ready in until_ready(tools.registry, wanted, within_s=spec.ready_within_s):
            yield Progress(0.1, f"{ready} of 1 shards of the candidate ready")

        model_folder = await asyncio.to_thread(tools.store.fetch, model)
        config = await asyncio.to_thread(read_config, model_folder)
        start = await asyncio.to_thread(start_id, model_folder, config)
        context = context_length(config)
        served = ServedModel(tools.clients, wanted.name, model.ref)
        total = len(held_out.documents)
        scoring = served.document_bits(held_out.documents, start=start, context=context)
        bits = 0.0
        async for done, so_far in scoring:
            bits = so_far
            yield Progress(0.1 + 0.7 * done / total, f"scored {done:,} of {total:,} documents")
        answers = []
        for number, prompt in enumerate(spec.prompts, start=1):
            yield Progress(0.8 + 0.2 * number / len(spec.prompts), f"asks {prompt!r}")
            answers.append(await served.answer(prompt, max_tokens=spec.max_tokens, context=context))

        metrics = figures(held_out, bits, answers)
        check(spec.require, metrics)
        report = await asyncio.to_thread(_publish, work, tools, metrics)
        await self.abandon(work, tools)
        yield Outcome(report, metrics)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Takes the candidate's deployment down; one that is gone is no error."""
        try:
            await asyncio.to_thread(tools.deployments.delete, _candidate_name(work))
        except NotFound:
            return


def _candidate_name(work: Work) -> str:
    key = hashlib.sha256(f"{work.run_id}\0{work.input_digest}".encode()).hexdigest()
    return f"candidate-{key[:12]}"


def _candidate(work: Work, spec: EvaluateSpec) -> pb.Deployment:
    return pb.Deployment(
        name=_candidate_name(work),
        artifact=work.inputs["model"].ref,
        shards=1,
        cpus_per_shard=spec.cpus_per_shard,
        gpus_per_shard=spec.gpus_per_shard,
        traffic_share=1.0,
    )


def figures(held_out: HeldOut, bits: float, answers: Sequence[Answer]) -> dict[str, Any]:
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


def check(require: Require, metrics: Mapping[str, Any]) -> None:
    """FailedPrecondition that says by how much the candidate falls short, and what to do."""
    bits, ngram = metrics["bits_per_byte"], metrics["ngram_bits_per_byte"]
    margin = require.bits_per_byte_below_ngram
    if margin is not None and metrics["below_ngram"] < margin:
        raise FailedPrecondition(
            f"{bits:.3f} bits per byte held out is {metrics['below_ngram']:+.1%} below the "
            f"5-gram's {ngram:.3f}, {margin:.1%} is required: train longer, on more text, or "
            "lower require.bits_per_byte_below_ngram",
            reason="REQUIREMENT_NOT_MET",
            field="require.bits_per_byte_below_ngram",
        )
    ceiling = require.bits_per_byte_at_most
    if ceiling is not None and bits > ceiling:
        raise FailedPrecondition(
            f"{bits:.3f} bits per byte held out, at most {ceiling:.3f} is required",
            reason="REQUIREMENT_NOT_MET",
            field="require.bits_per_byte_at_most",
        )


def _publish(work: Work, tools: Tools, metrics: Mapping[str, Any]) -> str:
    model, corpus = work.inputs["model"], work.inputs["corpus"]
    with tempfile.TemporaryDirectory(prefix="plinth-report-") as name:
        folder = Path(name)
        report = {"model": model.ref, "corpus": corpus.ref, **metrics}
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
