"""Step "data": a folder, a built-in corpus or a corpus artifact, made into what training reads.

Without a tokenizer it publishes a text corpus (documents, split by hash into train and
validation); with one, a dataset of token shards. The work is a trainer job.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from plinth.coordinator.steps.contract import (
    Input,
    Progress,
    StepOutcome,
    StepSpec,
    Tools,
    Work,
    absolute,
)
from plinth.coordinator.steps.jobs import cancel_job, follow_job
from plinth.shared.api.words import given
from plinth.shared.corpus_folder import CorpusFolder
from plinth.shared.file_digests import file_digest
from plinth.shared.source_roots import SourceRoots
from plinth.v1 import jobs_pb2 as pb

_SOURCES = ("corpus_dir", "builtin", "corpus", "samples", "prompts")


class DataSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "corpus": frozenset({"corpus"}),
        "samples": frozenset({"samples"}),
        "prompts": frozenset({"prompts"}),
        "tokenizer": frozenset({"tokenizer", "model"}),
    }

    kind: Literal["data"]
    # Exactly one of these five says where the text comes from.
    corpus_dir: str | None = Field(default=None, max_length=4096)
    builtin: Literal["stdlib", "stdlib-instruct", "stdlib-preferences"] | None = None
    corpus: Input | None = None
    samples: Input | None = None
    prompts: Input | None = None
    # What becomes of each prompt's samples; see `PrepareSpec` in jobs.proto.
    selection: Literal["extremes", "all", "best"] | None = None
    # The least gap between the rewards of a pair; with "best", the least reward of a chat. The
    # margin of a reward model's loss is another: `pairs.margin` of a step `train`.
    margin: float = Field(default=0, ge=0, le=1e6)
    ties: Literal["first", "likely"] | None = None
    # Of a text corpus: chats or preference pairs of its paragraphs, each to be gone on with from
    # its first sentence; another data step makes a dataset of them.
    passages: Literal["chats", "pairs"] | None = None
    tokenizer: Input | None = None
    # Of the bytes; 0 holds nothing out, and nothing can be measured on held-out text then.
    validation_fraction: float | None = Field(default=None, ge=0, le=0.5)
    # Take this many bytes of text at most; 0 is no limit.
    max_bytes: int = Field(default=0, ge=0)
    # The share of files, and of documents, that may be left out before the step fails.
    max_left_out: float | None = Field(default=None, ge=0, le=1)

    @field_validator("corpus_dir")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return absolute(value)

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        named = [name for name in _SOURCES if getattr(self, name)]
        if len(named) != 1:
            what = " and ".join(named) if named else "none of them"
            raise ValueError(
                f"give one of corpus_dir, builtin, corpus, samples and prompts, not {what}"
            )
        if self.prompts and not self.tokenizer:
            raise ValueError("prompts need a tokenizer")
        if (self.selection or self.margin or self.ties) and not self.samples:
            raise ValueError("selection, margin and ties are for samples")
        if self.passages and (not self.corpus or self.tokenizer):
            raise ValueError("passages are made of a corpus, and without a tokenizer")
        if self.corpus and not (self.tokenizer or self.passages):
            raise ValueError("a corpus needs a tokenizer, or passages to make of it")
        cut, held = bool(self.max_bytes), self.validation_fraction is not None
        for name, said in (("validation_fraction", held), ("max_bytes", cut)):
            if said and (self.corpus or self.prompts):
                what = "corpus" if self.corpus else "prompts"
                raise ValueError(
                    f"{name} has no effect on {what}, which are split and cut where they are made: "
                    "give it to that step"
                )
        return self

    def paths(self) -> dict[str, str]:
        return {} if self.corpus_dir is None else {"corpus_dir": self.corpus_dir}

    def produces(self) -> str:
        return "dataset" if self.tokenizer else "corpus"


class DataStep:
    spec: type[StepSpec] = DataSpec
    pure = True

    def surroundings(self, spec: DataSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        if spec.corpus_dir:
            # A folder that only the trainer's machine sees: no other run's result stands for it.
            found = fingerprint(
                Path(spec.corpus_dir), lambda path: roots.check(path, field="corpus_dir")
            )
            return {"corpus_dir": found or f"unseen, run {run_id}"}
        if spec.builtin:
            return {"python": platform.python_version()}
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, DataSpec)
        said: dict[str, Any] = {
            "corpus_dir": spec.corpus_dir,
            "builtin": spec.builtin,
            "validation_fraction": spec.validation_fraction,
            "max_bytes": spec.max_bytes,
            "max_left_out": spec.max_left_out,
            **{field: record.ref for field, record in work.inputs.items()},
        }
        if "samples" in work.inputs:
            said |= {"selection": spec.selection, "margin": spec.margin, "ties": spec.ties}
        if "corpus" in work.inputs:
            said["passages"] = spec.passages
        prepare = given(pb.PrepareSpec, said)
        job = pb.JobSpec(output_name=work.output_name, prepare=prepare)
        async for event in follow_job(work, tools, job):
            yield event

    async def abandon(self, work: Work, tools: Tools) -> None:
        await cancel_job(work, tools)


def fingerprint(folder: Path, check: Callable[[Path], object] = lambda _: None) -> str | None:
    """Digest of a folder's files by relative path and content, so that a changed corpus is prepared
    again. None when this machine does not see the folder. `check` is told what is about to be read,
    links among it, and raises for what must not be; OSError: a file that can't be read."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in CorpusFolder(folder, check).files:
        check(path)
        line = f"{path.relative_to(folder)}\0{file_digest(path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()}"
