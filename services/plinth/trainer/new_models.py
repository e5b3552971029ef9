"""The shape of a model that begins in a run; what cannot be is refused by the name of the field."""

from __future__ import annotations

import math
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import FAMILIES, family_of, new_config
from plinth.models.parts import Experts
from plinth.shared.api.words import said
from plinth.trainer.refusals import refuse
from plinth.v1 import jobs_pb2 as pb


def new_model(spec: pb.ModelSpec, vocab_size: int, sequence_length: int) -> ModelConfig:
    """The full shape of a new model; zeros take the family's usual ratio."""
    family = said(spec, "family")
    if not family:
        known = " or ".join(name for name, value in pb.ModelFamily.items() if value)
        refuse("model.family", f"is not given; use {known}")
    heads = max(1, spec.heads)
    if spec.hidden % heads:
        refuse("model.heads", f"hidden {spec.hidden} does not divide evenly by {spec.heads}")
    gated = "gated" not in family_of(family).new
    ratio = 32 * math.ceil(spec.hidden * 8 / 3 / 32) if gated else 4 * spec.hidden
    intermediate = spec.intermediate or ratio
    return new_config(
        family,
        vocab_size=vocab_size,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads or spec.heads,
        head_dim=spec.hidden // heads,
        intermediate=intermediate,
        context=spec.context or sequence_length,
        tie_embeddings=spec.tie_embeddings,
        **_experts(spec, family, intermediate),
    )


def _experts(spec: pb.ModelSpec, family: str, intermediate: int) -> dict[str, Any]:
    """The field of ModelConfig, where the request says it."""
    if not spec.HasField("experts"):
        return {}
    if "experts" not in family_of(family).new:
        known = " or ".join(repr(n) for n, f in FAMILIES.items() if "experts" in f.new)
        refuse("model.experts", f"are given for {family!r}, whose layers have none; {known} has")
    given = spec.experts
    for field in ("count", "per_token"):
        if not getattr(given, field):
            refuse(f"model.experts.{field}", "is 0, must be at least 1")
    if given.per_token > given.count:
        refuse(
            "model.experts.per_token",
            f"is {given.per_token}, must be no more than the {given.count} of model.experts.count",
        )
    balance = given.balance if given.HasField("balance") else Experts.balance
    if not 0 <= balance <= 100:
        refuse("model.experts.balance", f"is {balance}, must be 0 to 100")
    width = given.intermediate or intermediate
    # Where the usual experts follow from the other sizes, files say one width for both.
    if width != intermediate and callable(family_of(family).new["experts"]):
        refuse(
            "model.experts.intermediate",
            f"is {width}; a config.json of {family!r} has one width, which is {intermediate} by "
            "model.intermediate",
        )
    return {
        "experts": Experts(
            given.count, given.per_token, width, balanced=balance > 0, balance=balance
        )
    }
