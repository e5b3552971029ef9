"""How a job's specification is carried out: files in, an artifact out.

Idempotent: the artifact is found by the digest of its inputs when an earlier attempt (or another
job) published it, and a training run goes on from its checkpoint. Knows no queue and no records;
whoever calls passes a `Control` that is asked whether to stop.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared import tracing
from plinth.shared.errors import Internal
from plinth.shared.kinds import ADAPTER_SUFFIX
from plinth.shared.settings import Settings
from plinth.shared.source_roots import SourceRoots
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.trainer.attempts import Attempt
from plinth.trainer.data.lengths import check_lengths, length_intake, remedy_for
from plinth.trainer.disk import disk_error, is_full
from plinth.trainer.importing import run_import
from plinth.trainer.launch import Launcher
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.job_folder import JobProgress
from plinth.trainer.planning import context_of, plan_compare, plan_train
from plinth.trainer.preparing import Preparation, fields_of_spec, input_digest, of_kind
from plinth.trainer.rendering import Renderer
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb


class Stopped(Exception):
    """The work stopped because it was asked to; `how` is "cancel" or "pause"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Execution:
    """One attempt at one job, run in a thread; `stop` may be called from any other."""

    def __init__(
        self,
        job: rec.JobRecord,
        *,
        fence: int,
        settings: Settings,
        store: ArtifactStore,
        launcher: Launcher,
        renderer: Renderer,
    ) -> None:
        """`fence`: of the lease under which the job is held. `renderer` makes ids of chats, by the
        tokenizer stage."""
        self._job, self._spec = job, job.spec
        # What it publishes is of who created it.
        self._store = store.owned_by(job.owner) if job.owner.tenant else store
        self._settings, self._launcher = settings, launcher
        self._renderer = renderer
        self._attempt = Attempt(Path(settings.data_dir).resolve() / "jobs", job.job_id, fence)
        self.folder = self._attempt.folder
        self._told: JobProgress | None = None
        self._how: str | None = None

    def stop(self, how: str) -> None:
        """Stop at the next step; "cancel" for good, "pause" to go on in another attempt."""
        self._how = how
        with suppress(FileNotFoundError):  # it has not begun, or has ended
            self.folder.request(how)

    def run(self) -> ArtifactRecord:
        """Blocks. Raises Stopped, or a PlinthError that says what was wrong."""
        check_spec(self._spec)
        finished = False
        try:
            self._attempt.begin()
            self._check_stop()
            kind = self._spec.WhichOneof("work")
            if kind == "prepare":
                record = Preparation(
                    self._store,
                    self._spec.output_name,
                    self._spec.prepare,
                    self.folder,
                    self._renderer,
                    self._check_stop,
                    SourceRoots.of(self._settings),
                ).run()
            elif kind == "compare":
                record = self._compare(self._spec.compare)
            elif kind == "model_import":
                record = run_import(
                    self._store,
                    self._spec.output_name,
                    self._spec.model_import,
                    self.folder.path,
                    self._check_stop,
                )
            else:
                record = self._train(self._spec.train)
            finished = True
            return record
        except OSError as failed:
            if is_full(failed):
                raise disk_error(failed, self.folder.path, "file") from failed
            raise
        finally:
            self._told = self.folder.progress()
            self._attempt.leave(finished=finished)

    def progress(self) -> JobProgress | None:
        """What the work last said, also when its folder has gone."""
        return self.folder.progress() or self._told

    def give_up(self) -> None:
        """The job won't be tried again: another of the same inputs may go on from where it was."""
        self._attempt.give_up()

    def _check_stop(self) -> None:
        if self._how is not None:
            raise Stopped(self._how)

    # -- train -----------------------------------------------------------------------------

    def _train(self, spec: pb.TrainSpec) -> ArtifactRecord:
        dataset = of_kind(self._store, spec.dataset, "dataset")
        init = of_kind(self._store, spec.init_from, "model") if spec.init_from else None
        judge = of_kind(self._store, spec.reward, "reward") if spec.reward else None
        spec, judges = with_judges_fixed(spec, self._store)
        made_from = {
            "version": str(STEP_VERSIONS["train"]),
            "dataset": dataset.digest,
            **({"init_from": init.digest} if init else {}),
            **({"reward": judge.digest} if judge else {}),
            **judges,
        }
        settings = fields_of_spec(
            spec,
            "dataset",
            "init_from",
            "reward",
            "rewards",
            "checkpoint_every",
            "eval_every",
            "max_left_out",
        )
        opinions = [fields_of_spec(one, *(["model"] if one.model else [])) for one in spec.rewards]
        inputs = {"train": settings, "rewards": opinions, **made_from}
        if found := self._published(input_digest(inputs)):
            return found
        config = plan_train(
            spec,
            self._store.fetch(dataset),
            self._store.fetch(init) if init else None,
            self._settings.trainer,
            self._store.fetch(judge) if judge else None,
        )
        config = replace(config, base=init.ref if init else "", made_from=made_from)
        intake = self._intake(spec, config)
        config.write(self.folder.path)
        self._attempt.take_over(input_digest(inputs), config)
        self._launch(config)
        parents = [record for record in (dataset, init, judge) if record]
        if spec.HasField("lora"):
            assert init is not None
            parents.append(self._publish_adapter(spec, dataset, init, input_digest(inputs), intake))
        return self._publish_model(spec, parents, init, input_digest(inputs), intake)

    def _intake(self, spec: pb.TrainSpec, config: TrainConfig) -> dict[str, Any]:
        """What of the dataset is learned from, for the manifest; too little is refused."""
        context, length = context_of(config), config.sequence_length
        if config.policy is not None:
            length = context - config.policy["max_new_tokens"]
        found = length_intake(Path(config.dataset), config.objective, length)
        limit = spec.max_left_out if spec.HasField("max_left_out") else None
        check_lengths(found, limit, length, context)
        for one in found:
            one.remedy = remedy_for(one, length, context) if one.missing else ""
        return {"intake": [intake.to_json() for intake in found]}

    def _publish_adapter(
        self,
        spec: pb.TrainSpec,
        dataset: ArtifactRecord,
        init: ArtifactRecord,
        input_digest: str,
        intake: dict[str, Any],
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
            config=fields_of_spec(spec),
            metrics={**self._succeeded()["metrics"], **intake},
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
        intake: dict[str, Any],
    ) -> ArtifactRecord:
        outcome = self._succeeded()
        return self._store.publish(
            self._spec.output_name,
            "reward" if spec.objective == pb.OBJECTIVE_REWARD else "model",
            self.folder.model,
            parents=[record.ref for record in parents],
            config=fields_of_spec(spec),
            metrics={**outcome["metrics"], **intake},
            data_digests={parents[0].ref: parents[0].digest},
            input_digest=input_digest,
            license=init.manifest.get("license") if init else None,
        )

    # -- compare ---------------------------------------------------------------------------

    def _compare(self, spec: pb.CompareSpec) -> ArtifactRecord:
        dataset, judge = (
            of_kind(self._store, spec.dataset, "dataset"),
            of_kind(self._store, spec.reward, "reward"),
        )
        models = [of_kind(self._store, reference, "model") for reference in spec.models]
        inputs = {
            "version": STEP_VERSIONS["compare"],
            "compare": fields_of_spec(spec, "dataset", "models", "reward"),
            "dataset": dataset.digest,
            "reward": judge.digest,
            "models": [model.digest for model in models],
        }
        if found := self._published(input_digest(inputs)):
            return found
        config = plan_compare(
            spec,
            self._store.fetch(dataset),
            [self._store.fetch(model) for model in models],
            self._store.fetch(judge),
            self._settings.trainer,
        )
        config.write(self.folder.path)
        self._launch(config)
        return self._store.publish(
            self._spec.output_name,
            "report",
            self.folder.model,
            parents=[record.ref for record in (*models, judge, dataset)],
            config=fields_of_spec(spec),
            metrics=self._succeeded()["metrics"],
            input_digest=input_digest(inputs),
        )

    def _launch(self, config: TrainConfig) -> None:
        # What workers ask the shards for belongs to this job's trace.
        (self.folder.path / "trace").write_text(tracing.traceparent())
        self._launcher.run(self.folder.path, config)

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


def with_judges_fixed(
    spec: pb.TrainSpec, store: ArtifactStore
) -> tuple[pb.TrainSpec, dict[str, str]]:
    """The job with the reward models among its `rewards` named by version, so that an alias that
    moves meanwhile changes nothing; and their digests, by "rewards.<name>"."""
    fixed, digests = pb.TrainSpec(), {}
    fixed.CopyFrom(spec)
    for source in fixed.rewards:
        if source.model:
            judge = of_kind(store, source.model, "reward")
            source.model = judge.ref
            digests[f"rewards.{source.name}"] = judge.digest
    return fixed, digests
