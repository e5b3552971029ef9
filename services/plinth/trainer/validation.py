"""The one validator of job specifications: every message names the field and what would be right.

`check_spec` needs only the request; `plan_train` needs the dataset and the model it starts from,
and returns the complete configuration of the run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plinth.algos.schedules import check_fractions
from plinth.models import hf_config
from plinth.models.config import ModelConfig
from plinth.shared import objectives
from plinth.shared.api.times import seconds
from plinth.shared.api.words import in_words, said
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.shards import DatasetInfo, read_info
from plinth.trainer.importing import check_import
from plinth.trainer.loop.config import LEARNS_FROM, TrainConfig
from plinth.trainer.lora_specs import check_adapter_name, check_lora, lora_fields
from plinth.trainer.preference_specs import (
    check_compare,
    check_pairs,
    check_policy,
    compare_policy,
    pairs_of,
    policy_of,
    rate_of,
    rewards_of,
)
from plinth.trainer.prepare_specs import check_prepare
from plinth.trainer.refusals import in_range, objective_of, refuse
from plinth.v1 import jobs_pb2 as pb

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_SEQUENCE, MAX_BATCH, MAX_WORKERS, MAX_STEPS = 1 << 20, 1 << 16, 4096, 10**9
MAX_SECONDS = 90 * 86400.0
_LOGITS_BYTES = 256 << 20  # of one micro-batch in float32
_MICRO_TOKENS = {"cpu": 4096, "cuda": 65536}


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
        _check_train(spec.train)
        check_adapter_name(spec.output_name, spec.train)
    elif kind == "compare":
        check_compare(spec.compare)
    elif kind == "model_import":
        check_import(spec.model_import)
    else:
        raise InvalidArgument(
            "a job needs 'prepare', 'train', 'compare' or 'model_import'", field="spec"
        )


def _check_train(spec: pb.TrainSpec) -> None:
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


def plan_train(
    spec: pb.TrainSpec,
    dataset: Path,
    init_from: Path | None,
    settings: TrainerSettings,
    reward: Path | None = None,
) -> TrainConfig:
    """The configuration of a run whose request, data and start fit together.

    `dataset`, `init_from` and `reward` are local folders.
    """
    _check_train(spec)
    objective = objective_of(spec)
    info = read_info(dataset)
    if info.form not in LEARNS_FROM[objective]:
        fit = " or ".join(repr(n) for n, forms in LEARNS_FROM.items() if info.form in forms)
        refuse(
            "objective",
            f"{objective!r} does not fit the dataset, which was prepared from "
            f"{FORMS[info.form].called}, for {fit}",
        )
    model = None if init_from else new_model(spec.model, info, spec.sequence_length)
    config = existing_model(init_from, dataset, info) if init_from else model
    assert config is not None
    if reward is not None:
        existing_model(reward, dataset, info)  # must read the same ids
    if spec.sequence_length > config.context:
        refuse(
            "sequence_length",
            f"{spec.sequence_length} is longer than the model's context of {config.context}",
        )
    if info.form == "text":
        _check_enough(spec, info)
    workers = spec.workers or 1
    share = spec.batch_size // workers
    micro = spec.micro_batch_size or _micro_batch(
        share, spec.sequence_length or config.context, config.vocab_size, settings.device
    )
    defaults = objectives.OBJECTIVES[objective]
    optional = {
        "warmup_fraction": defaults.warmup_fraction,
        "weight_decay": defaults.weight_decay,
        **{
            name: getattr(spec, name)
            for name in ("warmup_fraction", "decay_fraction", "weight_decay", "clip_norm")
            if spec.HasField(name)
        },
    }
    return TrainConfig(
        objective=objective,
        dataset=str(dataset),
        init_from=str(init_from or ""),
        model=None if model is None else fields_of(model),
        sequence_length=spec.sequence_length,
        batch_size=spec.batch_size,
        micro_batch_size=micro,
        steps=spec.steps,
        max_seconds=seconds(spec.max_duration),
        learning_rate=rate_of(spec),
        schedule=said(spec, "schedule") or "wsd",
        precision=said(spec, "precision") or "auto",
        seed=spec.seed,
        workers=workers,
        checkpoint_every=spec.checkpoint_every,
        eval_every=spec.eval_every,
        device=settings.device,
        background=settings.background,
        threads=settings.threads,
        pairs=pairs_of(spec),
        policy=None if (policy := policy_of(spec)) is None else asdict(policy),
        reward=str(reward or ""),
        rewards=rewards_of(spec),
        lora=lora_fields(spec, config),
        **optional,
    )


def plan_compare(
    spec: pb.CompareSpec,
    dataset: Path,
    models: Sequence[Path],
    reward: Path,
    settings: TrainerSettings,
) -> TrainConfig:
    """The configuration of a comparison whose models read the dataset's tokens. Local folders."""
    info = read_info(dataset)
    if info.form == "text":
        refuse("dataset", "was prepared from plain text; prompts come from chats or pairs")
    for folder in (*models, reward):
        existing_model(folder, dataset, info)
    return TrainConfig(
        objective="compare",
        dataset=str(dataset),
        init_from="",
        model=None,
        sequence_length=0,
        batch_size=1,
        micro_batch_size=1,
        steps=0,
        max_seconds=0,
        learning_rate=0,
        policy=asdict(compare_policy(spec)),
        reward=str(reward),
        candidates=tuple(str(folder) for folder in models),
        device=settings.device,
        background=settings.background,
        threads=settings.threads,
    )


def _check_enough(spec: pb.TrainSpec, info: DatasetInfo) -> None:
    tokens = info.splits["train"].tokens
    needed = spec.batch_size * spec.sequence_length + 1
    if tokens < needed:
        ways = ["add text"]
        if batch := (tokens - 1) // spec.sequence_length:
            ways.append(f"make batch_size at most {batch}")
        if (longest := (tokens - 1) // spec.batch_size) > 1:
            ways.append(f"make sequence_length at most {longest}")
        refuse(
            "batch_size",
            f"one batch of {spec.batch_size} × {spec.sequence_length} tokens needs {needed} and "
            f"the dataset has {tokens}; {', or '.join(ways)}",
        )


def new_model(spec: pb.ModelSpec, info: DatasetInfo, sequence_length: int) -> ModelConfig:
    """The full shape of a new model; zeros take the family's usual ratio."""
    family = said(spec, "family")
    if not family:
        refuse("model.family", "is not given; use MODEL_FAMILY_LLAMA or MODEL_FAMILY_GPT2")
    heads = max(1, spec.heads)
    if spec.hidden % heads:
        refuse("model.heads", f"hidden {spec.hidden} does not divide evenly by {spec.heads}")
    gpt2 = family == "gpt2"
    ratio = 4 * spec.hidden if gpt2 else 32 * math.ceil(spec.hidden * 8 / 3 / 32)
    return ModelConfig(
        family="gpt2" if gpt2 else "llama",
        vocab_size=info.vocab_size,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads or spec.heads,
        head_dim=spec.hidden // heads,
        intermediate=spec.intermediate or ratio,
        context=spec.context or sequence_length,
        tie_embeddings=spec.tie_embeddings,
        attention_bias=gpt2,
        mlp_bias=gpt2,
    )


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """A new model's config as JSON fields (it has no scaled rotary positions)."""
    return {
        name: value
        for name, value in vars(config).items()
        if name not in ("rope_scaling", "eos_ids", "vocab_size")
    }


def context_of(config: TrainConfig) -> int:
    """Tokens that the model of a run holds."""
    if config.model is not None:
        return int(config.model["context"])
    folder = Path(config.init_from)
    return hf_config.from_hf(json.loads((folder / "config.json").read_text())).context


def existing_model(folder: Path, dataset: Path, info: DatasetInfo) -> ModelConfig:
    """The config of the model to start from, once its tokenizer is known to be the dataset's."""
    config = hf_config.from_hf(json.loads((folder / "config.json").read_text()))
    mine, theirs = folder / "tokenizer.json", dataset / "tokenizer" / "tokenizer.json"
    if mine.is_file() and json.loads(mine.read_text()) != json.loads(theirs.read_text()):
        refuse("dataset", f"was tokenised by {info.tokenizer}, which is not the model's tokenizer")
    if info.vocab_size > config.vocab_size:
        refuse(
            "dataset",
            f"has a vocabulary of {info.vocab_size}, the model only {config.vocab_size}",
        )
    return config


def _micro_batch(share: int, length: int, vocab: int, device: str) -> int:
    """The largest divisor of a worker's share whose logits and activations stay small."""
    tokens = _MICRO_TOKENS["cpu" if device == "cpu" else "cuda"]
    limit = max(1, min(tokens // length, _LOGITS_BYTES // (4 * length * vocab)))
    return max(m for m in range(1, share + 1) if share % m == 0 and m <= limit)
