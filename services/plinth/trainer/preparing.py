"""How a preparation is carried out: text, samples or prompts in, a corpus or a dataset out.

Idempotent: the artifact is found by the digest of its inputs when an earlier attempt (or another
job) published it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from plinth.shared.api.words import in_words, said
from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.shared.intake import Intake
from plinth.shared.kinds import a_kind, what_it_is
from plinth.shared.source_roots import SourceRoots
from plinth.shared.splits import SPLITS
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.trainer.data.builtin import BUILTIN
from plinth.trainer.data.corpus import CorpusCounts, read_split, write_corpus
from plinth.trainer.data.documents import Document, corpus_files, read_files
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.passages import Passages
from plinth.trainer.data.prompt_dataset import tokenize_prompts
from plinth.trainer.data.selected import of_prompts, selected
from plinth.trainer.data.shards import DatasetInfo
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.loop.job_folder import JobFolder, JobProgress, Throttle
from plinth.trainer.prepare_specs import validation_fraction
from plinth.trainer.rendering import Renderer
from plinth.v1 import jobs_pb2 as pb


@dataclass(frozen=True)
class Preparation:
    """One attempt at one preparation. `check_stop` raises when the work is to stop."""

    store: ArtifactStore
    output_name: str
    spec: pb.PrepareSpec
    folder: JobFolder
    renderer: Renderer
    check_stop: Callable[[], None]
    roots: SourceRoots

    def run(self) -> ArtifactRecord:
        """Blocks. Raises a PlinthError that says what was wrong, and what `check_stop` raises."""
        spec = self.spec
        tokenizer = self.store.get(spec.tokenizer) if spec.tokenizer else None
        corpus = of_kind(self.store, spec.corpus, "corpus") if spec.corpus else None
        samples = of_kind(self.store, spec.samples, "samples") if spec.samples else None
        prompts = of_kind(self.store, spec.prompts, "prompts") if spec.prompts else None
        inputs = {
            "version": STEP_VERSIONS["data"],
            "prepare": fields_of_spec(
                spec, "tokenizer", "corpus", "samples", "prompts", "max_left_out"
            ),
            "prompts": prompts and prompts.digest,
            "samples": samples and samples.digest,
            "tokenizer": tokenizer and tokenizer.digest,
            "corpus": corpus and corpus.digest,
            "python": sys.version if spec.builtin else "",
        }
        # A folder's content is not known before it is read.
        if not spec.corpus_dir and (
            found := self.store.find_by_input(self.output_name, input_digest(inputs))
        ):
            return found
        work = self.folder.path / "work"
        shutil.rmtree(work, ignore_errors=True)  # of an attempt that died
        work.mkdir()
        source = self.store.fetch(corpus) if corpus and tokenizer else work / "corpus"
        facts: dict[str, Any] = {}
        if (corpus is None or spec.passages) and prompts is None:
            counts = self._write_corpus(spec, source)
            facts = counts.to_json()
            facts = {"intake": facts.pop("intake"), "corpus": facts}
            if spec.corpus_dir:
                inputs["content"] = counts.digest
        kind, out = "corpus", source
        if tokenizer is not None:
            kind, out = "dataset", work / "dataset"
            info = (
                self._tokenize_prompts(prompts, tokenizer, out)
                if prompts
                else self._tokenize(source, corpus, tokenizer, out, _folder_of(spec, corpus))
            )
            facts["dataset"] = {k: v for k, v in asdict(info).items() if k != "digests"}
            facts.setdefault("intake", [_tokenised(info).to_json()])
        self.check_stop()
        return self.store.publish(
            self.output_name,
            kind,
            out,
            parents=[record.ref for record in (corpus, samples, prompts, tokenizer) if record],
            config=fields_of_spec(spec),
            metrics=facts,
            input_digest=input_digest(inputs),
        )

    def _write_corpus(self, spec: pb.PrepareSpec, out: Path) -> CorpusCounts:
        intake: list[Intake] = []
        if spec.builtin:
            documents, source = BUILTIN[spec.builtin](), spec.builtin
        elif spec.samples:
            folder = self.store.fetch(spec.samples)
            intake.append(of_prompts())
            documents = selected(
                folder,
                said(spec, "selection") or "extremes",
                spec.margin,
                said(spec, "ties") or "first",
                spec.samples,
                intake[0],
            )
            source = spec.samples
        elif spec.passages:
            return self._write_passages(spec, out)
        else:
            folder = self.roots.check(spec.corpus_dir, field="corpus_dir")
            files, found = corpus_files(folder, self._checked)
            intake.append(found)
            documents, source = read_files(files, self._checked), spec.corpus_dir
        return write_corpus(
            documents,
            out,
            source=source,
            validation_fraction=validation_fraction(spec),
            max_bytes=spec.max_bytes,
            max_left_out=spec.max_left_out if spec.HasField("max_left_out") else None,
            intake=intake,
            on_bytes=self._on_bytes("reading documents", spec.max_bytes),
        )

    def _write_passages(self, spec: pb.PrepareSpec, out: Path) -> CorpusCounts:
        # Headings, tables and code make none: in most texts that is more than half.
        folder, made = self.store.fetch(spec.corpus), Passages(said(spec, "passages"))
        learned, held_out = (made.of(read_split(folder, split), split) for split in SPLITS)
        return write_corpus(
            learned,
            out,
            source=spec.corpus,
            validation_fraction=0,
            held_out=held_out,
            max_left_out=spec.max_left_out if spec.HasField("max_left_out") else 1,
            intake=[made.intake],
            on_bytes=self._on_bytes("making passages", 0),
        )

    def _checked(self, file: Path) -> None:
        """A link in the corpus' folder leads nowhere else than the folder itself may lie."""
        self.roots.check(file, field="corpus_dir")

    def _tokenize(
        self,
        source: Path,
        corpus: ArtifactRecord | None,
        tokenizer: ArtifactRecord,
        out: Path,
        read_from: str,
    ) -> DatasetInfo:
        value = json.loads((source / "corpus.json").read_text())
        total = sum(value["bytes"][split] for split in SPLITS)
        return tokenize_corpus(
            source,
            self.store.fetch(tokenizer),
            out,
            tokenizer_ref=tokenizer.ref,
            tokenizer_digest=tokenizer.digest,
            corpus_ref=corpus.ref if corpus else "",
            render=self.renderer.chats(tokenizer.ref),
            stop_ids=self.renderer.stop_ids,
            on_bytes=self._on_bytes("tokenising", total),
            where=lambda document: self._found_in(read_from, document) or document.where,
        )

    def _found_in(self, folder: str, document: Document) -> str:
        """The file and line of a document in the folder that its corpus was read from, since a
        corpus is in another order; empty where that can't be read any more, or has changed."""
        with suppress(PlinthError, OSError):
            root = self.roots.check(folder, field="corpus_dir") if folder else None
            files = corpus_files(root, self._checked)[0] if root else []
            for one in read_files(files, self._checked):
                if one == document:
                    return one.where
        return ""

    def _tokenize_prompts(
        self, prompts: ArtifactRecord, tokenizer: ArtifactRecord, out: Path
    ) -> DatasetInfo:
        return tokenize_prompts(
            self.store.fetch(prompts),
            self.store.fetch(tokenizer),
            out,
            tokenizer_ref=tokenizer.ref,
            tokenizer_digest=tokenizer.digest,
            render=self.renderer.prompts(tokenizer.ref),
            stop_ids=self.renderer.stop_ids,
        )

    def _on_bytes(self, note: str, total: int) -> Callable[[int], None]:
        throttle = Throttle(0.5)

        def told(done: int) -> None:
            self.check_stop()
            if throttle.due():
                self.folder.write_progress(JobProgress(done, total, unit="byte", note=note))

        return told


def _tokenised(info: DatasetInfo) -> Intake:
    """Of a corpus or a set of prompts: all of it."""
    documents = sum(split.documents for split in info.splits.values())
    return Intake(FORMS[info.form].unit, documents // (2 if info.form == "pairs" else 1))


def _folder_of(spec: pb.PrepareSpec, corpus: ArtifactRecord | None) -> str:
    """What the corpus was read from; empty if not a folder."""
    config: dict[str, Any] = corpus.manifest.get("config") or {} if corpus else {}
    return str(config.get("corpus_dir", "")) if corpus else spec.corpus_dir


def of_kind(store: ArtifactStore, reference: str, kind: str) -> ArtifactRecord:
    """The artifact, if it is one of that kind; InvalidArgument if not."""
    record = store.get(reference)
    if record.kind != kind:
        raise InvalidArgument(f"{a_kind(kind)} is wanted; {what_it_is(record, store)}", field=kind)
    return record


def fields_of_spec(spec: Any, *without: str) -> dict[str, Any]:
    """A job's specification, JSON-ready."""
    return {name: value for name, value in in_words(spec).items() if name not in without}


def input_digest(inputs: dict[str, Any]) -> str:
    """ "sha256:<hex>" of all that shapes a job's result."""
    text = json.dumps(inputs, sort_keys=True)
    return f"sha256:{sha256(text.encode()).hexdigest()}"
