"""The one validator of job specifications: every message names the field and what would be right.

It needs the request alone; what needs the dataset and the model too is in `planning`.
"""

from __future__ import annotations

import re
from typing import Any

from plinth.algos.schedules import check_fractions
from plinth.shared import objectives
from plinth.shared.api.times import seconds
from plinth.shared.api.words import in_words, said
from plinth.shared.errors import InvalidArgument
from plinth.trainer.importing import check_import
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.lora_specs import check_adapter_name, check_lora
from plinth.trainer.preference_specs import (
    check_compare,
    check_pairs,
    check_policy,
)
from plinth.trainer.prepare_specs import check_prepare
from plinth.trainer.refusals import in_range, objective_of, refuse
from plinth.v1 import jobs_pb2 as pb

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_SEQUENCE, MAX_BATCH, MAX_WORKERS, MAX_STEPS = 1 << 20, 1 << 16, 4096, 10**9
MAX_SECONDS = 90 * 86400.0


def check_spec(spec: pb.JobSpec) -> None:
    """Raise InvalidArgument for whatever can be told from the request alone."""
    if not _NAME.fullmatch(spec.output_name):
        raise InvalidArgument(
            f"output_name {spec.output_name[:80]!r}: use 1 to 64 of a-z 0-9 . _ -, starting with "
            "a letter or a digit",
            field="spec.output_name",
        )
    kind = spec.WhichOneof("work")
    if kind == "prepare":
        check_prepare(spec.prepare)
    elif kind == "train":
        check_train(spec.train)
        check_adapter_name(spec.output_name, spec.train)
    elif kind == "compare":
        check_compare(spec.compare)
    elif kind == "model_import":
        check_import(spec.model_import)
    else:
        raise InvalidArgument(
            "a job needs 'prepare', 'train', 'compare' or 'model_import'", field="spec"
        )


def check_train(spec: pb.TrainSpec) -> None:
    objective = objective_of(spec)
    if not spec.dataset:
        refuse("dataset", "is empty; name a dataset artifact")
    if not spec.init_from and not spec.HasField("model"):
        refuse("model", "give either init_from or model: a start, or the shape of a new one")
    if "sequence_length" in objectives.OBJECTIVES[objective].takes:
        in_range("sequence_length", spec.sequence_length, 2, MAX_SEQUENCE)
    in_range("batch_size", spec.batch_size, 1, MAX_BATCH)
    in_range("steps", spec.steps, 0, MAX_STEPS)
    if spec.steps == 0:
        in_range("max_duration", seconds(spec.max_duration), 1.0, MAX_SECONDS)
    if spec.learning_rate:
        in_range("learning_rate", spec.learning_rate, 1e-9, 10.0)
    for name, limit in (
        ("warmup_fraction", 1.0),
        ("decay_fraction", 1.0),
        ("weight_decay", 10.0),
        ("clip_norm", 1e6),
    ):
        if spec.HasField(name):  # type: ignore[arg-type]
            in_range(name, getattr(spec, name), 0.0, limit)
    _check_schedule(spec)
    check_pairs(spec)
    check_policy(spec)
    check_lora(spec)
    workers = spec.workers or 1
    in_range("workers", workers, 1, MAX_WORKERS)
    if spec.batch_size % workers:
        refuse("batch_size", f"{spec.batch_size} does not divide evenly by {workers} workers")
    micro = spec.micro_batch_size
    if micro and (spec.batch_size // workers) % micro:
        refuse(
            "micro_batch_size",
            f"{micro} does not divide a worker's share of {spec.batch_size // workers} sequences",
        )
    for misfit in objectives.misfits(objective, _given(spec)):
        refuse("max_duration" if misfit.name == "max_seconds" else misfit.name, misfit.why)


def _given(spec: pb.TrainSpec) -> dict[str, Any]:
    """What was said, by the names of `objectives`: optional fields that were set, others that are
    not zero."""
    said = in_words(spec)
    if "max_duration" in said:
        said["max_seconds"] = said.pop("max_duration")
    for section in ("pairs", "policy", "lora"):
        said |= {f"{section}.{name}": value for name, value in said.get(section, {}).items()}
    return said


def _check_schedule(spec: pb.TrainSpec) -> None:
    if (said(spec, "schedule") or "wsd") != "wsd":
        return
    warmup, decay = (
        getattr(spec, name) if spec.HasField(name) else getattr(TrainConfig, name)
        for name in ("warmup_fraction", "decay_fraction")
    )
    try:
        check_fractions(warmup, decay)
    except InvalidArgument as overlap:
        refuse("decay_fraction", overlap.message)
