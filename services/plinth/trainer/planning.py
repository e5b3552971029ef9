"""The complete configuration of a run, from its specification, its dataset and the model it starts
from; whatever of them does not fit together is refused by the name of the field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.hf import config as hf_config
from plinth.shared import objectives
from plinth.shared.api.times import seconds
from plinth.shared.api.words import said
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.shards import DatasetInfo, read_info
from plinth.trainer.loop.config import LEARNS_FROM, TrainConfig
from plinth.trainer.lora_specs import lora_fields
from plinth.trainer.new_models import new_model
from plinth.trainer.preference_specs import (
    compare_policy,
    pairs_of,
    policy_of,
    rate_of,
    rewards_of,
)
from plinth.trainer.refusals import objective_of, refuse
from plinth.trainer.validation import check_train
from plinth.v1 import jobs_pb2 as pb

_LOGITS_BYTES = 256 << 20  # of one micro-batch in float32
_MICRO_TOKENS = {"cpu": 4096, "cuda": 65536}


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
    check_train(spec)
    objective = objective_of(spec)
    info = _fitting(objective, dataset)
    model = None if init_from else new_model(spec.model, info.vocab_size, spec.sequence_length)
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
        **_shares(spec, objective),
    )


def _fitting(objective: str, dataset: Path) -> DatasetInfo:
    """The dataset's description, if the objective learns from data of its form."""
    info = read_info(dataset)
    if info.form not in LEARNS_FROM[objective]:
        fit = " or ".join(repr(n) for n, forms in LEARNS_FROM.items() if info.form in forms)
        refuse(
            "objective",
            f"{objective!r} does not fit the dataset, which was prepared from "
            f"{FORMS[info.form].called}, for {fit}",
        )
    return info


def _shares(spec: pb.TrainSpec, objective: str) -> dict[str, Any]:
    """Optional numbers: those that were set, else the objective's own where it has them."""
    defaults = objectives.OBJECTIVES[objective]
    return {
        "warmup_fraction": defaults.warmup_fraction,
        "weight_decay": defaults.weight_decay,
        **{
            name: getattr(spec, name)
            for name in ("warmup_fraction", "decay_fraction", "weight_decay", "clip_norm")
            if spec.HasField(name)
        },
    }


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


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """A new model's config as JSON, but for what its data say."""
    return {
        name: value
        for name, value in config.to_json().items()
        if name not in ("eos_ids", "vocab_size")
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
