"""How a job's specification is carried out: files in, an artifact out.

Idempotent: the artifact is found by the digest of its inputs when an earlier attempt (or another
job) published it, and a training run goes on from its checkpoint. Knows no queue and no records;
whoever calls passes a `Control` that is asked whether to stop.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from plinth.shared.errors import Internal, InvalidArgument
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.data.builtin import BUILTIN
from plinth.trainer.data.corpus import SPLITS, CorpusCounts, write_corpus
from plinth.trainer.data.documents import read_folder
from plinth.trainer.data.prompt_dataset import tokenize_prompts
from plinth.trainer.data.selected import selected
from plinth.trainer.data.shards import DatasetInfo
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.launch import Launcher
from plinth.trainer.loop.job_folder import JobFolder, Progress, Throttle
from plinth.trainer.lora_specs import ADAPTER_SUFFIX
from plinth.trainer.rendering import Renderer
from plinth.trainer.validation import (
    check_spec,
    plan_compare,
    plan_train,
    validation_fraction,
)
from plinth.v1 import trainer_pb2 as pb


class Stopped(Exception):
    """The work stopped because it was asked to; `how` is "cancel" or "pause"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Execution:
    """One attempt at one job, run in a thread; `stop` may be called from any other."""

    def __init__(
        self,
        job: pb.Job,
        *,
        settings: Settings,
        store: ArtifactStore,
        launcher: Launcher,
        renderer: Renderer,
    ) -> None:
        """`renderer` makes ids of chats, by the tokenizer stage."""
        self._job, self._spec = job, job.spec
        self._settings, self._store, self._launcher = settings, store, launcher
        self._renderer = renderer
        self.folder = JobFolder(Path(settings.data_dir).resolve() / "jobs" / job.job_id)
        self._throttle = Throttle(0.5)
        self._how: str | None = None

    def stop(self, how: str) -> None:
        """Stop at the next step; "cancel" for good, "pause" to go on in another attempt."""
        self._how = how
        if self.folder.path.is_dir():
            self.folder.request(how)

    def run(self) -> ArtifactRecord:
        """Blocks. Raises Stopped, or a PlinthError that says what was wrong."""
        check_spec(self._spec)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.begin()
        self._check_stop()
        finished = False
        try:
            kind = self._spec.WhichOneof("spec")
            if kind == "prepare":
                record = self._prepare(self._spec.prepare)
            elif kind == "compare":
                record = self._compare(self._spec.compare)
            else:
                record = self._train(self._spec.train)
            finished = True
            return record
        finally:
            # Then all that matters is in the artifact, or there is nothing to go on from.
            if finished or not checkpoints(self.folder.checkpoints):
                shutil.rmtree(self.folder.path)

    def _check_stop(self) -> None:
        if self._how is not None:
            raise Stopped(self._how)

    # -- prepare ---------------------------------------------------------------------------

    def _prepare(self, spec: pb.PrepareSpec) -> ArtifactRecord:
        tokenizer = self._store.get(spec.tokenizer) if spec.tokenizer else None
        corpus = self._store.get(spec.corpus) if spec.corpus else None
        if corpus is not None and corpus.kind != "corpus":
            raise InvalidArgument(f"{corpus.ref} is a {corpus.kind}, not a corpus", field="corpus")
        samples = self._of_kind(spec.samples, "samples") if spec.samples else None
        prompts = self._of_kind(spec.prompts, "prompts") if spec.prompts else None
        inputs = {
            "prepare": _fields(spec, "tokenizer", "corpus", "samples", "prompts"),
            "prompts": prompts and prompts.digest,
            "samples": samples and samples.digest,
            "tokenizer": tokenizer and tokenizer.digest,
            "corpus": corpus and corpus.digest,
            "python": sys.version if spec.builtin else "",
        }
        # A folder's content is not known before it is read.
        if not spec.corpus_dir and (found := self._published(_digest(inputs))):
            return found
        work = self.folder.path / "work"
        shutil.rmtree(work, ignore_errors=True)  # of an attempt that died
        work.mkdir()
        source = self._store.fetch(corpus) if corpus else work / "corpus"
        facts: dict[str, Any] = {}
        if corpus is None and prompts is None:
            counts = self._write_corpus(spec, source)
            facts["corpus"] = counts.to_json()
            if spec.corpus_dir:
                inputs["content"] = counts.digest
        kind, out = "corpus", source
        if tokenizer is not None:
            kind, out = "dataset", work / "dataset"
            info = (
                self._tokenize_prompts(prompts, tokenizer, out)
                if prompts
                else self._tokenize(source, tokenizer, out)
            )
            facts["dataset"] = {k: v for k, v in asdict(info).items() if k != "digests"}
        self._check_stop()
        return self._store.publish(
            self._spec.output_name,
            kind,
            out,
            parents=[record.ref for record in (corpus, samples, prompts, tokenizer) if record],
            config=_fields(spec),
            metrics=facts,
            input_digest=_digest(inputs),
        )

    def _write_corpus(self, spec: pb.PrepareSpec, out: Path) -> CorpusCounts:
        if spec.builtin:
            documents, source = BUILTIN[spec.builtin](), spec.builtin
        elif spec.samples:
            folder = self._store.fetch(spec.samples)
            documents = selected(folder, spec.selection or "extremes", spec.margin, spec.samples)
            source = spec.samples
        else:
            documents, source = read_folder(Path(spec.corpus_dir)), spec.corpus_dir
        return write_corpus(
            documents,
            out,
            source=source,
            validation_fraction=validation_fraction(spec),
            max_bytes=spec.max_bytes,
            on_bytes=self._on_bytes("reading documents", spec.max_bytes),
        )

    def _tokenize(self, corpus: Path, tokenizer: ArtifactRecord, out: Path) -> DatasetInfo:
        value = json.loads((corpus / "corpus.json").read_text())
        total = sum(value["bytes"][split] for split in SPLITS)
        return tokenize_corpus(
            corpus,
            self._store.fetch(tokenizer),
            out,
            tokenizer_ref=tokenizer.ref,
            tokenizer_digest=tokenizer.digest,
            render=self._renderer.chats(tokenizer.ref),
            on_bytes=self._on_bytes("tokenising", total),
        )

    def _tokenize_prompts(
        self, prompts: ArtifactRecord, tokenizer: ArtifactRecord, out: Path
    ) -> DatasetInfo:
        return tokenize_prompts(
            self._store.fetch(prompts),
            self._store.fetch(tokenizer),
            out,
            tokenizer_ref=tokenizer.ref,
            tokenizer_digest=tokenizer.digest,
            render=self._renderer.prompts(tokenizer.ref),
        )

    def _on_bytes(self, note: str, total: int) -> Callable[[int], None]:
        def told(done: int) -> None:
            self._check_stop()
            if self._throttle.due():
                self.folder.write_progress(Progress(done, total, unit="byte", note=note))

        return told

    # -- train -----------------------------------------------------------------------------

    def _train(self, spec: pb.TrainSpec) -> ArtifactRecord:
        dataset = self._of_kind(spec.dataset, "dataset")
        init = self._of_kind(spec.init_from, "model") if spec.init_from else None
        judge = self._of_kind(spec.reward, "reward") if spec.reward else None
        inputs = {
            "train": _fields(
                spec, "dataset", "init_from", "reward", "checkpoint_every", "eval_every"
            ),
            "dataset": dataset.digest,
            "init_from": init and init.digest,
            **({"reward": judge.digest} if judge else {}),
        }
        if found := self._published(_digest(inputs)):
            return found
        config = plan_train(
            spec,
            self._store.fetch(dataset),
            self._store.fetch(init) if init else None,
            self._settings.trainer,
            self._store.fetch(judge) if judge else None,
        )
        config = replace(config, base=init.ref if init else "")
        config.write(self.folder.path)
        self._launcher.run(self.folder.path, config)
        parents = [record for record in (dataset, init, judge) if record]
        if spec.HasField("lora"):
            assert init is not None
            parents.append(self._publish_adapter(spec, dataset, init, _digest(inputs)))
        return self._publish_model(spec, parents, init, _digest(inputs))

    def _publish_adapter(
        self, spec: pb.TrainSpec, dataset: ArtifactRecord, init: ArtifactRecord, input_digest: str
    ) -> ArtifactRecord:
        """The adapter alone, in PEFT's format; its first parent is the base that it belongs to."""
        name = self._spec.output_name + ADAPTER_SUFFIX
        if found := self._store.find_by_input(name, input_digest):
            return found
        return self._store.publish(
            name,
            "adapter",
            self.folder.adapter,
            parents=[init.ref, dataset.ref],
            config=_fields(spec),
            metrics=self._succeeded()["metrics"],
            data_digests={init.ref: init.digest, dataset.ref: dataset.digest},
            input_digest=input_digest,
            license=init.manifest.get("license"),
        )

    def _publish_model(
        self,
        spec: pb.TrainSpec,
        parents: list[ArtifactRecord],
        init: ArtifactRecord | None,
        input_digest: str,
    ) -> ArtifactRecord:
        outcome = self._succeeded()
        return self._store.publish(
            self._spec.output_name,
            "reward" if spec.objective == "reward" else "model",
            self.folder.model,
            parents=[record.ref for record in parents],
            config=_fields(spec),
            metrics=outcome["metrics"],
            data_digests={parents[0].ref: parents[0].digest},
            input_digest=input_digest,
            license=init.manifest.get("license") if init else None,
        )

    # -- compare ---------------------------------------------------------------------------

    def _compare(self, spec: pb.CompareSpec) -> ArtifactRecord:
        dataset, judge = (
            self._of_kind(spec.dataset, "dataset"),
            self._of_kind(spec.reward, "reward"),
        )
        models = [self._of_kind(reference, "model") for reference in spec.models]
        inputs = {
            "compare": _fields(spec, "dataset", "models", "reward"),
            "dataset": dataset.digest,
            "reward": judge.digest,
            "models": [model.digest for model in models],
        }
        if found := self._published(_digest(inputs)):
            return found
        config = plan_compare(
            spec,
            self._store.fetch(dataset),
            [self._store.fetch(model) for model in models],
            self._store.fetch(judge),
            self._settings.trainer,
        )
        config.write(self.folder.path)
        self._launcher.run(self.folder.path, config)
        return self._store.publish(
            self._spec.output_name,
            "report",
            self.folder.model,
            parents=[record.ref for record in (*models, judge, dataset)],
            config=_fields(spec),
            metrics=self._succeeded()["metrics"],
            input_digest=_digest(inputs),
        )

    def _of_kind(self, reference: str, kind: str) -> ArtifactRecord:
        record = self._store.get(reference)
        if record.kind != kind:
            raise InvalidArgument(f"{record.ref} is a {record.kind}, not a {kind}", field=kind)
        return record

    def _succeeded(self) -> dict[str, Any]:
        """The outcome of workers that have ended well; else what they ended with is raised."""
        outcome = self.folder.outcome()
        if outcome is None:
            raise Internal(f"the work ended without an outcome in {self.folder.path}")
        if outcome["status"] == "failed":
            raise self.folder.error() or Internal("the work failed without an error")
        if outcome["status"] != "succeeded":
            raise Stopped("pause" if outcome["status"] == "paused" else "cancel")
        return outcome

    def _published(self, input_digest: str) -> ArtifactRecord | None:
        return self._store.find_by_input(self._spec.output_name, input_digest)


def _fields(spec: Any, *without: str) -> dict[str, Any]:
    value = MessageToDict(spec, preserving_proto_field_name=True)
    return {name: field for name, field in value.items() if name not in without}


def _digest(inputs: dict[str, Any]) -> str:
    text = json.dumps(inputs, sort_keys=True)
    return f"sha256:{sha256(text.encode()).hexdigest()}"
